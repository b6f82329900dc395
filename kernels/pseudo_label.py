"""Pseudo-labels: the mean of the last predictions, and the uniform redraw (paper III-A and the published code)."""

import torch
from torch import Tensor


def ring_write(ring: Tensor, epoch: int, prediction: Tensor) -> None:
    """Put the predictions (N, C) of an epoch (1, 2, ...) into the ring (N, length, C), over the oldest."""
    ring[:, (epoch - 1) % ring.shape[1]] = prediction.to(ring.dtype)


def ring_mean(ring: Tensor, epoch: int) -> Tensor:
    """Mean of the last `length` epochs' predictions, or of as many as there are: (N, length, C) -> (N, C)."""
    return ring[:, : min(epoch, ring.shape[1])].mean(1)


def redraw_uniform(target: Tensor, among: Tensor, keys: Tensor, count: int) -> Tensor:
    """Targets (N, C) in which `count` of the samples `among` (N,) bool are uniform: those with the smallest keys (N,).

    Exactly `count` of them (fewer only if `among` has fewer); keys are below 2^63 - 1, ties go to the smaller index.
    """
    count = min(count, target.shape[0])
    chosen = torch.argsort(keys.masked_fill(~among, torch.iinfo(torch.int64).max), stable=True)[:count]
    drawn = torch.zeros_like(among).index_fill_(0, chosen, True) & among
    return torch.where(drawn[:, None], 1.0 / target.shape[1], target)
