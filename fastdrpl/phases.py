"""One training run in two stages: the schedule and the learning rate go on where the first ends."""

import dataclasses

from fastdrpl.config import OptimiserConfig
from fastdrpl.settings import Schedule


def first_phase(whole: Schedule, epochs: int) -> Schedule:
    """The schedule of epochs 1 to `epochs`."""
    return Schedule(epochs=epochs, milestones=tuple(m for m in whole.milestones if m <= epochs))


def last_phase(whole: Schedule, epochs: int, optimiser: OptimiserConfig) -> tuple[Schedule, OptimiserConfig]:
    """The schedule after epoch `epochs`, of at least one, and an optimiser that begins at the rate in force there."""
    passed = sum(milestone <= epochs for milestone in whole.milestones)
    rest = Schedule(
        epochs=max(1, whole.epochs - epochs),
        milestones=tuple(m - epochs for m in whole.milestones if m > epochs),
    )
    return rest, dataclasses.replace(optimiser, lr=optimiser.lr * optimiser.drop**passed)
