"""Shard after shard: the order of a pass that tar shards can be read in. Needs numpy only.

`order = "shards"` in place of all images shuffled: the shards come in random order, within a shard the images come as
they lie there. Any loader can walk like this; DALI's own reader of tar files can walk only like this.
"""

import numpy as np

from fastdrpl.kernels.philox import permutation
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import check_source_rows
from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.order import SMALLEST_TAIL, Order, Pass


class ShardWalk:
    """Which samples lie in which shard; made once for a view, it makes the order of every pass over it.

    `source_row`: (N,) int64, the row of `split` whose pixels sample i shows. Raises UserError where the split has
    no shards, where two samples show one row, or where a row is in no shard.
    """

    def __init__(self, split: Split, source_row: np.ndarray) -> None:
        check_source_rows(split, source_row)
        if not split.shards:
            raise UserError(
                f"the prepared dataset has no {split.name} shards, which order = shards walks along",
                where=str(split.path),
                fix="prepare it again with --format shards, or use order = index",
            )
        sample_of = np.full(len(split), -1)
        sample_of[source_row] = np.arange(len(source_row))
        twice = np.flatnonzero(sample_of[source_row] != np.arange(len(source_row)))
        if len(twice):
            row = source_row[twice[0]]
            raise UserError(
                f"row {row} is shown by the samples {twice[0]} and {sample_of[row]}, but comes once in the shards",
                where=str(split.path),
                fix="use order = index, or a noise that shows no image twice",
            )
        samples = [sample_of[shard.rows] for shard in split.shards]
        self._samples = [here[here >= 0] for here in samples]  # of each shard, as they lie there
        self._count = len(source_row)
        if sum(len(here) for here in self._samples) != self._count:
            row = np.setdiff1d(source_row, np.concatenate([shard.rows for shard in split.shards]))[0]
            raise UserError(
                f"row {row} is quarantined, so no shard has it",
                where=str(split.path),
                fix="use order = index, or leave the row out",
            )

    def __call__(
        self,
        index: np.ndarray,
        batch_size: int,
        pass_: Pass,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        smallest_tail: int = SMALLEST_TAIL,
    ) -> "ShardOrder":
        """The order of a pass; the arguments are those of `Order`."""
        return ShardOrder(self, index, batch_size, pass_, shuffle, rank, world, smallest_tail)

    def arrange(self, index: np.ndarray, pass_: Pass, shuffle: bool) -> np.ndarray:
        """These samples, shard after shard: (n,) int64. Raises as `Order` does, and ValueError for one named twice."""
        if index.dtype != np.int64 or index.ndim != 1:
            raise TypeError(f"sample index of an order: got {index.dtype} {index.shape}, want int64 (N,)")
        if len(index) and not (index.min() >= 0 and index.max() < self._count):
            raise ValueError(
                f"sample index of an order: got {index.min()}..{index.max()}, want 0..{self._count - 1}"
            )
        chosen = np.zeros(self._count, dtype=bool)
        chosen[index] = True
        if np.count_nonzero(chosen) != len(index):
            raise ValueError(
                "sample index of an order: a sample comes twice, want each once along the shards"
            )
        shards = np.arange(len(self._samples))
        if shuffle:
            shards = permutation(pass_.order_stream, shards)
        walk = np.concatenate([self._samples[shard] for shard in shards])
        return walk[chosen[walk]]


class ShardOrder(Order):
    """The batches of one pass, shard after shard: `order[step]` is this rank's (B,) int64 sample index.

    The walk `index` is cut into one piece per rank, so that a rank reads few shards. A rank's share of a step is
    as large as in `Order`, so all take the same number of steps. Which samples meet in a batch depends on the
    number of ranks. Raises as `ShardWalk.arrange` and `Order` do.
    """

    def __init__(
        self,
        walk: ShardWalk,
        index: np.ndarray,
        batch_size: int,
        pass_: Pass,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        smallest_tail: int = SMALLEST_TAIL,
    ) -> None:
        arranged = walk.arrange(index, pass_, shuffle)
        super().__init__(arranged, batch_size, pass_, False, rank, world, smallest_tail)
        ranks = np.arange(world)
        tail = len(self.index) - max(len(self) - 1, 0) * batch_size
        self._share = -(
            -np.maximum(batch_size - ranks, 0) // world
        )  # of each rank in every step but the last
        total = max(len(self) - 1, 0) * self._share - (-np.maximum(tail - ranks, 0) // world)
        self._piece = np.concatenate([[0], np.cumsum(total)])  # where in the walk each rank's piece begins

    def own(self, step: int) -> slice:
        """Where in `self.index` this rank's samples of a step lie."""
        return self._own(step, self.rank)

    def span(self, step: int) -> slice:
        """Where in `self.index` the global batch of a step lies. Raises ValueError if the ranks' parts lie apart."""
        if self.world > 1:
            raise ValueError("the samples of a step lie apart, one piece per rank: ask for its batch")
        return super().span(step)

    def batch(self, step: int) -> np.ndarray:
        """The global batch of a step, rank after rank: (B,) int64 sample index."""
        return np.concatenate([self.index[self._own(step, rank)] for rank in range(self.world)])

    def _own(self, step: int, rank: int) -> slice:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of an order of {len(self)} steps")
        start = int(self._piece[rank] + step * self._share[rank])
        last = step == len(self) - 1
        return slice(start, int(self._piece[rank + 1] if last else start + self._share[rank]))
