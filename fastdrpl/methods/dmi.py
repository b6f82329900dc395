"""Determinant-based mutual information (L_DMI): a loss that label noise moves by a constant only.

Xu, Cao, Kong and Wang, "L_DMI: A Novel Information-theoretic Loss Function for Training Deep Nets Robust to Label
Noise" (NeurIPS 2019, arXiv 1909.03388):

ce    cross entropy on the given labels
dmi   fine-tuning of that network with L_DMI = -log |det U|, U = (1/n) Y^T P: labels one-hot (n, C), predictions (n, C)

Labels that went through an invertible transition matrix T give U' = T^T U and L' = L - log |det T|.
DMI of the DRPL paper's tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdrpl.config import Config
from fastdrpl.console import warn
from fastdrpl.lazy import one_hot, torch
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import judged_by_loss
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.rates import at_rate
from fastdrpl.settings import COUNT, SHARE, WEIGHT, Schedule, setting
from fastdrpl.stages import Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.kernels.loss_head import Share
    from fastdrpl.store import LabelStore

_CODE = "published code of L_DMI"
FLOOR = 1e-3  # added to the determinant in the published code


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Cross entropy, then fine-tuning with the determinant of the joint matrix of labels and predictions."""

    ce: Schedule = setting(Schedule(epochs=120, milestones=(40, 80)), _CODE)
    """Stage 1: cross entropy, with the run's optimiser and batch size."""
    finetune: Schedule = setting(Schedule(epochs=100), _CODE)
    """Stage 2: the determinant loss, from the weights of stage 1."""
    lr: float = setting(1e-6, f"{_CODE}, CIFAR-10", WEIGHT)
    """Learning rate of stage 2; 0 = the run's."""
    batch_size: int = setting(256, _CODE, COUNT)
    """Images in a step of stage 2, over all processes; 0 = the run's. Below the number of classes the determinant
    is degenerate."""
    floor: Literal["none", "published"] = setting(
        "none", "own: the paper's formula; the published code adds 0.001 to n^C |det U|"
    )
    """none = -log |det U| over the classes whose labels occur in the batch; published = -log(|det n U| + 0.001),
    whose gradient vanishes where the determinant is small, as it is with many classes."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the final losses."""


RECIPES = {
    "digits": {
        "own: small and quick": {
            "ce": Schedule(epochs=16),
            "finetune": Schedule(epochs=32),
            "lr": 1e-3,
        }
    }
}


def stages(dmi: Settings, config: Config) -> tuple[Stage, ...]:
    """Cross entropy, then the determinant loss from its weights."""
    scale = config.epochs_scale
    batch_size = dmi.batch_size or config.batch_size
    ce = Stage(name="ce", objective=CrossEntropy(), schedule=dmi.ce.scaled(scale))
    stage = Stage(
        name="dmi",
        objective=Determinant(dmi.floor, batch_size),
        schedule=dmi.finetune.scaled(scale),
        optimiser=at_rate(dmi.lr, config),
        batch_size=batch_size,
        start="previous",
    )
    return ce, judged_by_loss(stage, dmi.gamma, "dmi.gamma", config)


@dataclass(frozen=True)
class Determinant(Objective):
    """-log |det U| of the joint matrix of labels and predictions of the global batch."""

    floor: Literal["none", "published"]
    batch_size: int

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """A warning where the matrix cannot have full rank."""
        batch = min(self.batch_size, store.samples)
        if classes > batch and _is_first_rank():
            warn(
                f"dmi: {classes} classes and {batch} images a step: the determinant is degenerate, as no step has a "
                f"label of each class (give --dmi.batch_size of several times {classes})"
            )

    def loss(self, step: Step) -> Outcome:
        """One forward pass; softmax and determinant in float64."""
        logits = step.network(step.inputs)
        given = step.store.read("given", step.index)
        matrix = joint_matrix(torch.softmax(logits.double(), 1), given, step.share)
        value = information_loss(matrix, step.share.count, self.floor)
        # Every rank has the whole value, but `world` times its part of the gradient: see `Share`.
        value = value + (step.share.world - 1) * (value - value.detach())
        return Outcome(value.float(), logits.detach().argmax(1), given)


def _is_first_rank() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def joint_matrix(probability: Tensor, given: Tensor, share: Share) -> Tensor:
    """U = (1/n) Y^T P over the global batch: (b, C), (b,) -> (C, C), rows = labels, columns = predictions.

    Only this rank's samples carry gradient; the gradients add up over ranks.
    """
    own = one_hot(given, probability.shape[1]).to(probability.dtype).T @ probability
    if share.total is not None:
        own = own + (share.total(own.detach()) - own.detach())
    return own / share.count


def information_loss(matrix: Tensor, count: int, floor: Literal["none", "published"] = "none") -> Tensor:
    """L_DMI of a joint matrix (C, C) of `count` samples -> ().

    Without a floor, classes that have no label in the batch are left out, row and column: a row of zeros would make the
    loss infinite, whatever the network does. With all classes there it is -log |det U|.
    """
    if floor == "published":
        return -torch.log(torch.linalg.det(matrix * count).abs() + FLOOR)
    missing = (matrix.detach().sum(1) == 0).to(matrix.dtype)
    return -torch.linalg.slogdet(matrix + torch.diag(missing)).logabsdet
