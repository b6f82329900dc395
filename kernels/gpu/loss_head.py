"""The Triton twin of `fastdrpl.kernels.loss_head`: two launches forward, one backward.

`rows_kernel` walks over the rows of the logits: normaliser, loss, entropy, prediction, and for the prior term each
column's sum over a group of rows, in log space. `value_kernel` adds the groups up to the loss; where there are many,
`fold_kernel` has added 64 of them to one before, as often as it takes; and with several ranks their reductions come
in between. `gradient_kernel` reads logits and targets once more. Sums have a fixed order: no result depends on which
program ran first. Kernels and launchers stand in `loss_head_rows`, `loss_head_groups` and `loss_head_gradient`.
"""

from typing import Any

from torch import Tensor

from fastdrpl.kernels.gpu import loss_head_tiles as tiles
from fastdrpl.kernels.gpu.launch import register
from fastdrpl.kernels.gpu.loss_head_gradient import gradient_kernel, launch_gradient
from fastdrpl.kernels.gpu.loss_head_groups import (
    FOLD_BLOCK,
    VALUE_TILE,
    fold_kernel,
    launch_value,
    value_kernel,
)
from fastdrpl.kernels.gpu.loss_head_reference import gradient_reference, rows_reference, value_reference
from fastdrpl.kernels.gpu.loss_head_rows import NO_CLASS, launch_rows, rows_kernel
from fastdrpl.kernels.gpu.loss_head_tiles import (
    FOLD,
    LARGEST_BLOCK,
    MANY_GROUPS,
    MOST_GROUPS,
    TILE,
    Tile,
    groups_left,
    tile_of,
    warps_of,
)
from fastdrpl.kernels.loss_head import LossHead, Prediction, Regulariser, Share

__all__ = [
    "FOLD",
    "FOLD_BLOCK",
    "LARGEST_BLOCK",
    "MANY_GROUPS",
    "MOST_GROUPS",
    "NO_CLASS",
    "TILE",
    "VALUE_TILE",
    "Tile",
    "fold_kernel",
    "gradient_kernel",
    "gradient_reference",
    "groups_left",
    "launch_gradient",
    "launch_rows",
    "launch_value",
    "loss_gradient",
    "loss_head",
    "loss_rows",
    "loss_value",
    "pass_gradient",
    "predict",
    "rows_kernel",
    "rows_reference",
    "save_for_gradient",
    "tile_of",
    "value_kernel",
    "value_reference",
    "warps_of",
]

# What may change memory has no gradient, and what has one changes none: torch allows either in one operation.
loss_rows = register("loss_rows", rows_reference, mutates=("store",))(launch_rows)
loss_value = register("loss_value", value_reference)(launch_value)
loss_gradient = register("loss_gradient", gradient_reference)(launch_gradient)


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what `loss_gradient` takes."""
    logits, target, index, partner, coefficient, rows, _, _, _, *ctx.weights = inputs
    ctx.save_for_backward(logits, target, index, partner, coefficient, rows, output[1])
    ctx.set_materialize_grads(False)  # else the unused gradient of the second output is filled with zeros


def pass_gradient(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the logits, and to nothing else."""
    gradient = None if grad_loss is None else loss_gradient(grad_loss, *ctx.saved_tensors, *ctx.weights)
    return gradient, *[None] * 12


loss_value.register_autograd(pass_gradient, setup_context=save_for_gradient)


# --- what `fastdrpl.kernels.loss_head` calls ---


def loss_head(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    share: Share,
    *,
    partner: Tensor | None,
    coefficient: Tensor | None,
    given: Tensor | None,
    regulariser: Regulariser,
    store: Tensor | None,
    keep_prediction: bool,
) -> LossHead:
    """Twin of `loss_head_reference`, for b >= 1."""
    entropy_weight, prior_weight = regulariser.entropy_weight, regulariser.prior_weight
    index = index.contiguous()
    pair = (None if partner is None else partner.contiguous(), coefficient)
    total, maximum = share.total, share.maximum
    over_ranks = prior_weight != 0 and total is not None and maximum is not None
    prediction, label_loss, predicted, wanted, rows, sums, peaks, totals = loss_rows(
        logits.detach(),
        target,
        index,
        *pair,
        given,
        store,
        entropy_weight,
        prior_weight != 0,
        keep_prediction,
        1 if over_ranks else tiles.MOST_GROUPS,
    )
    if over_ranks and total is not None and maximum is not None:
        # (C,), as on a rank without samples, which takes the reference
        largest = maximum(peaks[0])
        peaks, totals = largest[None], total(totals[0] * (peaks[0] - largest).exp())[None]
    weights = (entropy_weight, prior_weight, share.count, share.world)
    loss, _ = loss_value(logits, target, index, *pair, rows, sums, peaks, totals, *weights)
    return LossHead(
        loss,
        prediction if keep_prediction else None,
        None if given is None else label_loss,
        predicted,
        wanted,
    )


def predict(logits: Tensor, index: Tensor | None, store: Tensor | None) -> Prediction:
    """Twin of `predict_reference`, for b >= 1."""
    keep = store is None
    rows = None if index is None else index.contiguous()
    prediction, _, predicted, *_ = loss_rows(
        logits.detach(), None, rows, None, None, None, store, 0.0, False, keep, tiles.MOST_GROUPS
    )
    return Prediction(prediction if keep else None, predicted)
