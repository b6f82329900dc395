"""Two batches through a network at once: each convolution computes both in one call, all else is done for each.

The first batch is without gradient, and no backward pass is spent on it. Batch normalisation sees the two one after
the other, so that its statistics are those of two forward passes.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastdrpl.loaders.errors import UserError


class Joined:
    """A batch without gradient and one with: (a, ...) and (b, ...). torch's functions take it like a tensor."""

    def __init__(self, free: Tensor, live: Tensor):
        self.free, self.live = free, live

    def dim(self) -> int:
        """Of either."""
        return self.live.dim()

    def __add__(self, other: "Joined") -> "Joined":
        return _each(torch.add, (self, other), {})

    __iadd__ = __add__

    def __getattr__(self, name: str) -> Callable[..., "Joined"]:
        method = getattr(Tensor, name, None)
        if not callable(method) or name in ("size", "item", "tolist"):
            raise AttributeError(f"{name} of two batches at once")
        return lambda *words, **named: _each(method, (self, *words), named)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, words: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.conv2d:
            return _convolve(*words, **(named or {}))
        return _each(function, words, named or {})


def forward_both(network: nn.Module, free: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of two batches, the first without gradient: as of two forward passes, up to rounding."""
    logits = network(Joined(free, live))
    counts = [cast(Tensor, layer.num_batches_tracked) for layer in network.modules() if _counts(layer)]
    if counts:
        torch._foreach_add_(counts, 1)  # a layer counts its calls, and saw two batches in one
    return logits.free, logits.live


def _counts(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.training
        and layer.num_batches_tracked is not None
    )


def _each(function: Callable[..., Tensor], words: tuple[Any, ...], named: dict[str, Any]) -> Joined:
    """A function of the first batches, and of the second."""

    def take(half: str) -> Any:
        return pytree.tree_map(
            lambda leaf: getattr(leaf, half) if isinstance(leaf, Joined) else leaf, (words, named)
        )

    with torch.no_grad():
        words_free, named_free = take("free")
        free = function(*words_free, **named_free)
    words_live, named_live = take("live")
    return Joined(free, function(*words_live, **named_live))


def _convolve(
    both: Joined,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Joined:
    if isinstance(padding, str):
        raise UserError(
            f"a network with padding {padding!r} cannot take two batches at once",
            fix="leave --engine.forwards joined out",
        )
    tensors = (both.free, both.live, weight, bias)
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):  # here, where autograd sees it, and not within the function below
        dtype = torch.get_autocast_dtype(kind)
        tensors = tuple(tensor if tensor is None else tensor.to(dtype) for tensor in tensors)  # type: ignore[assignment]
    sizes = (_pair(stride), _pair(padding), _pair(dilation), groups)
    return Joined(*_Convolution.apply(*tensors, *sizes))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


class _Convolution(torch.autograd.Function):
    """One convolution of two batches, with the gradient of the second only."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        free: Tensor,
        live: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(live, weight)
        ctx.sizes = (None if bias is None else [len(bias)], stride, padding, dilation, False, (0, 0), groups)
        with torch.autocast(weight.device.type, enabled=False):
            both = torch.conv2d(torch.cat([free, live]), weight, bias, stride, padding, dilation, groups)
        result = both[: len(free)], both[len(free) :]
        ctx.mark_non_differentiable(result[0])
        return result

    @staticmethod
    def backward(ctx: Any, _: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        live, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[1:4])
        found = torch.ops.aten.convolution_backward(gradient, live, weight, *ctx.sizes, wanted)
        return None, *found, None, None, None, None
