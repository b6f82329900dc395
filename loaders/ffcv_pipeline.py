"""The ffcv library put together for our files: its loader with our two operations, and its iterator made to end.

Imported only after `require("ffcv")`. Two things of the library are replaced, as its extension points allow. The
loops that read an image: see `fastdrpl.loaders.ffcv_decode`. And what its iterator thread runs: the library's own
says nothing to its consumer when it fails, and goes on waiting when nobody consumes any more.
"""

import contextlib
import copy
import mmap
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any

import ffcv.loader.loader as ffcv_loader
import numba
import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import lib
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.reader import Reader

from fastdrpl.kernels.cpu.jit import PARALLEL_LOCK
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.extras import keep_thread_counts
from fastdrpl.loaders.ffcv_decode import GOOD, READ, bind_decoder

AHEAD = 3  # chunks ready before they are asked for; the ring holds two more: one in use, one being filled
PATIENCE = 50  # seconds without a chunk after which the thread counts as hung
GRACE = 5  # seconds that a thread told to end may take to do so before it is left behind

_BUILDING = (
    threading.Lock()
)  # what is switched off for a moment is switched off for all the library's loaders


class ReadImages(SimpleRGBImageDecoder):
    """The library's operation that fills its ring with images, by our loops. Never wrong in silence.

    A JPEG of which the library's decoder says anything but "good" goes to `decode_row`, which decides: pixels, or
    DataError with file and row. Quarantined rows are zeros.
    """

    def __init__(self, split: Split, mapping: mmap.mmap, workers: int) -> None:
        super().__init__()
        self.split, self.mapping, self.parallel = split, mapping, workers > 1
        self.loop = READ[split.store, self.parallel]
        self.image_bytes = split.height * split.width * 3
        self.stop = int((split.offset + split.nbytes).max())
        self.all_valid = bool(split.valid.all())

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (self.split.height, self.split.width, 3), np.dtype(np.uint8)
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., np.ndarray]:
        return self.read

    def read(self, rows: np.ndarray, out: np.ndarray, metadata: np.ndarray, storage: Any) -> np.ndarray:
        """The images of (B,) int64 rows: (B, H, W, 3), in `out`."""
        self.check_length()
        file, start = storage[0], metadata["data_ptr"][rows]
        with PARALLEL_LOCK if self.parallel else contextlib.nullcontext():
            if self.split.store == "raw":
                self.loop(file, start, out.reshape(len(out), self.image_bytes))
                return out
            status = np.empty(len(rows), np.int64)
            self.loop(file, start, self.split.nbytes[rows].view(np.uint64), out, status)
        for place in np.flatnonzero(status != GOOD):
            out[place] = decode_row(self.split, file, int(rows[place]))
        if not self.all_valid:
            out[~self.split.valid[rows]] = 0
        return out

    def check_length(self) -> None:
        """Raise DataError if the file has become shorter: reading beyond its end would end the process."""
        size = self.mapping.size()
        if size < self.stop:
            raise DataError(
                f"the file was cut to {size} bytes while it was read, of {self.stop} with images",
                where=str(self.split.path),
                fix="prepare the dataset again, and leave its files alone while a run reads them",
            )


class ReadIndex(IntDecoder):
    """The library's operation that reads the index field, which in our files is the row."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=True, shape=(1,), dtype=self.dtype), None

    def generate_code(self) -> Callable[..., np.ndarray]:
        return self.read

    def read(self, rows: np.ndarray, _: None, metadata: np.ndarray, storage: Any) -> np.ndarray:
        """The index field of (B,) rows."""
        return metadata[rows]


class MappedFile(OSCacheManager):
    """The library's manager of a mapped file, without the dictionaries of rows and pages that it does not use.

    For ImageNet they would take three seconds and a gigabyte.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.ptrs, self.sizes = reader.alloc_table["ptr"], reader.alloc_table["size"]  # in the order of rows
        self.context = OSCacheContext(self)


