"""A stage: one objective on one schedule. A method is a tuple of stages."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fastdrpl.config import Schedule
from fastdrpl.loaders.order import Pass
from fastdrpl.losses import Share
from fastdrpl.store import LabelStore

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Draws:
    """The random numbers of an epoch's steps, on the device: a step only indexes them."""

    coefficient: Tensor  # (steps,) float32: one mixing coefficient a step
    keys: Tensor  # (N,) int64: their order within a batch gives the partners


class Images(Protocol):
    """The images of a batch as network inputs (b, 3, H, W), augmented when they are asked for."""

    def plain(self) -> Tensor:
        """As they are."""

    def pair(self, partner: Tensor, coefficient: Tensor) -> tuple[Tensor, Tensor]:
        """As they are, and mixed with those of `partner` (b,): both at once, as a GPU makes them in one pass."""


@dataclass(frozen=True)
class Step:
    """What an objective sees of one step: this rank's slice of a batch."""

    network: Network  # (b, 3, H, W) -> logits (b, C), in training mode
    frozen_statistics: Callable[[Tensor], Tensor]  # the same network, leaving its running statistics alone
    images: Images
    index: Tensor  # (b,) int64 sample index
    store: LabelStore
    share: Share
    number: Tensor  # () int64: which step of the epoch
    draws: Draws | None

    @functools.cached_property
    def inputs(self) -> Tensor:
        """(b, 3, H, W), augmented."""
        return self.images.plain()


@dataclass(frozen=True)
class Outcome:
    """What a step returns: the loss to minimise, and how it agrees with its own targets."""

    loss: Tensor  # () float32, this rank's part (see `losses.Share`)
    predicted: Tensor  # (b,) int64
    wanted: Tensor  # (b,) int64: the class with the largest target


class Objective(Protocol):
    """What a step minimises and what it writes to the label store.

    `loss` is tensor code without host synchronisation. The store has the columns `given` (N,) and, after a
    detection, `labelled` (N,) bool.
    """

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Add the columns that the stage needs; epoch 0 of the pass keys its draws."""

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Draws | None:
        """The random numbers of an epoch's steps."""

    def loss(self, step: Step) -> Outcome:
        """One step."""

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """After an epoch, with the store in sync: the next epoch's targets."""


@dataclass(frozen=True)
class Stage:
    """One training run."""

    name: str
    objective: Objective
    schedule: Schedule
    start: Literal["fresh", "previous"] = "fresh"  # weights: newly initialised, or the previous stage's
    samples: Literal["all", "labelled"] = "all"
    guess: bool = False  # predict every sample before the first epoch and refresh the targets from that
    gamma: float | None = None  # look for wrong labels after the last epoch, at this threshold
    splits: bool = (
        True  # that look decides which samples are labelled from then on; else it is for the report
    )


def learning_rate(epoch: int, schedule: Schedule, *, lr: float, drop: float) -> float:
    """Learning rate in force in an epoch (1, 2, ...): it has dropped in the milestone epoch already."""
    return lr * drop ** sum(milestone <= epoch for milestone in schedule.milestones)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(N,) -> (N, C) float32."""
    return torch.nn.functional.one_hot(label, classes).float()
