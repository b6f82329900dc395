"""The loss head: all that lies between the logits and the label store (paper III-A, equations 1 and 2).

What: log softmax, soft cross entropy to a mixed pair of targets, entropy and prior terms, loss to the given label,
prediction, predicted and wanted class. Why a twin: as torch operations these are some 40 kernels forward and
backward, of a few microseconds each, on 5 KB of logits at B = 128 and C = 10. The twin takes two launches forward and
one backward.

Its cost for a batch of b samples and C classes with logits of e bytes: forward b C (e + 4 + 4 + 4) bytes, which are
the logits, two targets and the prediction, three exponentials and about 15 other operations an element; backward
b C (2 e + 4 + 4) bytes, three exponentials and about 20 operations. That is bound by memory from some 10^6 elements
on, and by the launches below.

The terms come first, then the reference made of them, then the public operations. Everything is computed in float32.
A mini-batch of n samples may be spread over ranks. Data parallelism averages over ranks, so each rank returns
`world` times its part of a sum; `Share` holds what is needed for that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastdrpl.kernels import dispatch
from fastdrpl.kernels.mixup import mix

# --- the terms ---


@dataclass(frozen=True)
class Share:
    """This rank's part of a global batch: `count` samples over all ranks, and the two reductions over ranks.

    `total` and `maximum` take and return a tensor and carry no gradient; with one rank they are None.
    """

    count: int
    world: int = 1
    total: Callable[[Tensor], Tensor] | None = None
    maximum: Callable[[Tensor], Tensor] | None = None

    def mean(self, per_sample: Tensor) -> Tensor:
        """(b,) values of this rank -> its part of the mean over the global batch, times `world`."""
        return per_sample.sum() * (self.world / self.count)


def cross_entropy(log_probability: Tensor, target: Tensor) -> Tensor:
    """Soft cross entropy -s . log p of each sample: (b, C), (b, C) -> (b,) (equation 1)."""
    return -(target * log_probability).sum(1)


def label_loss(log_probability: Tensor, label: Tensor) -> Tensor:
    """Loss to an integer label, -log p[y]: (b, C), (b,) -> (b,); the loss l* that detection looks at."""
    return -log_probability.gather(1, label[:, None])[:, 0]


def entropy(log_probability: Tensor) -> Tensor:
    """Entropy of each prediction (R_H of equation 2): (b, C) -> (b,)."""
    return -(log_probability.exp() * log_probability).sum(1)


def prior(log_probability: Tensor, share: Share) -> Tensor:
    """Distance of the mean prediction of the global batch from the uniform one (R_A of equation 2): (b, C) -> ().

    -(1/C) sum_c log((1/n) sum_i p_c(x_i)), at least log C. In log space: a class that no sample is
    predicted as would underflow. Every rank holds the whole value, but `world` times its part of the gradient.
    """
    log_sum = torch.logsumexp(log_probability, 0)
    if share.total is not None and share.maximum is not None:
        # Only this rank's samples carry gradient; the gradients add up over ranks.
        peak = share.maximum(log_sum.detach())
        own = (log_sum - peak).exp()
        log_sum = (own + (share.total(own.detach()) - own.detach())).log() + peak
    log_mean = log_sum - math.log(share.count)
    value = -log_mean.mean()
    return value + (share.world - 1) * (value - value.detach())


@dataclass(frozen=True)
class Regulariser:
    """R = entropy_weight R_H + prior_weight R_A (equation 2)."""

    prior_weight: float
    entropy_weight: float

    def __call__(self, log_probability: Tensor, share: Share) -> Tensor:
        """(b, C) -> (): this rank's part; the mean over ranks is R."""
        value = log_probability.new_zeros(())
        if self.prior_weight:  # what has no weight takes no part in reductions over ranks either
            value = self.prior_weight * prior(log_probability, share)
        if self.entropy_weight:
            value = value + self.entropy_weight * share.mean(entropy(log_probability))
        return value


# --- the reference ---


class LossHead(NamedTuple):
    """What a step takes from its logits. Only `loss` carries gradient."""

    loss: Tensor  # () float32, this rank's part (see `Share`)
    prediction: Tensor | None  # (b, C) float32, where it was asked for
    label_loss: Tensor | None  # (b,) float32, where `given` came
    predicted: Tensor  # (b,) int64: the class with the largest prediction, the first of equals
    wanted: Tensor  # (b,) int64: the class with the largest target before mixing, the first of equals


