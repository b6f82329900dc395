"""Generalised cross entropy, truncated: a loss between cross entropy and 1 - p, without the labels that look wrong.

Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels" (NeurIPS 2018):

L_q       (1 - p[y]^q) / q: cross entropy as q -> 0, 1 - p[y] at q = 1                                 (section 3.2)
truncated L_q where p[y] > k, else the constant L_q(k): such a sample is pruned, it has no gradient    (section 3.3)

Which samples are pruned is decided every few epochs, from p[y] of all samples, and holds until the next time.
GCE of the DRPL paper's tables.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.lazy import label_loss, torch
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import judged_by_loss
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.rates import at_rate
from fastdrpl.settings import POSITIVE, SHARE, WEIGHT, Schedule, scale_epoch, setting
from fastdrpl.stages import Look, Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.kernels.loss_head import Share
    from fastdrpl.store import LabelStore

CONFIDENCE = "confidence"  # the column of p[y] at the last look


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Truncated L_q on the given labels."""

    schedule: Schedule = setting(
        Schedule(epochs=120, milestones=(41, 81)), "GCE paper, CIFAR-10: drops after 40 and 80 epochs"
    )
    """Length and milestones."""
    q: float = setting(0.7, "GCE paper", (1e-6, 1.0))
    """From cross entropy (near 0) to 1 - p (at 1): the larger, the more robust and the slower to learn."""
    k: float = setting(0.5, "GCE paper", (0.0, 0.999999))
    """A label with a probability of at most this is pruned; 0 = none is: plain L_q."""
    prune_from: int = setting(40, "GCE paper, CIFAR-10", POSITIVE)
    """First epoch that is trained without the pruned samples."""
    prune_every: int = setting(10, "GCE paper", POSITIVE)
    """Epochs from one choice of the pruned samples to the next."""
    normalise: Literal["batch", "kept"] = setting("batch", "public code of GCE")
    """The loss is divided by the size of the batch, so that pruning makes steps smaller, or by how many are kept."""
    start: Literal["fresh", "ce"] = setting(
        "fresh", "GCE paper; code of GCE in L_DMI goes on from cross entropy"
    )
    """Weights: fresh ones, or those of a first stage with plain cross entropy (then with a lower `lr`)."""
    ce: Schedule = setting(Schedule(epochs=120, milestones=(40, 80)), "own: as the method ce")
    """That first stage (only with --gce.start ce)."""
    lr: float = setting(0.0, "P IV: one for all; GCE paper and code of GCE in L_DMI: 0.01", WEIGHT)
    """First learning rate of training with L_q; 0 = the run's."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the final losses."""

    def __post_init__(self) -> None:
        if self.k > 0 and self.prune_from > self.schedule.epochs:
            raise UserError(
                f"--gce.prune_from is {self.prune_from} of {self.schedule.epochs} epochs: nothing would be pruned",
                fix="give fewer, --gce.k 0 for the loss without truncation, or shorten all alike with --epochs_scale",
            )
        if self.k > 0 and self.prune_from == 1 and self.start == "fresh":
            raise UserError(
                "--gce.prune_from is 1 with fresh weights: they believe no label, so all samples would be pruned",
                fix="give 2 or more, or --gce.start ce",
            )


RECIPES = {
    "cifar100": {
        "GCE paper, CIFAR-100: drops after 80 and 120 epochs": {
            "schedule": Schedule(epochs=150, milestones=(81, 121)),
            "prune_from": 80,
        }
    },
    "digits": {
        "own: small and quick": {
            "schedule": Schedule(epochs=64, milestones=(24, 48)),
            "prune_from": 24,
            "prune_every": 6,
            "ce": Schedule(epochs=16, milestones=()),
        }
    },
}


def stages(gce: Settings, config: Config) -> tuple[Stage, ...]:
    """One stage; where it is asked for, cross entropy comes before it."""
    scale = config.epochs_scale
    stage = Stage(
        name="gce",
        objective=GeneralisedCrossEntropy(gce.q, gce.k, gce.normalise),
        schedule=gce.schedule.scaled(scale),
        optimiser=at_rate(gce.lr, config),
        start="previous" if gce.start == "ce" else "fresh",
        looks=looks_for_pruning(gce, config),
    )
    judged = judged_by_loss(stage, gce.gamma, "gce.gamma", config)
    if gce.start == "fresh":
        return (judged,)
    return (Stage(name="ce", objective=CrossEntropy(), schedule=gce.ce.scaled(scale)), judged)


def looks_for_pruning(gce: Settings, config: Config) -> tuple[Look, ...]:
    """p[y] of all samples before the first pruned epoch and every few epochs after; augmented as other losses are.

    Fresh weights would have every sample pruned, for ever: however short the schedule, an epoch comes before.
    """
    if gce.k == 0:
        return ()
    first = scale_epoch(gce.prune_from, config.epochs_scale)
    every = scale_epoch(gce.prune_every, config.epochs_scale)
    if gce.start == "fresh":
        first = max(2, first)
    augmented = config.detect.augment == "train"
    look = Look(into=CONFIDENCE, read="given", augmented=augmented, since=first - 1 or every, every=every)
    return (look,) if first > 1 else (dataclasses.replace(look, before=True), look)


@dataclass(frozen=True)
class GeneralisedCrossEntropy(Objective):
    """Truncated L_q, mean over the batch or over those of it that are not pruned."""

    q: float
    k: float
    normalise: Literal["batch", "kept"]

    @property
    def reads(self) -> tuple[str, ...]:
        """p[y] of all samples."""
        return (CONFIDENCE,)

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Until the first look nothing is pruned."""
        store.put(CONFIDENCE, torch.ones(store.samples))

    def loss(self, step: Step) -> Outcome:
        """L_q of the kept samples, L_q(k) of the pruned."""
        given = step.store.read("given", step.index)
        kept = step.store.read(CONFIDENCE, step.index) > self.k
        log_probability = torch.log_softmax(step.network(step.inputs).float(), 1)
        loss_of_each = lq_loss(label_loss(log_probability, given), self.q)
        if self.normalise == "kept":
            loss = mean_over_kept(loss_of_each, kept, step.share)
        else:
            loss = step.share.mean(torch.where(kept, loss_of_each, (1 - self.k**self.q) / self.q))
        return Outcome(loss, log_probability.argmax(1), given)


def lq_loss(label_loss: Tensor, q: float) -> Tensor:
    """L_q = (1 - p^q) / q of probabilities that are given as -log p: any shape; finite, with its gradient, at p = 0."""
    return -torch.expm1(-q * label_loss) / q


def mean_over_kept(loss_of_each: Tensor, kept: Tensor, share: Share) -> Tensor:
    """(b,), (b,) bool -> (): this rank's part of the mean over the kept samples of the global batch; 0 if none is."""
    count = kept.sum()
    if share.total is not None:
        count = share.total(count)
    return torch.where(kept, loss_of_each, 0.0).sum() * share.world / count.clamp(min=1)
