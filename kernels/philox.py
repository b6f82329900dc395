"""Counter-based random numbers (Philox 4x32-10)."""

from typing import NamedTuple


class Stream(NamedTuple):
    """Everything that keys a draw but the sample: key = seed (low, high); counter = (sample or step, epoch, stage, purpose_view)."""

    seed: int
    epoch: int = 0
    stage: int = 0
    purpose_view: int = 0