class Prediction(NamedTuple):
    """Predictions without a loss."""

    prediction: Tensor | None  # (b, C) float32, where it was not written to a store
    predicted: Tensor  # (b,) int64: the class with the largest prediction, the first of equals


def loss_head_reference(
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
    """`loss_head` in plain torch, its gradient by autograd."""
    log_probability = torch.log_softmax(logits.float(), 1)
    own = target.index_select(0, index)
    if target.ndim == 1:
        loss_of_each, wanted = label_loss(log_probability, own), own
    else:
        # Cross entropy is linear in the target: mixing targets mixes the two losses.
        mixed = own if partner is None or coefficient is None else mix(own, partner, coefficient)
        loss_of_each, wanted = cross_entropy(log_probability, mixed), own.argmax(1)
    # A batch of no samples has no mean; its loss is 0.
    loss = share.mean(loss_of_each) if share.count else loss_of_each.sum()
    if share.count and (regulariser.prior_weight or regulariser.entropy_weight):
        loss = loss + regulariser(log_probability, share)

    log_probability = log_probability.detach()
    prediction = log_probability.exp() if keep_prediction or store is not None else None
    if store is not None and prediction is not None:
        store.index_copy_(0, index, prediction)
    return LossHead(
        loss,
        prediction if keep_prediction else None,
        None if given is None else label_loss(log_probability, given.index_select(0, index)),
        (log_probability if prediction is None else prediction).argmax(1),
        wanted,
    )


def predict_reference(logits: Tensor, index: Tensor | None, store: Tensor | None) -> Prediction:
    """`predict` in plain torch."""
    prediction = torch.softmax(logits.detach().float(), 1)
    if index is None or store is None:
        return Prediction(prediction, prediction.argmax(1))
    store.index_copy_(0, index, prediction)
    return Prediction(None, prediction.argmax(1))


# --- the public operations ---


def loss_head(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    *,
    share: Share | None = None,
    partner: Tensor | None = None,
    coefficient: Tensor | None = None,
    given: Tensor | None = None,
    prior_weight: float = 0.0,
    entropy_weight: float = 0.0,
    store: Tensor | None = None,
    keep_prediction: bool = False,
) -> LossHead:
    """Loss, predictions and agreement of one batch; the loss has a gradient with respect to the logits.

    loss = (1/n) sum_i [-s_i . log p_i + entropy_weight H(p_i)] - (prior_weight/C) sum_c log((1/n) sum_i p_ic)
    (equations 1 and 2), with p = softmax(logits) and s_i = target[index_i], or with a partner
    s_i = coefficient target[index_i] + (1 - coefficient) target[index[partner_i]].

    `logits` (b, C) of a float type, in any layout, C >= 1; `target` float32 (N, C), or int64 (N,) labels; `index`
    int64 (b,), the rows of the batch, repeats allowed; `share` for a batch spread over ranks (default: this is all
    of it); `partner` int64 (b,) positions in the batch and `coefficient` float32 (), which come together and with soft
    targets; `given` int64 (N,) labels for the loss of each sample; `store` float32 (N, C), whose rows `index` are set
    to the predictions (of a repeated row to one of them); `keep_prediction` returns them. All on one device.

    Logits that are not finite make the loss so. With b = 0 on one rank it is 0. Raises TypeError or ValueError for
    what does not fit; values out of range are found on the CPU only, as looking would halt a GPU, or there with
    FASTDRPL_KERNELS_DEBUG=1.
    """
    share = Share(len(index)) if share is None else share
    _check_batch(logits, index)
    _check_target(logits, target, index, partner, coefficient)
    if given is not None:
        _check_column("given", given, torch.int64, (len(target),), logits)
    if store is not None:
        _check_column("store", store, torch.float32, (len(target), logits.shape[1]), logits)
        if store is target or _share_memory(store, target):
            raise ValueError(
                "store: got the targets themselves, want another column: the backward pass reads them"
            )
    _check_share(share, len(index))
    _check_ranges(logits.shape[1], target, index, partner, given)
    regulariser = Regulariser(float(prior_weight), float(entropy_weight))
    if not (math.isfinite(regulariser.prior_weight) and math.isfinite(regulariser.entropy_weight)):
        raise ValueError(f"weights: got {prior_weight} and {entropy_weight}, want finite numbers")
    # An empty batch may still have to take part in the reductions over ranks; there is nothing to launch for it.
    if len(index) and dispatch.choose("loss_head", logits.device.type) == "triton":
        from fastdrpl.kernels.gpu import loss_head as twin  # imports triton: only where it is used

        run = twin.loss_head
    else:
        run = loss_head_reference
    return run(
        logits,
        target,
        index,
        share,
        partner=partner,
        coefficient=coefficient,
        given=given,
        regulariser=regulariser,
        store=store,
        keep_prediction=keep_prediction,
    )


def predict(logits: Tensor, index: Tensor | None = None, store: Tensor | None = None) -> Prediction:
    """softmax(logits) and its largest class, without gradient; returned, or written to rows `index` of `store`.

    `logits`, `index` and `store` as `loss_head` takes them; the last two come together.
    """
    if (index is None) != (store is None):
        raise ValueError("index and store: got one of them, want both or neither")
    _check_batch(logits, index)
    if store is not None:
        _check_column("store", store, torch.float32, (len(store), logits.shape[1]), logits)
    if store is not None and index is not None:
        dispatch.check_range("index", index, len(store))
    if len(logits) and dispatch.choose("loss_head", logits.device.type) == "triton":
        from fastdrpl.kernels.gpu import loss_head as twin

        return twin.predict(logits, index, store)
    return predict_reference(logits, index, store)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if torch.compiler.is_compiling():  # there tensors have no address
        return False
    return one.numel() > 0 and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _check_batch(logits: Tensor, index: Tensor | None) -> None:
    if not logits.is_floating_point() or logits.ndim != 2 or not logits.shape[1]:
        raise TypeError(f"logits: got {logits.dtype} {tuple(logits.shape)}, want floats (b, C) with C >= 1")
    if index is not None:
        _check_vector("index", index, logits)


def _check_target(
    logits: Tensor, target: Tensor, index: Tensor, partner: Tensor | None, coefficient: Tensor | None
) -> None:
    if target.dtype == torch.int64:
        _check_column("target", target, torch.int64, (len(target),), logits)
        if partner is not None:
            raise ValueError("partner: got one with integer labels, want soft targets (N, C) to mix")
    else:
        _check_column("target", target, torch.float32, (len(target), logits.shape[1]), logits)
    if (partner is None) != (coefficient is None):
        raise ValueError("partner and coefficient: got one of them, want both or neither")
    if partner is not None:
        _check_vector("partner", partner, logits)
    if coefficient is not None:
        _check_column("coefficient", coefficient, torch.float32, (), logits)


def _check_vector(name: str, values: Tensor, logits: Tensor) -> None:
    if values.dtype != torch.int64 or values.shape != (len(logits),):
        raise TypeError(
            f"{name}: got {values.dtype} {tuple(values.shape)}, want int64 ({len(logits)},), one for each of the logits"
        )
    if values.device != logits.device:
        raise ValueError(f"{name} is on {values.device}, logits on {logits.device}: want one device")


def _check_column(
    name: str, values: Tensor, dtype: torch.dtype, shape: tuple[int, ...], logits: Tensor
) -> None:
    if values.dtype != dtype or values.shape != shape or not values.is_contiguous():
        layout = "contiguous" if values.is_contiguous() else "strided"
        raise TypeError(
            f"{name}: got {layout} {values.dtype} {tuple(values.shape)}, want contiguous {dtype} {shape}"
        )
    if values.device != logits.device:
        raise ValueError(f"{name} is on {values.device}, logits on {logits.device}: want one device")


def _check_ranges(
    classes: int, target: Tensor, index: Tensor, partner: Tensor | None, given: Tensor | None
) -> None:
    if not dispatch.debugging():  # a gather would be one more launch
        return
    dispatch.check_range("index", index, len(target))
    if partner is not None:
        dispatch.check_range("partner", partner, len(index))
    for name, labels in (("target", target if target.ndim == 1 else None), ("given", given)):
        if labels is not None:
            dispatch.check_range(name, labels.index_select(0, index), classes)


def _check_share(share: Share, batch: int) -> None:
    if (share.total is None) != (share.maximum is None):
        raise ValueError("share: got one of total and maximum, want both or neither")
    if share.count < batch or share.world < 1:
        raise ValueError(
            f"share: got {share.count} samples over {share.world} ranks, want at least this rank's {batch} samples"
        )
