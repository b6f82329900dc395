"""What several methods look at: losses to the given labels, as `--detect.*` asks for them, and the mixture of those."""

import dataclasses

from fastdrpl.config import Config
from fastdrpl.lazy import LossMixture
from fastdrpl.loaders.order import Purpose
from fastdrpl.stages import Look, Stage


def loss_column(stage: str) -> str:
    """The column of a stage's losses; `labels.parquet` has it too."""
    return f"loss_{stage}"


def loss_looks(stage: str, config: Config) -> tuple[Look, ...]:
    """Losses of all samples after a stage's last epoch: once, or once to fit a mixture and once to score by it.

    Section III-A; that there are two augmented passes is the published code's.
    """
    augmented = config.detect.augment == "train"
    score = Look(
        into=loss_column(stage), read="loss", augmented=augmented, purpose=Purpose.track_score, figures=True
    )
    fit = dataclasses.replace(score, into="fit", purpose=Purpose.track_fit, keep=False, figures=False)
    if augmented and config.detect.passes == 2:
        return fit, score
    return (dataclasses.replace(score, purpose=Purpose.track_fit),)


def judged_by_loss(stage: Stage, gamma: float, field: str, config: Config) -> Stage:
    """The stage with these looks and the beta mixture at a threshold, which is the setting `field` (dotted)."""
    looks = loss_looks(stage.name, config)
    detector = LossMixture(
        reads=tuple(look.into for look in looks),
        gamma=gamma,
        adjustable=(field,),
        compat=config.detect.posterior,
    )
    return dataclasses.replace(stage, looks=(*stage.looks, *looks), detector=detector)
