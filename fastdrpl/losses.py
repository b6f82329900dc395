"""The loss terms, per sample and in float32: cross entropy, entropy and prior (paper III-A, equations 1 and 2).

The formulas stand in `fastdrpl.kernels.loss_head`, where each is one function, next to `loss_head`, which computes all
that a step needs of them at once.
"""

from fastdrpl.kernels.loss_head import (
    Regulariser,
    Share,
    cross_entropy,
    entropy,
    label_loss,
    loss_head,
    predict,
    prior,
)

__all__ = [
    "Regulariser",
    "Share",
    "cross_entropy",
    "entropy",
    "label_loss",
    "loss_head",
    "predict",
    "prior",
]
