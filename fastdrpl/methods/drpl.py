"""DRPL: Distribution Robust Pseudo-Labeling (Ortego et al., arXiv 1912.08741, section III).

relabel   train on all samples while relabelling them; clean labels end with a low loss   (III-A)
semi1     drop the labels that look wrong at gamma1, train semi-supervised, look again    (III-B)
semi2     drop the labels that look wrong at gamma2, train the final network              (III-C)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.lazy import (
    Regulariser,
    draw_labels,
    draw_mixing,
    loss_head,
    one_hot,
    predict,
    renew_targets,
    ring_update,
    torch,
)
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.looks import judged_by_loss
from fastdrpl.settings import ALPHA, POSITIVE, SHARE, WEIGHT, Schedule, scale_epoch, setting
from fastdrpl.stages import Demand, Look, Objective, Outcome, Round, Stage, Step, Walk, Write

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_REGULARISER = "C; P III-A leaves the weights to its reference 14"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The three stages of DRPL (paper III)."""

    relabel: Schedule = setting(Schedule(epochs=100, milestones=(45, 80)), "P IV-A")
    """Stage 1: training with relabelling of all samples (III-A)."""
    given_epochs: int = setting(40, "P IV-A", POSITIVE)
    """q of equation 1: how many epochs use the given labels; pseudo-labels take over in the next."""
    average: int = setting(10, "C; mean of the last 10 epochs, as in reference 14 of P III-A", POSITIVE)
    """Stage 1's pseudo-label is the mean prediction of this many epochs."""
    ring: Literal["fp32", "fp16"] = setting("fp32", "C")
    """Type in which those predictions are kept; fp16 halves their memory and moves a mean by less than 2.5e-4."""
    semi1: Schedule = setting(Schedule(epochs=175, milestones=(100, 150)), "P IV-A")
    """Stage 2: semi-supervised training that sharpens the detection (III-B)."""
    semi2: Schedule = setting(Schedule(epochs=300, milestones=(150, 225)), "P IV-A")
    """Stage 3: semi-supervised training of the final network (III-C)."""
    gamma1: float = setting(0.05, "P III-A", SHARE)
    """After stage 1 a sample keeps its label if its posterior of being noisy is at most this (equation 3)."""
    gamma2: float = setting(0.5, "P III-B", SHARE)
    """The same after stage 2."""
    prior_weight: float = setting(0.8, _REGULARISER, WEIGHT)
    """Weight of R_A, the pull of the mean prediction to the uniform one (lambda 2 of equation 2)."""
    entropy_weight: float = setting(0.4, _REGULARISER, WEIGHT)
    """Weight of R_H, the entropy of predictions (lambda 1 of equation 2)."""
    mixup_alpha: float = setting(1.0, "C; P III-C names mixup only", ALPHA)
    """Mixing coefficients are drawn from Beta(alpha, alpha), one a batch."""
    redraw: float = setting(0.2, "C; not in P", SHARE)
    """Fraction of the unlabelled samples whose target is made uniform after each epoch."""
    start_targets: Literal["random", "uniform"] = setting("random", "C; not in P")
    """First targets of unlabelled samples: a random class each (published code), or uniform."""
    semi_targets: Literal["current", "mean"] = setting(
        "current", "C; P III-C implies the mean of the last epochs"
    )
    """Pseudo-labels of stages 2 and 3: this epoch's prediction (published code), or the mean of the last
    `average` epochs, as the paper's text implies."""
    warmup: Literal["none", "load"] = setting("none", "C executes none; its scripts intend `load`; not in P")
    """none = stages 2 and 3 start from fresh weights, as the published code does; load = they continue a
    warm-up on the labelled samples, as its scripts intend."""
    warmup_epochs: int = setting(10, "C (scripts)", POSITIVE)
    """Length of that warm-up."""
    label_forward: Literal["update", "freeze"] = setting("update", "C")
    """Whether the forward pass that makes pseudo-labels updates the batch normalisation's statistics."""

    def __post_init__(self) -> None:
        if self.given_epochs >= self.relabel.epochs > 0:
            raise UserError(
                f"--drpl.given_epochs is {self.given_epochs} of {self.relabel.epochs} epochs: "
                "nothing would be relabelled",
                fix="give fewer, or shorten all stages alike with --epochs_scale",
            )


