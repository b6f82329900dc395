"""TS, a re-interpretation: keep the labels that the network agrees with most, then train semi-supervised.

Ding, Wang, Fan and Gong, "A Semi-Supervised Two-Stage Approach to Learning from Noisy Labels" (WACV 2018, arXiv
1802.02679). There is no public code, and share, schedules and the kind of semi-supervised training are not known to us.

base   cross entropy to the given labels; then of each class the most confident part of the samples whose prediction is
       their label counts as right (few labels, nearly all of them right)
semi   the other labels are dropped; DRPL's semi-supervised training (arXiv 1912.08741, III-C) in place of theirs
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fastdrpl.config import Config
from fastdrpl.lazy import Agreement, Regulariser
from fastdrpl.looks import loss_looks
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.drpl import SemiSupervised
from fastdrpl.methods.drpl import Settings as SemiSettings
from fastdrpl.settings import ALPHA, SHARE, WEIGHT, Schedule, setting
from fastdrpl.stages import Stage

_SEMI = "as DRPL's stages 2 and 3"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Agreement of prediction and label, then semi-supervised training: a re-interpretation."""

    base: Schedule = setting(Schedule(epochs=40), "own: as the C of P's Fig. 3, 40 epochs at a constant rate")
    """First stage: cross entropy to the given labels."""
    share: float = setting(0.5, "own: TS paper says a small portion", SHARE)
    """Of the samples of a class that are predicted as their label says, this part, the most confident, keeps it."""
    semi: Schedule = setting(Schedule(epochs=300, milestones=(150, 225)), "own: as DRPL's last stage, P IV-A")
    """Second stage: semi-supervised training."""
    prior_weight: float = setting(0.8, _SEMI, WEIGHT)
    """Weight of the pull of the mean prediction to the uniform one in the second stage."""
    entropy_weight: float = setting(0.4, _SEMI, WEIGHT)
    """Weight of the entropy of predictions in the second stage."""
    mixup_alpha: float = setting(1.0, _SEMI, ALPHA)
    """The second stage's mixing coefficients are drawn from Beta(alpha, alpha), one a batch."""
    redraw: float = setting(0.2, _SEMI, SHARE)
    """Fraction of the unlabelled samples whose target is made uniform after each epoch."""


RECIPES = {
    "digits": {
        "own: small and quick": {
            "base": Schedule(epochs=16),
            "semi": Schedule(epochs=24, milestones=(14, 20)),
        }
    }
}


def stages(two_stage: Settings, config: Config) -> tuple[Stage, ...]:
    """Two stages; the agreement after the first decides."""
    loss = loss_looks("base", config)[-1]
    prediction = dataclasses.replace(loss, into="agreement", read="probability", figures=False, keep=False)
    base = Stage(
        name="base",
        objective=CrossEntropy(),
        schedule=two_stage.base.scaled(config.epochs_scale),
        looks=(loss, prediction),
        detector=Agreement((prediction.into,), two_stage.share, ("two_stage.share",)),
    )
    settings = SemiSettings(mixup_alpha=two_stage.mixup_alpha, redraw=two_stage.redraw)
    regulariser = Regulariser(two_stage.prior_weight, two_stage.entropy_weight)
    semi = Stage(
        name="semi",
        objective=SemiSupervised(regulariser, settings),
        schedule=two_stage.semi.scaled(config.epochs_scale),
    )
    return base, semi
