"""Means over some of the samples of a minibatch, as losses need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastdrpl.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.kernels.loss_head import Share


def weighted_mean(values: Tensor, weight: Tensor, share: Share) -> Tensor:
    """sum_i w_i v_i / sum_i w_i over the global batch: (b,), (b,) -> (), this rank's part (see `Share`).

    Where the divisor is 0, as in a batch of which no sample was chosen, it is 0, and so is its gradient.
    """
    divisor = weight.sum()
    if share.total is not None:
        divisor = share.total(divisor)
    divisor = torch.where(divisor > 0, divisor, torch.ones_like(divisor))
    return (values * weight).sum() * (share.world / divisor)


def lowest(values: Tensor, count: Tensor) -> Tensor:
    """1 for the `count` () smallest of values (b,), 0 for the others; ties go to the earlier: (b,) float32."""
    rank = torch.argsort(torch.argsort(values, stable=True))
    return (rank < count).float()