_PHOTOS = {
    "P IV-C": {
        "relabel": Schedule(epochs=100, milestones=(45, 80)),
        "given_epochs": 40,
        "semi1": Schedule(epochs=150, milestones=(100, 125)),
        "semi2": Schedule(epochs=200, milestones=(150, 175)),
    },
    "P III-A (the default there)": {"gamma1": 0.05},
}
RECIPES = {
    "cifar10": {
        "P IV-B": {
            "relabel": Schedule(epochs=130, milestones=(75, 110)),
            "given_epochs": 70,
            "gamma1": 0.1,
        }
    },
    "cifar100": {"C; P IV-B says it of CIFAR without saying which": {"gamma1": 0.1}},
    "imagenet32": {"P III-A (the default there)": {"gamma1": 0.05}},
    "imagenet64": {"P III-A (the default there)": {"gamma1": 0.05}},
    "webvision": _PHOTOS,
    "folder": _PHOTOS,
    "digits": {
        "own: small and quick": {
            "relabel": Schedule(epochs=24, milestones=(14, 20)),
            "given_epochs": 12,
            "semi1": Schedule(epochs=16, milestones=(10, 14)),
            "semi2": Schedule(epochs=24, milestones=(14, 20)),
        },
        "P IV-B": {"gamma1": 0.1},
    },
}


def stages(drpl: Settings, config: Config) -> tuple[Stage, ...]:
    """The three stages; each warm-up that is asked for comes before the stage that continues it."""
    scale = config.epochs_scale
    regulariser = Regulariser(drpl.prior_weight, drpl.entropy_weight)
    relabel = Relabel(regulariser, scale_epoch(drpl.given_epochs, scale), drpl.average, drpl.ring)
    first = Stage(name="relabel", objective=relabel, schedule=drpl.relabel.scaled(scale))
    result = [judged_by_loss(first, drpl.gamma1, "drpl.gamma1", config)]
    for name, schedule, decides in (("semi1", drpl.semi1, True), ("semi2", drpl.semi2, False)):
        semi = SemiSupervised(regulariser, drpl)
        stage = Stage(name=name, objective=semi, schedule=schedule.scaled(scale), decides=decides)
        if drpl.warmup == "load":
            warm = dataclasses.replace(semi, only_labelled=True)
            length = Schedule(epochs=drpl.warmup_epochs).scaled(scale)
            result.append(Stage(name=f"{name}-warmup", objective=warm, schedule=length))
            stage = dataclasses.replace(stage, start="previous", looks=(GUESS,))
        result.append(judged_by_loss(stage, drpl.gamma2, "drpl.gamma2", config))
    return tuple(result)


GUESS = Look(into="prediction", read="probability", augmented=True, purpose=Purpose.label_guess, before=True)


@dataclass(frozen=True)
class Relabel(Objective):
    """Equation 1: cross entropy to the given labels for q epochs, then to pseudo-labels, with R of equation 2."""

    regulariser: Regulariser
    given_epochs: int  # q
    average: int
    ring: Literal["fp32", "fp16"] = "fp32"

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Targets start as the given labels."""
        store.put("target", one_hot(store["given"], classes))
        store.put("prediction", torch.zeros(store.samples, classes))
        store.put_ring("ring", self.average, classes, ring_type(self.ring))

    def loss(self, step: Step) -> Outcome:
        """The one forward pass of the step also gives the predictions that become pseudo-labels."""
        head = loss_head(
            step.network(step.inputs),
            step.store["target"],
            step.index,
            share=step.share,
            prior_weight=self.regulariser.prior_weight,
            entropy_weight=self.regulariser.entropy_weight,
            keep_prediction=True,
        )
        seen = Write("prediction", step.index, cast("Tensor", head.prediction))
        return Outcome(head.loss, head.predicted, head.wanted, (seen,))

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """From the end of epoch q on, every sample's target is the mean of its last predictions."""
        epoch = epoch_pass.epoch
        mean = store["target"] if epoch >= self.given_epochs else None
        ring_update(store["ring"], epoch, store["prediction"], mean)

    def end(self, store: LabelStore) -> None:
        """The targets are made: what they were averaged from is not needed any more."""
        store.drop("ring")


