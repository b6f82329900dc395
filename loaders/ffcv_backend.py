"""Batches read and decoded by the ffcv library's threads: for sets that do not fit into memory.

Order, resume and ranks are ours (`fastdrpl.loaders.order`): the library is handed the rows to read. Nothing is
augmented and no label is read. Steps are read in chunks of whole steps, so that small batches cost no more than
large ones, and handed out as views of the library's ring: no pixel is copied.
"""

import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch

from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.beton_tables import PREPARE_AGAIN, read_tables
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import check_source_rows, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.extras import require
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.staging import HostBatch, stage

if TYPE_CHECKING:
    from fastdrpl.loaders.ffcv_pipeline import Chunks

# Steps are joined to chunks up to this size. Below 2 MiB the threads' hand-over costs, from 8 MiB on the cache is lost.
CHUNK_BYTES = 4 << 20


class FFCVLoader:
    """Batches that ffcv reads, with rows 0..B-1.

    `source_row`: (N,) int64, the row of `split` whose pixels sample i shows, in any order, repeated or not.
    `workers` threads read (at least one, at most one per core; `self.workers` says how many do); several epochs
    may be under way at once, each with its own thread and ring. JPEGs are decoded with a fast cosine transform:
    within 8 of 255 of Pillow's pixels, and 1.25 on average.

    Raises UserError with an install line where ffcv is missing, DataError for a file that contradicts its split;
    while an epoch is under way DataError for an image that does not decode or a file that was cut, and UserError
    within a minute for a thread that hangs, each with file and rows.
    """

    def __init__(
        self,
        split: Split,
        source_row: np.ndarray,
        device: torch.device | str = "cpu",
        *,
        workers: int = 2,
    ) -> None:
        if workers < 0:
            raise UserError(f"loader threads: got {workers}, want 0 or more")
        require("ffcv")
        from fastdrpl.loaders.ffcv_pipeline import build_loader

        check_source_rows(split, source_row)
        _check_file(split)
        self.split, self.source_row, self.device = split, source_row, torch.device(device)
        self.workers = min(max(workers, 1), numba.config.NUMBA_NUM_THREADS)
        self._loader = build_loader(split, self.workers)
        self._epochs: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def epoch(self, order: Order, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an order from a step on."""
        steps = [order[step] for step in range(start_step, len(order))]
        batches = stage(self._read(steps), self.device)
        self._epochs.add(batches)
        return batches

    def close(self) -> None:
        """End the threads of every epoch still under way and let go of the file."""
        for batches in list(self._epochs):
            batches.close()
        self._loader = None

    def _read(self, steps: Sequence[np.ndarray]) -> Generator[HostBatch, None, None]:
        groups = _join_steps([len(step) for step in steps], self.split.height * self.split.width * 3)
        if not groups:
            return
        chunks = self._open([np.concatenate(steps[group]) for group in groups])
        try:
            for group in groups:
                pixels = torch.from_numpy(chunks.take())
                start = 0
                for step in steps[group]:
                    stop = start + len(step)
                    yield HostBatch(pixels[start:stop], torch.from_numpy(step.copy()))
                    start = stop
        finally:
            chunks.close()

    def _open(self, chunks: Sequence[np.ndarray]) -> "Chunks":
        from fastdrpl.loaders.ffcv_pipeline import Chunks

        if self._loader is None:
            raise UserError("the loader is closed")
        largest = max(1, *(len(chunk) for chunk in chunks))
        return Chunks(self._loader, self.split, (self.source_row[chunk] for chunk in chunks), largest)


def _join_steps(sizes: Sequence[int], image_bytes: int) -> list[slice]:
    """Consecutive steps in groups of up to `CHUNK_BYTES`, at least one step each."""
    groups, start, total = [], 0, 0
    for step, size in enumerate(sizes):
        if step > start and (total + size) * image_bytes > CHUNK_BYTES:
            groups.append(slice(start, step))
            start, total = step, 0
        total += size
    if sizes:
        groups.append(slice(start, len(sizes)))
    return groups


def _check_file(split: Split) -> None:
    """Raise DataError unless the file is there, whole, of this version, and still what the split says."""
    map_file(split)
    tables = read_tables(split.path)
    same = (tables.height, tables.width, tables.store) == (split.height, split.width, split.store)
    if not (
        same and np.array_equal(tables.offset, split.offset) and np.array_equal(tables.nbytes, split.nbytes)
    ):
        raise DataError(
            "the file has changed since the dataset was opened", where=str(split.path), fix=PREPARE_AGAIN
        )
