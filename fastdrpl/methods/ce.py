"""Plain cross entropy on the given labels: what happens when nobody looks at them."""

from __future__ import annotations

from dataclasses import dataclass

from fastdrpl.config import Config
from fastdrpl.lazy import loss_head
from fastdrpl.looks import judged_by_loss
from fastdrpl.settings import SHARE, Schedule, setting
from fastdrpl.stages import Objective, Outcome, Stage, Step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Plain cross entropy on the given labels: the baseline that every other method must beat."""

    schedule: Schedule = setting(
        Schedule(epochs=120, milestones=(40, 80)), "own: as in related code; P does not say"
    )
    """Length and milestones."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the final losses."""


RECIPES = {"digits": {"own: small and quick": {"schedule": Schedule(epochs=64, milestones=(24, 48))}}}


def stages(ce: Settings, config: Config) -> tuple[Stage, ...]:
    """One stage on the given labels; its final losses are used for detection."""
    stage = Stage(name="ce", objective=CrossEntropy(), schedule=ce.schedule.scaled(config.epochs_scale))
    return (judged_by_loss(stage, ce.gamma, "ce.gamma", config),)


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Mean of -log p[y] over the batch."""

    def loss(self, step: Step) -> Outcome:
        """Cross entropy to the given labels."""
        head = loss_head(step.network(step.inputs), step.store["given"], step.index, share=step.share)
        return Outcome(head.loss, head.predicted, head.wanted)
