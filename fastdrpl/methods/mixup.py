"""Mixup: learn from weighted means of two images and of their given labels.

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (ICLR 2018), section 2:

mixed image   lam x_i + (1 - lam) x_j     lam ~ Beta(alpha, alpha), one a batch; j is a permutation of the batch
mixed label   lam y_i + (1 - lam) y_j     so the loss is lam CE(y_i) + (1 - lam) CE(y_j), as cross entropy is linear

A network that never sees an image twice in the same way remembers wrong labels later. M of the DRPL paper's tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastdrpl.config import Config
from fastdrpl.lazy import draw_mixing, loss_head, one_hot, torch
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import judged_by_loss
from fastdrpl.settings import ALPHA, SHARE, Schedule, setting
from fastdrpl.stages import Demand, Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from fastdrpl.store import LabelStore


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Mixup on the given labels."""

    schedule: Schedule = setting(
        Schedule(epochs=200, milestones=(102, 152)),
        "code of mixup: drops after 101 and 151 epochs; P does not say",
    )
    """Length and milestones."""
    alpha: float = setting(1.0, "mixup paper, CIFAR", ALPHA)
    """Mixing coefficients are drawn from Beta(alpha, alpha), one a batch."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the final losses of images that
    are not mixed."""


RECIPES = {"digits": {"own: small and quick": {"schedule": Schedule(epochs=64, milestones=(32, 52))}}}


def stages(mixup: Settings, config: Config) -> tuple[Stage, ...]:
    """One stage; the losses for detection are those of images that are not mixed."""
    schedule = mixup.schedule.scaled(config.epochs_scale)
    stage = Stage(name="mixup", objective=Mixup(mixup.alpha), schedule=schedule)
    return (judged_by_loss(stage, mixup.gamma, "mixup.gamma", config),)


@dataclass(frozen=True)
class Mixup(Objective):
    """lam CE(y_i) + (1 - lam) CE(y_j) of the mixed image, mean over the batch (section 2)."""

    alpha: float

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Targets are the given labels."""
        store.put("target", one_hot(store["given"], classes))

    def demand(self, classes: int) -> Demand:
        """A key for each sample."""
        return Demand(drawn=8)

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Any:
        """A mixing coefficient for each step and a key for each sample."""
        return draw_mixing(store, epoch_pass, steps, self.alpha)

    def loss(self, step: Step) -> Outcome:
        """One forward pass, of the mixed images."""
        coefficient, partner = step.draws.of(step.number, step.index)
        _, mixed = step.images.pair(partner, coefficient)
        head = loss_head(
            step.network(mixed),
            step.store["target"],
            step.index,
            share=step.share,
            partner=partner,
            coefficient=coefficient,
        )
        wanted = torch.where(coefficient < 0.5, head.wanted.index_select(0, partner), head.wanted)
        return Outcome(head.loss, head.predicted, wanted)
