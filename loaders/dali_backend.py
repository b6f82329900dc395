"""Batches read or decoded by NVIDIA's DALI: JPEG by its threads or on the GPU, tar shards by its own reader."""

import contextlib
import io
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dali_pipeline import RunningPipeline, as_tensor, cause, decode_jpeg, find_damaged
from fastdrpl.loaders.dali_shards import read_shards
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import check_length, check_source_rows, decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.extras import require
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.shard_order import ShardOrder
from fastdrpl.loaders.staging import HostBatch, stage

HELD = 3  # batches of a GPU's decoder whose work may still be queued


class DALILoader:
    """Batches from DALI pipelines with `workers` threads (0 counts as 1); rows 0..B-1.

    `source_row`: (N,) int64, the row of `split` whose pixels sample i shows. Orders of the kind `ShardOrder` are
    read from the tar shards, all others from the compiled file. JPEG is decoded on `device`. An image that does
    not decode raises DataError with file and row, a shard that is missing or cut one with its name.
    """

    def __init__(
        self, split: Split, source_row: np.ndarray, device: torch.device | str = "cpu", *, workers: int = 2
    ) -> None:
        require("nvidia.dali")
        if workers < 0:
            raise UserError(f"loader threads: got {workers}, want 0 or more")
        check_source_rows(split, source_row)
        self.split, self.source_row, self.device = split, source_row, torch.device(device)
        self.threads = max(1, workers)
        self._file = map_file(split)
        wrong = np.flatnonzero(split.valid & (split.nbytes != split.height * split.width * 3))
        if split.store == "raw" and len(wrong):
            decode_row(split, self._file, int(wrong[0]))  # raises DataError
        # Where the decoder runs: raw pixels need none, they are copied to the device as they are.
        self._decoder = torch.device("cpu") if split.store == "raw" else self.device
        self._epochs: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()
        self._idle: list[_Reading] = []  # of epochs that ended, for the next ones

    def epoch(self, order: Order, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an order from a step on."""
        on_device = self._decoder.type == "cuda"
        batches = self._on_device(order, start_step) if on_device else self._on_host(order, start_step)
        self._epochs.add(batches)
        return batches

    def close(self) -> None:
        """End all pipelines, those of epochs still under way too."""
        for batches in list(self._epochs):
            batches.close()
        while self._idle:
            self._idle.pop().close()

    def _on_host(self, order: Order, start_step: int) -> Generator[Batch, None, None]:
        def batches() -> Generator[HostBatch, None, None]:
            with contextlib.closing(self._pixels(order, start_step)) as pixels:
                for step, images in enumerate(pixels, start_step):
                    yield HostBatch(images, torch.from_numpy(order[step].copy()))

        return stage(batches(), self.device)

    def _on_device(self, order: Order, start_step: int) -> Generator[Batch, None, None]:
        # torch knows nothing of DALI's memory: a batch is let go when the work queued on it is done.
        held: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        with contextlib.closing(self._pixels(order, start_step)) as pixels:
            try:
                for step, images in enumerate(pixels, start_step):
                    index = torch.from_numpy(order[step].copy()).pin_memory()
                    yield Batch(
                        images,
                        torch.arange(len(images), device=self.device),
                        index.to(self.device, non_blocking=True),
                    )
                    held.append((images, torch.cuda.current_stream(self.device).record_event()))
                    while len(held) > HELD or held[0][1].query():
                        held.popleft()[1].synchronize()
                        if not held:
                            break
            finally:
                torch.cuda.current_stream(self.device).synchronize()

    def _pixels(self, order: Order, start_step: int) -> Generator[torch.Tensor, None, None]:
        """(B, H, W, 3) uint8 of each step."""
        if isinstance(order, ShardOrder):
            return read_shards(self.split, self.source_row, order, start_step, self._decoder, self.threads)
        return self._read_file(order, start_step)

    def _read_file(self, order: Order, start_step: int) -> Generator[torch.Tensor, None, None]:
        steps = range(start_step, len(order))
        nothing = torch.empty((0, self.split.height, self.split.width, 3), dtype=torch.uint8)
        nothing = nothing.to(self._decoder)
        largest = max((len(order[step]) for step in {*steps[:1], *steps[-1:]}), default=0)
        if not largest:  # a rank without a share
            yield from (nothing for _ in steps)
            return
        reading = self._take_idle(largest)
        with contextlib.ExitStack() as failed:
            failed.callback(reading.close)
            reading.feed.begin(self.source_row[order[step]] for step in steps)
            for step in steps:
                yield reading.next() if len(order[step]) else nothing
            failed.pop_all()
        reading.pipeline.rewind()
        self._idle.append(reading)

    def _take_idle(self, largest: int) -> "_Reading":
        """A pipeline for batches of up to `largest`: one that has ended its epoch, or a new one."""
        for reading in self._idle:
            if reading.largest == largest:
                self._idle.remove(reading)
                return reading
        return _Reading(self.split, self._file, largest, self._decoder, self.threads)


class _Reading:
    """A pipeline over the compiled file and what it is fed."""

    def __init__(
        self, split: Split, file: np.ndarray, largest: int, device: torch.device, threads: int
    ) -> None:
        self.split, self.file, self.largest = split, file, largest
        self.feed = _Feed(split, file)
        raw = split.store == "raw"

        def define(dali: ModuleType) -> tuple[Any, ...]:
            # DALI copies the bytes at once: nothing of the mapped file is read later than it was looked at, when it may
            # have been cut. For raw images its copy into one block of memory is also twice as fast as none.
            images = dali.fn.external_source(
                source=self.feed, batch=True, dtype=dali.types.UINT8, ndim=3 if raw else 1, no_copy=False
            )
            return (images if raw else decode_jpeg(dali, images, device),)

        self.pipeline = RunningPipeline(device, largest, threads, define)

    def next(self) -> torch.Tensor:
        """(B, H, W, 3) uint8 of the next step that is not empty. Raises DataError."""
        images, seen = None, "images of several sizes"
        try:
            self.pipeline.schedule()
            images = as_tensor(self.pipeline.outputs()[0])
        except RuntimeError as error:  # what is raised here would hold on to it, and so to the pipeline
            seen = cause(str(error))
        if images is None or images.shape[1:] != (self.split.height, self.split.width, 3):
            rows = np.concatenate([np.empty(0, np.int64), *self.feed.under_way])
            raise find_damaged(self.split, self.file, rows) or DataError(
                f"DALI cannot read the next batch: {seen}",
                where=str(self.split.path),
                fix="`fastdrpl prepare` with the same arguments checks the file; or use another loader",
            )
        self.feed.under_way.popleft()
        return images

    def close(self) -> None:
        """End the pipeline; what came out stays."""
        self.pipeline.close()


class _Feed:
    """What the pipeline asks for its next batch: the stored bytes of some rows. It skips empty steps."""

    def __init__(self, split: Split, file: np.ndarray) -> None:
        self.split, self.file = split, file
        self.under_way: deque[np.ndarray] = deque()  # rows of each batch that has not come out
        self._steps: Iterator[np.ndarray] = iter(())
        self._all_valid = bool(split.valid.all())
        if split.store == "raw":  # element k: the image that begins at byte k; nothing is copied
            nbytes = split.height * split.width * 3
            self._images = np.ndarray((max(0, len(file) - nbytes + 1),), f"V{nbytes}", file, strides=(1,))
        else:
            self._black = _black_jpeg(split.height, split.width)

    def begin(self, steps: Iterator[np.ndarray]) -> None:
        """The (B,) rows of an epoch's steps."""
        self.under_way.clear()
        self._steps = (rows for rows in steps if len(rows))

    def __call__(self) -> Any:
        rows = next(self._steps)  # at the end StopIteration, which is what DALI wants
        check_length(self.split, self.file)
        self.under_way.append(rows)
        return self._gather(rows) if self.split.store == "raw" else self._encoded(rows)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        images = self._images[self.split.offset[rows]].view(np.uint8)
        images = images.reshape(len(rows), self.split.height, self.split.width, 3)
        if not self._all_valid:
            images[~self.split.valid[rows]] = 0
        return images

    def _encoded(self, rows: np.ndarray) -> list[np.ndarray]:
        starts = self.split.offset[rows]
        places = zip(starts.tolist(), (starts + self.split.nbytes[rows]).tolist(), strict=True)
        files = [self.file[start:stop] for start, stop in places]
        if not self._all_valid:
            for place in np.flatnonzero(~self.split.valid[rows]):
                files[place] = self._black
        return files


def _black_jpeg(height: int, width: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)
