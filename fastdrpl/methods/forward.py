"""Forward correction: learn through a matrix that says how often each class is labelled as which other.

Patrini et al., "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach" (CVPR 2017), section 4:

ce        cross entropy on the given labels; T from its predictions: for each class i the image that looks most
          like it, x_i, gives the row T_ij = p(y = j | x_i): how often an image of class i is labelled j
forward   loss -log (p(x) T)[y]: what is compared with the label is the prediction after the noise (Theorem 2), so
          the prediction before it, p(x), learns the true class

FW of the DRPL paper's tables. A network that has memorised its labels predicts them with certainty, and T tends to
the identity, with which forward correction is cross entropy: see `Settings.estimate_after`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.lazy import torch
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import judged_by_loss
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.rates import at_rate
from fastdrpl.settings import COUNT, SHARE, WEIGHT, Schedule, scale_epoch, setting
from fastdrpl.stages import Look, Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_CODE = "published code of FW, CIFAR-10: drops after 41 and 81 epochs"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Cross entropy, an estimate of the noise, and training corrected by it."""

    base: Schedule = setting(Schedule(epochs=120, milestones=(42, 82)), _CODE)
    """Stage 1, on the given labels. With --forward.start fresh it ends after `estimate_after` epochs: nothing later
    would be used."""
    estimate_after: int = setting(
        42, "own; published code of FW: lowest loss on 10 % held-out noisy labels; P holds nothing out", COUNT
    )
    """T is estimated after this many epochs of stage 1; 0 = after its last, when the labels may be memorised."""
    anchor: Literal["auto", "percentile", "argmax"] = setting(
        "auto", "published code of FW: percentile on CIFAR-10, argmax on CIFAR-100"
    )
    """Which image stands for a class: argmax = the one that the network is most certain of; percentile = the first
    below the given percentile, as the very first may be an outlier; auto = percentile as long as the classes are
    larger on average than the part of the images that it cuts off."""
    percentile: float = setting(97.0, "published code of FW", (0.0, 100.0))
    """Images at or above this percentile of a class's probability do not stand for it (anchor percentile)."""
    corrected: Schedule = setting(Schedule(epochs=120, milestones=(42, 82)), _CODE)
    """Stage 2, corrected by T."""
    start: Literal["fresh", "previous"] = setting(
        "fresh", "published code of FW; that of L_DMI goes on from stage 1"
    )
    """Weights that stage 2 starts from: fresh ones, or those of stage 1 (then with a lower `lr`)."""
    lr: float = setting(0.0, "P IV: one for all; that of FW in L_DMI, from stage 1's weights: 0.01", WEIGHT)
    """First learning rate of stage 2; 0 = the run's."""
    floor: float = setting(1e-7, "published code of FW, of p instead of p T", (1e-30, 1e-2))
    """Smallest probability of a label that the loss takes."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the final losses, without T."""

    def __post_init__(self) -> None:
        if self.estimate_after > self.base.epochs:
            raise UserError(
                f"--forward.estimate_after is {self.estimate_after} of {self.base.epochs} epochs: "
                "there would be no transition matrix",
                fix="give fewer, 0 for the last, or shorten all stages alike with --epochs_scale",
            )


RECIPES = {
    "cifar100": {
        "published code of FW, CIFAR-100: drops after 81 and 121 epochs": {
            "base": Schedule(epochs=150, milestones=(82, 122)),
            "corrected": Schedule(epochs=150, milestones=(82, 122)),
        },
        "own: the first epoch at a lower rate, as for CIFAR-10": {"estimate_after": 82},
    },
    "digits": {
        "own: small and quick": {
            "base": Schedule(epochs=24, milestones=(16,)),
            "estimate_after": 16,
            "corrected": Schedule(epochs=48, milestones=(24, 40)),
        }
    },
}


def stages(forward: Settings, config: Config) -> tuple[Stage, ...]:
    """Cross entropy up to the estimate (or to its end, if its weights are used), then the corrected training."""
    scale, base = config.epochs_scale, forward.base.scaled(config.epochs_scale)
    after = scale_epoch(forward.estimate_after, scale) if forward.estimate_after else base.epochs
    if forward.start == "fresh":
        base = Schedule(epochs=after, milestones=tuple(m for m in base.milestones if m <= after))
    look = Look(into="probability", read="probability", since=after, every=base.epochs)
    first = Stage(
        name="ce",
        objective=Estimate(after, forward.anchor, forward.percentile),
        schedule=base,
        looks=(look,),
        decides=False,
    )
    second = Stage(
        name="forward",
        objective=Forward(forward.floor),
        schedule=forward.corrected.scaled(scale),
        optimiser=at_rate(forward.lr, config),
        start=forward.start,
    )
    return tuple(judged_by_loss(stage, forward.gamma, "forward.gamma", config) for stage in (first, second))


@dataclass(frozen=True)
class Estimate(CrossEntropy):
    """Cross entropy on the given labels; after one of its epochs the transition matrix is estimated."""

    after: int
    anchor: Literal["auto", "percentile", "argmax"]
    percentile: float

    @property
    def reads(self) -> tuple[str, ...]:
        """Predictions for all samples."""
        return ("probability",)

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """T, shared tensor `transition`, from the look after that epoch (section 4.3)."""
        if epoch_pass.epoch == self.after:
            found = estimate_transition(store["probability"], self.anchor, self.percentile)
            store.put_shared("transition", found)


@dataclass(frozen=True)
class Forward(Objective):
    """-log (p T)[y], mean over the batch (Theorem 2)."""

    floor: float

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """T is there; what it was made from is not needed any more."""
        store.drop("probability")

    def loss(self, step: Step) -> Outcome:
        """Cross entropy of the prediction after the noise."""
        given = step.store.read("given", step.index)
        logits = step.network(step.inputs).float()
        loss = forward_loss(logits, given, step.store.shared("transition"), self.floor)
        return Outcome(step.share.mean(loss), logits.argmax(1), given)


def forward_loss(logits: Tensor, given: Tensor, transition: Tensor, floor: float) -> Tensor:
    """-log (p T)[y] of each sample: (b, C), (b,), (C, C) with rows = true and columns = observed class -> (b,).

    (p T)[y] is never taken to be less than `floor`.
    """
    observed_as = transition.t().index_select(0, given)  # (b, C): T_iy, how often each class is labelled y
    probability = (torch.softmax(logits, 1) * observed_as).sum(1)
    return -probability.clamp(min=floor).log()


def estimate_transition(
    probability: Tensor, anchor: Literal["auto", "percentile", "argmax"], percentile: float
) -> Tensor:
    """T from predictions (N, C): -> (C, C), rows = true, columns = observed class, each row sums to 1 (section 4.3).

    Row i is the prediction for the image that stands for class i: the largest p_i, or the largest below the
    percentile of p_i (of neighbours the higher one); the first of equals. Where all are the same, that is any.
    """
    samples, classes = probability.shape
    if anchor == "auto":
        anchor = "percentile" if classes * (1 - percentile / 100) <= 1 else "argmax"
    candidates = probability
    if anchor == "percentile":
        position = math.ceil(percentile * (samples - 1) / 100)
        limit = probability.kthvalue(position + 1, dim=0).values
        candidates = torch.where(probability < limit, probability, -1.0)
    rows = probability.index_select(0, candidates.argmax(0))
    return rows / rows.sum(1, keepdim=True)
