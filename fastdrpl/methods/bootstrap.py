"""Mixup with dynamic bootstrapping (M-DYR-H): a label counts as much as a mixture of the losses trusts it.

Arazo, Ortego, Albert, O'Connor and McGuinness, "Unsupervised Label Noise Modeling and Loss Correction" (ICML 2019,
arXiv 1904.11238):

mixup       mixup on the given labels y
bootstrap   after each epoch a beta mixture of the losses (3.1); B_i is its posterior that y_i is wrong. The target of
            an image is (1 - B_i) y_i + B_i z_i with z_i what the network predicts now (3.2), and mixup mixes these
            targets (3.3): lam CE(target_i) + (1 - lam) CE(target_j) + R, R = sum_c (1/C) log((1/C) / mean_i p_ic)

DB of the DRPL paper's tables.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.lazy import (
    draw_mixing,
    fit_beta_mixture,
    keep_mixture,
    label_loss,
    loss_head,
    one_hot,
    posterior_of,
    torch,
)
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import judged_by_loss, loss_looks
from fastdrpl.methods.mixup import Mixup
from fastdrpl.phases import split_schedule
from fastdrpl.settings import ALPHA, POSITIVE, SHARE, WEIGHT, Schedule, scale_epoch, setting
from fastdrpl.stages import Demand, Look, Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_CODE = "published code of M-correction"
MIXTURE = "mixture"  # shared tensor: the fit of the epoch before


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Mixup, then mixup with dynamic bootstrapping (M-correction)."""

    schedule: Schedule = setting(Schedule(epochs=300, milestones=(100, 250)), _CODE)
    """Length and milestones of both stages together."""
    mixup_epochs: int = setting(105, f"{_CODE}: 5 after its first milestone", POSITIVE)
    """How many of these epochs are plain mixup; bootstrapping begins in the next."""
    mixup_alpha: float = setting(32.0, f"{_CODE}, and its paper", ALPHA)
    """Mixing coefficients are drawn from Beta(alpha, alpha), one a batch: 32 keeps them near a half."""
    guess: Literal["hard", "soft"] = setting("hard", "P IV-C: M-DYR-H")
    """What the network predicts, as target: its largest class (M-DYR-H), or the whole softmax (M-DYR-S)."""
    prior_weight: float = setting(1.0, "M-correction paper and its scripts", WEIGHT)
    """Weight of R, the pull of the mean prediction to the uniform one, while bootstrapping."""
    margin: float = setting(1e-4, _CODE, (0.0, 0.5))
    """B is held at this distance from 0 and 1."""
    label_forward: Literal["update", "freeze"] = setting("update", _CODE)
    """Whether the forward pass that predicts z updates the batch normalisation's statistics."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the final losses."""

    def __post_init__(self) -> None:
        if self.mixup_epochs >= self.schedule.epochs > 0:
            raise UserError(
                f"--bootstrap.mixup_epochs is {self.mixup_epochs} of {self.schedule.epochs} epochs: "
                "nothing would be bootstrapped",
                fix="give fewer, or shorten both alike with --epochs_scale",
            )


RECIPES = {
    "digits": {
        "own: small and quick": {
            "schedule": Schedule(epochs=48, milestones=(24, 40)),
            "mixup_epochs": 26,
        }
    }
}


def stages(bootstrap: Settings, config: Config) -> tuple[Stage, ...]:
    """Two stages on one schedule: the second goes on from weights, momentum and learning rate of the first."""
    whole = bootstrap.schedule.scaled(config.epochs_scale)
    switch = scale_epoch(bootstrap.mixup_epochs, config.epochs_scale)
    first, last = split_schedule(whole, switch)
    mixup = Stage(name="mixup", objective=Mixup(bootstrap.mixup_alpha), schedule=first)
    column = loss_looks("bootstrap", config)[0].into
    objective = Bootstrap(bootstrap, config.detect.posterior, column)
    stage = Stage(name="bootstrap", objective=objective, schedule=last, start="previous")
    stage = judged_by_loss(stage, bootstrap.gamma, "bootstrap.gamma", config)
    fit, *score = stage.looks
    return mixup, dataclasses.replace(stage, looks=(*each_epoch(fit), *score))


def each_epoch(look: Look) -> tuple[Look, Look]:
    """The look before the first epoch and after each: the mixture is always that of the epoch before."""
    return (
        dataclasses.replace(look, before=True, keep=True, figures=False),
        dataclasses.replace(look, every=1, keep=True),
    )


@dataclass(frozen=True)
class Bootstrap(Objective):
    """CE to (1 - B) y + B z under mixup, and R (sections 3.2 and 3.3)."""

    bootstrap: Settings
    compat: Literal["exact", "lookup"]
    column: str  # the losses that the mixture is fitted to

    @property
    def reads(self) -> tuple[str, ...]:
        """The losses after each epoch."""
        return (self.column,)

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Targets are made in each step: those of the mixup stage are of no more use."""
        store.drop("target")

    def demand(self, classes: int) -> Demand:
        """A key for each sample."""
        return Demand(drawn=8)

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Any:
        """A mixing coefficient for each step and a key for each sample."""
        return draw_mixing(store, epoch_pass, steps, self.bootstrap.mixup_alpha)

    def loss(self, step: Step) -> Outcome:
        """Three forward passes with the same weights: for z, in evaluation mode for B, and to learn from."""
        coefficient, partner = step.draws.of(step.number, step.index)
        inputs, mixed = step.images.pair(partner, coefficient)
        forward = step.network if self.bootstrap.label_forward == "update" else step.network.frozen
        with torch.no_grad():
            guess = torch.softmax(forward(inputs).float(), 1)
        given, predicted = step.store.read("given", step.index), guess.argmax(1)
        # Before the pass to learn from, whose statistics ranks must not exchange until its backward pass is done.
        noisy = self.distrust(step, inputs, given)[:, None]
        if self.bootstrap.guess == "hard":
            guess = one_hot(predicted, guess.shape[1])
        head = loss_head(
            step.network(mixed),
            (1 - noisy) * one_hot(given, guess.shape[1]) + noisy * guess,
            torch.arange(len(given), device=given.device),
            share=step.share,
            partner=partner,
            coefficient=coefficient,
            prior_weight=self.bootstrap.prior_weight,
        )
        # The prior term is R + log C.
        loss = head.loss - self.bootstrap.prior_weight * math.log(guess.shape[1])
        return Outcome(loss, predicted, head.wanted)

    def distrust(self, step: Step, inputs: Tensor, given: Tensor) -> Tensor:
        """B (b,): the posterior that the label is wrong, from the loss now and the mixture of the epoch before."""
        losses = label_loss(torch.log_softmax(step.network.evaluated(inputs).float(), 1), given)
        noisy = posterior_of(step.store.shared(MIXTURE), losses, self.compat)
        margin = self.bootstrap.margin
        return noisy.clamp(margin, 1 - margin).float()

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """The mixture of all losses (3.1), for the next epoch."""
        keep_mixture(store, MIXTURE, fit_beta_mixture(store[self.column]), self.compat)
