"""A stage: one objective on one schedule. A method is a tuple of stages.

Imports no torch: a method's file is read for its settings too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fastdrpl.config import OptimiserConfig
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.settings import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.detection import Detector
    from fastdrpl.kernels.loss_head import Share
    from fastdrpl.store import LabelStore

VIEWS, WALKS, REPEATS = 16, 8, 256  # what the 15 bits of `Pass.view` hold: see `walk_view`


class Network(Protocol):
    """A network as an objective sees it: (b, 3, H, W) -> logits (b, C)."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """In training mode, with gradient."""

    def frozen(self, inputs: Tensor) -> Tensor:
        """In training mode, leaving the running statistics of batch normalisation alone."""

    def both(self, free: Tensor, live: Tensor, *, freeze: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of a batch without gradient, then of one with, in training mode; `freeze`: the first is `frozen`."""

    def evaluated(self, inputs: Tensor) -> Tensor:
        """In evaluation mode, without gradient."""


class Images(Protocol):
    """The images of a minibatch as network inputs (b, 3, H, W), made when they are asked for."""

    def __call__(self, view: int = 0) -> Tensor:
        """Augmented; another view (below `VIEWS`) is another, independent augmentation of the same images."""

    def pair(self, partner: Tensor, coefficient: Tensor, view: int = 0) -> tuple[Tensor, Tensor]:
        """Augmented, and the same mixed with those of `partner` (b,): both at once, as a GPU makes them in one pass."""

    def plain(self) -> Tensor:
        """The centre crop, nothing random."""


@dataclass(frozen=True)
class Minibatch:
    """This rank's slice of a batch of one walk."""

    images: Images
    index: Tensor  # (b,) int64 sample index
    share: Share

    @functools.cached_property
    def inputs(self) -> Tensor:
        """(b, 3, H, W): the first augmentation, made once."""
        return self.images()


@dataclass(frozen=True)
class Step:
    """What an objective sees of one step."""

    networks: tuple[Network, ...]
    batches: tuple[Minibatch, ...]  # one for each walk of the round
    store: LabelStore
    number: Tensor  # () int64: which step of the epoch, from 0
    epoch: Tensor  # () int64, from 1
    draws: Any  # what the objective's `draw` returned
    round: int = 0  # which of the epoch's rounds

    @property
    def network(self) -> Network:
        """The first network."""
        return self.networks[0]

    @property
    def batch(self) -> Minibatch:
        """The first walk's."""
        return self.batches[0]

    @property
    def images(self) -> Images:
        """Of the first walk."""
        return self.batches[0].images

    @property
    def inputs(self) -> Tensor:
        """(b, 3, H, W), augmented, of the first walk."""
        return self.batches[0].inputs

    @property
    def index(self) -> Tensor:
        """(b,) int64 sample index of the first walk."""
        return self.batches[0].index

    @property
    def share(self) -> Share:
        """This rank's part of the first walk's batch."""
        return self.batches[0].share


@dataclass(frozen=True)
class Write:
    """Rows for a column of the label store; applied if the step is finite, and told to the other ranks."""

    column: str
    index: Tensor  # (b,) int64
    values: Tensor  # (b, ...), without gradient


@dataclass(frozen=True)
class Learnt:
    """Rows of a column that learn: row -= rate * d loss / d row, if the step is finite.

    `rows` (b, ...) are leaves that require a gradient and take part in the loss. The gradient is that of the mean loss
    over the global batch, whatever the number of ranks and the loss scale.
    """

    column: str
    index: Tensor  # (b,) int64
    rows: Tensor
    rate: float


@dataclass(frozen=True)
class Outcome:
    """What a step returns: the loss to minimise, how it agrees with its own targets, what it wants written.

    With several networks `loss` is a tuple, one a network, None for one that does not learn in this step. Losses
    are float32 and this rank's part (see `kernels.loss_head.Share`).
    """

    loss: Tensor | tuple[Tensor | None, ...]
    predicted: Tensor  # (b,) int64
    wanted: Tensor  # (b,) int64: the class with the largest target
    writes: tuple[Write, ...] = ()
    learnt: tuple[Learnt, ...] = ()


@dataclass(frozen=True)
class Walk:
    """One pass over samples in minibatches: which, how many at a time."""

    index: np.ndarray  # (n,) int64 sample index, n >= 1
    batch_size: int = 0  # over all ranks; 0 = the stage's