def build_loader(split: Split, workers: int) -> Any:
    """An `ffcv.Loader` of our files, of whose rows any may be asked for in any order. Compiles what it needs.

    The thread counts of torch and numba stay as they were.
    """
    with open(split.path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    images = ReadImages(split, mapping, workers)
    if split.store == "jpeg":
        bind_decoder(lib)
    with _BUILDING, keep_thread_counts():
        enabled, manager = Compiler.is_enabled, ffcv_loader.OSCacheManager
        Compiler.set_enabled(False)  # our operations are compiled already
        ffcv_loader.OSCacheManager = MappedFile
        try:
            loader = Loader(
                str(split.path),
                batch_size=1,  # each epoch has its own
                num_workers=workers,
                os_cache=True,
                order=OrderOption.SEQUENTIAL,
                seed=0,  # or it would draw one from the global generator
                pipelines={"image": [images], "label": None, "index": [ReadIndex()]},
                drop_last=False,
                batches_ahead=AHEAD,
            )
        finally:
            Compiler.set_enabled(enabled)
            ffcv_loader.OSCacheManager = manager
    context = loader.memory_manager.context
    context.mmap = np.frombuffer(mapping, np.uint8)  # the file whose length is watched
    nothing = np.empty((0, split.height, split.width, 3), np.uint8)
    images.read(np.empty(0, np.int64), nothing, loader.reader.metadata["f0"], context.state)  # compiles
    return loader


class Chunks(EpochIterator):
    """A thread of the library that reads chunks of rows into its ring; `take` gives the next.

    What was taken holds until the next `take`. Its reader must `close` it.
    """

    def __init__(self, loader: Any, split: Split, chunks: Iterable[np.ndarray], largest: int) -> None:
        self.split, self.chunks = split, iter(chunks)
        self.rows = np.empty(0, np.int64)  # being read
        shared = copy.copy(loader)  # epochs under way at once share all but the size of their ring
        shared.batch_size = largest
        super().__init__(shared, ())  # starts the thread

    def run(self) -> None:
        with _Report(self.output_queue):
            numba.set_num_threads(self.loader.num_workers)  # of this thread alone
            places = self.loader.batches_ahead + 2
            for number, rows in enumerate(self.chunks):
                self.rows = rows
                pixels, index = self.run_pipeline(number, rows, number % places, None)
                if not np.array_equal(index, rows):
                    raise DataError(
                        "the library read other rows than it was asked for",
                        where=f"{self.split.path}, {self.describe_rows()}",
                        fix="the file is damaged: prepare the dataset again",
                    )
                self.output_queue.put(pixels)
                if self.terminate_event.is_set():
                    return

    def take(self) -> np.ndarray:
        """The pixels of the next chunk: (B, H, W, 3) uint8.

        Raises what the thread raised, as UserError with its cause; or UserError if the thread is gone or has
        given nothing for `PATIENCE` seconds.
        """
        end = time.monotonic() + PATIENCE
        while True:
            alive = self.is_alive()  # before the look into the queue, or its last word could be missed
            try:
                answer = self.output_queue.get(timeout=1 if alive else 0.01)
            except queue.Empty:
                if not alive:
                    raise self.make_error("ended without a word") from None
                if time.monotonic() > end:
                    raise self.make_error(f"gave nothing for {PATIENCE} s") from None
                continue
            if isinstance(answer, UserError):
                raise answer
            if isinstance(answer, BaseException):
                raise self.make_error(f"failed: {type(answer).__name__}: {answer}") from answer
            return answer

    def make_error(self, what: str) -> UserError:
        """The error that names file and rows."""
        return UserError(
            f"the reading thread of FFCV {what}",
            where=f"{self.split.path}, {self.describe_rows()}",
            fix="look after the disk and the memory; --engine.loader worker reads without FFCV",
        )

    def describe_rows(self) -> str:
        """Which rows are being read, in words."""
        if not len(self.rows):
            return "before the first row"
        return f"one of {len(self.rows)} rows from {self.rows.min()} to {self.rows.max()}"

    def close(self) -> None:
        """End the thread, whatever it is doing; one that hangs is left behind after `GRACE` seconds."""
        self.terminate_event.set()
        end = time.monotonic() + GRACE
        while self.is_alive() and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):  # it may be waiting for a place
                self.output_queue.get_nowait()
            self.join(0.005)

    def __del__(self) -> None:
        pass  # the library's would close it here, in whichever thread that happens


class _Report:
    """Puts an exception of its block into a queue, for who waits at the other end, and ends it."""

    def __init__(self, target: queue.Queue[Any]) -> None:
        self.target = target

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self.target.put(error)
        return True
