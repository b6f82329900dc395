"""Which samples in which step: a pure function of the pass."""

from dataclasses import dataclass
from enum import IntEnum

from fastdrpl.kernels.philox import Stream


class Purpose(IntEnum):
    """What a draw is for: two passes of one epoch, or two uses in one step, never share random numbers.

    The numbers are part of every stored result: never renumber, only append.
    """

    train = 0
    track_fit = 1  # losses that the mixture is fitted to
    track_score = 2  # losses that the posterior is computed from
    label_guess = 3
    test = 4
    mix = 5  # mixup: lambda and partners
    redraw = 6  # which unlabelled samples lose their target
    start_targets = 7  # first targets of unlabelled samples
    network = 8  # network initialisation
    noise = 9
    split = 10  # train/test division of a source that has none
    limit = 11  # which samples a `limit` keeps


@dataclass(frozen=True)
class Pass:
    """One walk over samples: the key of every random number drawn in it.

    `view` tells apart several augmentations of one sample within the same walk.
    """

    seed: int
    stage: int
    epoch: int
    purpose: Purpose
    view: int = 0

    @property
    def stream(self) -> Stream:
        """The Philox stream of this pass (see `fastdrpl.kernels.philox`)."""
        return Stream(self.seed, self.epoch, self.stage, int(self.purpose) << 16 | self.view)