Round = tuple[
    Walk, ...
]  # walked side by side: as many steps as the first has, the others start again where they end


@dataclass(frozen=True)
class Demand:
    """What an objective has in memory beside its columns, for the estimate that a run begins with."""

    images: float = 1.0  # with gradient at once, for each image of the batch and each network
    drawn: float = 0.0  # bytes of what `draw` returns, for each sample


class Objective:
    """What a step minimises and what it writes to the label store; a subclass is a frozen dataclass of settings.

    It has no state of its own: all of that is in the store, as columns of N rows and shared tensors of any shape,
    so that a run that goes on needs nothing else. The store has the column `given` (N,) int64 and, after a detection
    that decides, `labelled` (N,) bool and `posterior` (N,) float64. `loss` is tensor code without host synchronisation.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of looks that `refresh` and `rounds` use; a look that nobody reads is refused. Default: none."""
        return ()

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Add the columns that the stage needs; epoch 0 of the pass keys its draws. Default: none."""

    def demand(self, classes: int) -> Demand:
        """What it has in memory beside its columns. Default: the images of the batch, and no random numbers."""
        return Demand()

    def rounds(self, store: LabelStore, epoch_pass: Pass) -> tuple[Round, ...]:
        """What an epoch walks over, round after round; at most `WALKS` walks. Default: all samples once.

        A run that goes on within an epoch asks again: it depends on columns that steps do not write.
        """
        return ((Walk(np.arange(store.samples)),),)

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Any:
        """The random numbers of an epoch's steps: a frozen dataclass of tensors, or None. Default: None."""
        return None

    def loss(self, step: Step) -> Outcome:
        """One step."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """After an epoch and its looks, with the store in sync: the next epoch's targets. Default: none.

        Also called with epoch 0, after looks before the first epoch.
        """

    def end(self, store: LabelStore) -> None:
        """After the last epoch and its detection: drop what no later stage uses, before it is saved. Default: none."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A walk over all samples that only looks, in evaluation mode; the result is a column of the label store."""

    into: str  # the column: (N,) or (N, C) float32, with a last dimension of networks where `of` is "each"
    read: Literal["loss", "given", "probability"]  # -log p[y], p[y] or p
    of: Literal["mean", "each"] = "mean"  # of the networks' mean prediction, or of each network's
    augmented: bool = False
    purpose: Purpose = Purpose.look  # keys the augmentation
    before: bool = False  # before the first epoch, and at no other time
    every: int = 0  # after every so many epochs from `since` on, beside the last; 0 = after the last only
    since: int = 1
    keep: bool = True  # False: the column is dropped once the stage's detector has read it
    figures: bool = False  # also kept as a file of the stage; with --track every of every epoch

    def due(self, epoch: int, last: int) -> bool:
        """Whether it is taken after an epoch (0: before the first) of a stage with `last` epochs."""
        if self.before or epoch == 0:
            return self.before and epoch == 0
        return epoch == last or bool(
            self.every and epoch >= self.since and (epoch - self.since) % self.every == 0
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run."""

    name: str
    objective: Objective
    schedule: Schedule
    optimiser: OptimiserConfig | None = None  # None = the run's
    batch_size: int = 0  # over all ranks; 0 = the run's
    networks: int = 1
    start: Literal["fresh", "previous"] = "fresh"  # weights: newly initialised, or the previous stage's
    looks: tuple[Look, ...] = ()
    detector: Detector | None = None  # looks for wrong labels after the last epoch (or each: --track every)
    decides: bool = (
        True  # that split decides which samples are labelled from then on; else it is for the report
    )


def walk_view(walk: int, repeat: int) -> int:
    """The view of the pass that keys the `repeat`-th time (from 0) that walk number `walk` of an epoch is walked.

    The lowest four bits are left to `Images`.
    """
    return (walk % WALKS) * VIEWS + (repeat % REPEATS) * VIEWS * WALKS


def learning_rate(epoch: int, schedule: Schedule, *, lr: float, drop: float) -> float:
    """Learning rate in force in an epoch (1, 2, ...): it has dropped in the milestone epoch already."""
    return lr * drop ** sum(milestone <= epoch for milestone in schedule.milestones)
