"""Which samples in which step: a pure function of the pass. Needs numpy only."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fastdrpl.kernels.philox import Stream, permutation

SMALLEST_TAIL = 6  # batch normalisation of fewer samples is noise: such a tail joins the batch before it
ORDER_VIEW = 1 << 15  # the view that keys the shuffle: order and crops of a pass must not share random words


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
    noise = 9
    split = 10  # train/test division of a source that has none
    limit = 11  # which samples a `limit` keeps
    look = 12  # passes that only look, other than those above
    complement = 13  # complementary labels
    halves = 14  # division of the samples into halves
    export = 15  # predictions of the final network for every sample


@dataclass(frozen=True)
class Pass:
    """One walk over samples: the key of every random number drawn in it.

    `view` (below 2**15) tells apart several augmentations of one sample within the same walk.
    """

    seed: int
    stage: int
    epoch: int
    purpose: Purpose
    view: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.view < ORDER_VIEW:
            raise ValueError(f"view of a pass: got {self.view}, want 0 <= view < {ORDER_VIEW}")

    @property
    def stream(self) -> Stream:
        """The Philox stream of this pass (see `fastdrpl.kernels.philox`)."""
        return Stream(self.seed, self.epoch, self.stage, int(self.purpose) << 16 | self.view)

    @property
    def order_stream(self) -> Stream:
        """The stream that shuffles: apart from `stream`, or the first batch would hold the topmost crops."""
        return self.stream._replace(purpose_view=int(self.purpose) << 16 | ORDER_VIEW | self.view)


class Order:
    """The batches of one pass: `order[step]` is this rank's (B,) int64 sample index, for any step at once.

    `index`: (N,) int64 sample index to walk over, any subset in any order. With `shuffle` the walk depends
    on the set and the pass only, not on the order of `index`. `batch_size` is the global batch; rank r of
    `world` gets every world-th sample of it from the r-th, so the ranks together walk exactly as one would. A
    tail of fewer than `smallest_tail` samples joins the batch before it; a rank's share of a small batch may be empty.

    Raises TypeError for an index that is not int64, ValueError for numbers out of range.
    """

    def __init__(
        self,
        index: np.ndarray,
        batch_size: int,
        pass_: Pass,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        smallest_tail: int = SMALLEST_TAIL,
    ) -> None:
        if index.dtype != np.int64 or index.ndim != 1:
            raise TypeError(f"sample index of an order: got {index.dtype} {index.shape}, want int64 (N,)")
        if len(index) and not (index.min() >= 0 and index.max() < 1 << 32):
            raise ValueError(f"sample index of an order: got {index.min()}..{index.max()}, want [0, 2**32)")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, want at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank: got {rank} of {world}, want 0 <= rank < world")
        self.pass_, self.batch_size, self.rank, self.world = pass_, batch_size, rank, world
        # A copy either way: nobody may change the walk under our feet.
        self.index = index[permutation(pass_.order_stream, index)] if shuffle else index.copy()
        self.index.flags.writeable = False
        steps, tail = divmod(len(index), batch_size)
        self._steps = steps + (tail >= smallest_tail or (tail > 0 and steps == 0))

    def __len__(self) -> int:
        """Number of steps."""
        return self._steps

    def __getitem__(self, step: int) -> np.ndarray:
        """This rank's (B,) int64 sample index of a step; IndexError beyond the last step."""
        return self.index[self.own(step)]

    def own(self, step: int) -> slice:
        """Where in `self.index` this rank's samples of a step lie."""
        span = self.span(step)
        return slice(span.start + self.rank, span.stop, self.world)

    def span(self, step: int) -> slice:
        """Where in `self.index` the global batch of a step lies."""
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of an order of {self._steps} steps")
        stop = len(self.index) if step == self._steps - 1 else (step + 1) * self.batch_size
        return slice(step * self.batch_size, stop)

    def batch(self, step: int) -> np.ndarray:
        """The global batch of a step, all ranks together: (B,) int64 sample index."""
        return self.index[self.span(step)]