@dataclass(frozen=True)
class SemiSupervised(Objective):
    """Pseudo-labelling with mixup (III-C): labelled samples keep their label, the others learn from predictions."""

    regulariser: Regulariser
    drpl: Settings
    only_labelled: bool = False  # a warm-up walks over nothing else

    @property
    def reads(self) -> tuple[str, ...]:
        """Where it continues a warm-up, a guess before the first epoch gives the first targets."""
        return ("prediction",)

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Labelled samples: their label, for ever. The others: a random class each, or uniform."""
        labelled, given = store["labelled"], store["given"]
        if self.drpl.start_targets == "random":
            start_pass = dataclasses.replace(stage_pass, purpose=Purpose.start_targets)
            drawn = draw_labels(start_pass, store.samples, classes, store.device)
            start = one_hot(torch.where(labelled, given, drawn), classes)
        else:
            start = one_hot(given, classes).masked_fill_(~labelled[:, None], 1.0 / classes)
        store.put("target", start)
        store.put("prediction", torch.zeros(store.samples, classes))
        if self.drpl.semi_targets == "mean":
            store.put_ring("ring", self.drpl.average, classes, ring_type(self.drpl.ring))
        else:
            store.drop("ring")

    def rounds(self, store: LabelStore, epoch_pass: Pass) -> tuple[Round, ...]:
        """All samples, or the labelled ones in a warm-up."""
        if not self.only_labelled:
            return super().rounds(store, epoch_pass)
        return ((Walk(np.flatnonzero(store["labelled"].cpu().numpy())),),)

    def demand(self, classes: int) -> Demand:
        """A key for each sample."""
        return Demand(drawn=8)

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Any:
        """A mixing coefficient for each step and a key for each sample."""
        return draw_mixing(store, epoch_pass, steps, self.drpl.mixup_alpha)

    def loss(self, step: Step) -> Outcome:
        """An un-mixed pass makes the pseudo-label; the mixed one is learnt from, both with the same weights."""
        coefficient, partner = step.draws.of(step.number, step.index)
        inputs, mixed = step.images.pair(partner, coefficient)
        unmixed, logits = step.network.both(inputs, mixed, freeze=self.drpl.label_forward == "freeze")
        guess = predict(unmixed)
        head = loss_head(
            logits,
            step.store["target"],
            step.index,
            share=step.share,
            partner=partner,
            coefficient=coefficient,
            prior_weight=self.regulariser.prior_weight,
            entropy_weight=self.regulariser.entropy_weight,
        )
        seen = Write("prediction", step.index, cast("Tensor", guess.prediction))
        return Outcome(head.loss, guess.predicted, head.wanted, (seen,))

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """Unlabelled samples take the epoch's predictions, but for a fresh fifth of them, which become uniform."""
        guess = store["prediction"]
        if self.drpl.semi_targets == "mean" and epoch_pass.epoch > 0:
            guess = torch.empty_like(store["target"])
            ring_update(store["ring"], epoch_pass.epoch, store["prediction"], guess)
        redraw_pass = dataclasses.replace(epoch_pass, purpose=Purpose.redraw)
        renew_targets(store["target"], guess, store["labelled"], redraw_pass.stream, self.drpl.redraw)

    def end(self, store: LabelStore) -> None:
        """Another stage begins with targets and a ring of its own."""
        store.drop("ring")


def ring_type(kind: str) -> torch.dtype:
    """What `--drpl.ring` means."""
    return torch.float32 if kind == "fp32" else torch.float16
