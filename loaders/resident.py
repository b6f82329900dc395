"""The whole split at hand: pixels memory-mapped on the CPU, or copied to the device in one piece.

A batch is then nothing but the rows to gather: no pixel moves until augmentation reads it. A raw file is not
rearranged: its pages hold gaps, but every image starts at a multiple of gcd(page size, image bytes) after the
first one, so one strided (overlapping) view addresses them all.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import check_length, check_source_rows, decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order

DECODE_CHUNK = 64  # images per task: small enough for a smooth progress bar, large enough to cost nothing


class ResidentLoader:
    """Batches that point into pixels held on the device; the default wherever they fit.

    `source_row`: (N,) int64, the row of `split` whose pixels sample i shows. JPEG sets are decoded once,
    here, and `progress(done, total)` is told. Raises DataError for a file that contradicts its split or
    does not decode, UserError where the memory is too small.
    """

    def __init__(
        self,
        split: Split,
        source_row: np.ndarray,
        device: torch.device | str = "cpu",
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_source_rows(split, source_row)
        self.device = torch.device(device)
        file = map_file(split)
        if split.store == "raw":
            self._pixels, handle = _view_raw(split, source_row, file, self.device)
        else:
            self._pixels, handle = _decode_all(split, source_row, file, self.device, progress)
        self._handle = torch.from_numpy(handle)  # (N,) int64: where in the pixels each sample lies
        # What is only mapped can still be cut under our feet.
        self._mapped = (split, file) if split.store == "raw" and self.device.type == "cpu" else None

    def epoch(self, order: Order, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an order from a step on.

        All rows go to the device at once, so that a step copies nothing and launches nothing there.
        """
        walk = torch.from_numpy(order.index.copy())
        rows, index = self._handle[walk].to(self.device), walk.to(self.device)
        for step in range(start_step, len(order)):
            own = order.own(step)
            if self._mapped is not None:
                check_length(*self._mapped)
            yield Batch(self._pixels, rows[own].contiguous(), index[own].contiguous())

    def close(self) -> None:
        """Let go of the pixels."""
        self._pixels = self._pixels.new_empty((0, *self._pixels.shape[1:]))


def _view_raw(
    split: Split, source_row: np.ndarray, file: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, np.ndarray]:
    """The file's images as one strided view (M, H, W, 3) on the device, and each sample's place in it."""
    nbytes = split.height * split.width * 3
    stride = math.gcd(split.page_size, nbytes)
    first = int(split.offset.min()) if len(split) else 0
    last = int(split.offset.max()) if len(split) else 0
    handle, rest = np.divmod(split.offset - first, stride)
    bad = np.flatnonzero((rest != 0) | (split.nbytes != nbytes))
    if len(bad):
        raise DataError(
            f"row {bad[0]} has {split.nbytes[bad[0]]} bytes at {split.offset[bad[0]]}: "
            f"want {nbytes} at {first} + a multiple of {stride}",
            where=str(split.path),
            fix="the file is damaged or not made by `fastdrpl prepare`: prepare the dataset again",
        )
    if not len(split):
        return torch.empty((0, split.height, split.width, 3), dtype=torch.uint8, device=device), handle
    with warnings.catch_warnings():  # the mapping is read-only and torch cannot say so: nothing writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        region = torch.from_numpy(file[first : last + nbytes])
    if device.type == "cuda":
        _check_memory(len(region), torch.cuda.mem_get_info(device)[0], "the device", split.path)
    shape = ((last - first) // stride + 1, split.height, split.width, 3)
    view = region.to(device).as_strided(shape, (stride, split.width * 3, 3, 1))
    return view, handle[source_row]


def _decode_all(
    split: Split,
    source_row: np.ndarray,
    file: np.ndarray,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> tuple[torch.Tensor, np.ndarray]:
    """The rows in use, decoded: a dense array (M, H, W, 3) on the device, and each sample's place in it."""
    used, handle = np.unique(source_row, return_inverse=True)
    shape = (len(used), split.height, split.width, 3)
    _check_memory(math.prod(shape), free_memory(), "main memory", split.path)
    if device.type == "cuda":
        _check_memory(math.prod(shape), torch.cuda.mem_get_info(device)[0], "the device", split.path)
    pixels = np.empty(shape, np.uint8)

    def decode(start: int) -> int:
        chunk = used[start : start + DECODE_CHUNK]
        for place, row in enumerate(chunk, start):
            pixels[place] = decode_row(split, file, row)
        return len(chunk)

    done = 0
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # pillow decodes without the interpreter lock
    try:
        for task in as_completed([pool.submit(decode, start) for start in range(0, len(used), DECODE_CHUNK)]):
            done += task.result()
            if progress:
                progress(done, len(used))
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels).to(device), handle.astype(np.int64)


def resident_bytes(
    split: Split, source_row: np.ndarray, device: torch.device, sharers: int = 1
) -> tuple[int, int]:
    """Bytes that the pixels of these rows take (0 where the file is only mapped), and how many may be taken.

    Three fifths of what is free: the rest is for the network. `sharers` processes of this machine hold the pixels in
    its main memory, each its own (those of a JPEG set also on their way to a device).
    """
    on_device = device.type == "cuda"
    host = free_memory() * 3 // 5 // sharers
    there = torch.cuda.mem_get_info(device)[0] * 3 // 5 if on_device else host
    if split.store == "raw":
        if not on_device:
            return 0, host
        return int(split.offset.max() - split.offset.min() + split.nbytes.max()), there
    return len(np.unique(source_row)) * split.height * split.width * 3, min(host, there)


def _check_memory(wanted: int, free: int, place: str, path: Path) -> None:
    if wanted > free:
        raise UserError(
            f"the pixels need {wanted / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free",
            where=str(path),
            fix="use the worker loader, or prepare the dataset with smaller images",
        )


def free_memory() -> int:
    """Bytes that can be had without swapping: what Linux calls available, within this container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(figures["file"])  # cached files give way
        free = min(free, int(limit) - used)
    return free
