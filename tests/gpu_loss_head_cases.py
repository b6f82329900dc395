"""Batches for the loss head's kernels, and how they are run and compared with the reference."""

from collections.abc import Callable

import pytest
import torch
from gpu_device import DEVICE, ON_GPU, on_device
from test_loss_head import loss_by_hand, mixed_by_hand, relative_error
from torch import Tensor

from fastdrpl.kernels import dispatch
from fastdrpl.kernels import loss_head as public
from fastdrpl.kernels.gpu import loss_head as gpu
from fastdrpl.kernels.gpu import loss_head_tiles as tiles
from fastdrpl.kernels.loss_head import LossHead, Regulariser, Share, loss_head


class Interpreted(torch.autograd.Function):
    """The launchers put together as the operation `loss_value` is."""

    @staticmethod
    def forward(*inputs):
        return gpu.launch_value(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        gpu.save_for_gradient(ctx, inputs, output)

    @staticmethod
    def backward(ctx, *gradients):
        return gpu.pass_gradient(ctx, *gradients)


def run_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`loss_head` and `predict` run the kernels: the operations on a GPU, else the launchers."""
    monkeypatch.setattr(dispatch, "choose", lambda operation, device: "triton")
    if not ON_GPU:
        monkeypatch.setattr(gpu, "loss_rows", gpu.launch_rows)
        monkeypatch.setattr(gpu, "loss_value", Interpreted.apply)
        monkeypatch.setattr(gpu, "loss_gradient", gpu.launch_gradient)


def run_few_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The same at sizes at which small batches take every way through the kernels; -> what sets other sizes."""

    def set_sizes(most_groups=2, many_groups=3, tile=16, largest_block=16, fold=2):
        monkeypatch.setattr(tiles, "MOST_GROUPS", most_groups)
        monkeypatch.setattr(tiles, "MANY_GROUPS", many_groups)
        monkeypatch.setattr(tiles, "TILE", tile)
        monkeypatch.setattr(tiles, "LARGEST_BLOCK", largest_block)
        monkeypatch.setattr(tiles, "FOLD", fold)

    run_kernels(monkeypatch)
    set_sizes()
    return set_sizes


def run(
    function, case: dict[str, Tensor], *, labels=False, mixed=True, given=False, store=None, **options
) -> tuple[LossHead, Tensor, Tensor | None]:
    """The loss head of a case on the device, the gradient (by that of four times the loss), and the store."""
    names = ("logits", "labels" if labels else "target", "index", "partner", "coefficient", "given")
    logits, target, index, partner, coefficient, column = on_device(*(case[name] for name in names))
    store = None if store is None else store.clone().to(DEVICE)
    logits = logits.detach().requires_grad_()
    pair = (partner, coefficient) if mixed and not labels else (None, None)
    more = {"partner": pair[0], "coefficient": pair[1], "given": column if given else None, "store": store}
    head = function(logits, target, index, **more, **options)
    (gradient,) = torch.autograd.grad(4.0 * head.loss, logits)
    return head, gradient / 4.0, store


def by_reference(
    *arguments, prior_weight=0.0, entropy_weight=0.0, share=None, keep_prediction=False, **named
):
    share = share or Share(len(arguments[2]))
    regulariser = Regulariser(prior_weight, entropy_weight)
    return public.loss_head_reference(
        *arguments, share, regulariser=regulariser, keep_prediction=keep_prediction, **named
    )


# How far gradients may lie apart, relative to the component and to the largest one. The last bits of two float32
# computations differ, and then two neighbours may be what the one and the other is rounded to. (The interpreter cuts
# bf16 off where a GPU rounds.)
GRADIENT_TOLERANCE = {torch.float32: (0, 3e-6), torch.bfloat16: (2**-7, 1e-6), torch.float16: (2**-10, 1e-6)}


def check(case: dict[str, Tensor], **options) -> None:
    """Everything that comes back and is written is what the reference gives."""
    head, gradient, store = run(loss_head, case, **options)
    expected, slope, written = run(by_reference, case, **options)
    dtype = case["logits"].dtype
    assert head.loss.dtype == torch.float32 and head.loss.shape == ()
    torch.testing.assert_close(head.loss, expected.loss, rtol=3e-6, atol=1e-6)
    assert gradient.dtype == dtype and gradient.shape == slope.shape
    component, largest = GRADIENT_TOLERANCE[dtype]
    size = slope.float().abs()
    allowed = (
        component * size
        + largest * max(float(size.max()), 0.1 / len(slope))
        + 2.0**-23 * (dtype == torch.float16)
    )
    assert ((gradient.float() - slope.float()).abs() <= allowed).all()
    if dtype == torch.float32:
        hand = {name: value for name, value in options.items() if name.endswith("weight")}
        kind = {name: options[name] for name in ("labels", "mixed") if name in options}
        exact, exact_slope = loss_by_hand(case["logits"], mixed_by_hand(case, **kind), **hand)
        assert head.loss.item() == pytest.approx(exact.item(), rel=2e-6, abs=2e-6)
        assert relative_error(gradient.cpu(), exact_slope) < 1e-6
    check_predictions(case["logits"], head.prediction, expected.prediction, head.predicted)
    assert torch.equal(head.wanted, expected.wanted)
    assert (head.label_loss is None) == (expected.label_loss is None)
    if head.label_loss is not None:
        torch.testing.assert_close(head.label_loss, expected.label_loss, rtol=2e-6, atol=2e-6)
    if store is not None:
        torch.testing.assert_close(store, written, rtol=3e-6, atol=1e-7)
    for tensor in (head.prediction, head.label_loss, head.predicted, head.wanted):
        assert tensor is None or not tensor.requires_grad


def check_predictions(logits, prediction, expected, predicted) -> None:
    assert (prediction is None) == (expected is None)
    assert predicted.dtype == torch.int64 and predicted.shape == logits.shape[:1]
    if prediction is None:
        # Of two that are equal up to rounding either may be the largest.
        p = torch.softmax(logits.float().to(DEVICE), 1)
        chosen = p.gather(1, predicted[:, None])[:, 0]
        assert (chosen >= p.amax(1) * (1 - 1e-6)).all()
    else:
        torch.testing.assert_close(prediction, expected, rtol=3e-6, atol=1e-7)
        assert torch.equal(predicted, prediction.argmax(1))
