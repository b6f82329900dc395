"""The loss terms, per sample and in float32: cross entropy, entropy and prior (paper III-A, equations 1 and 2).

A mini-batch of n samples may be spread over ranks. Data parallelism averages over ranks, so each rank returns
`world` times its part of a sum; `Share` holds what is needed for that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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
        return self.prior_weight * prior(log_probability, share) + self.entropy_weight * share.mean(
            entropy(log_probability)
        )
