"""Memory that decoding processes fill with pixels, which would take a fifth of the time to go through a pipe."""

import functools
import mmap
import os
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from fastdrpl.loaders.sources.pictures import Place, Target, decode_pictures


class Slots:
    """`count` stretches of memory of `nbytes` each, that other processes open by `path`.

    It is no file of /dev/shm, which containers keep small, but one without a name, that this process has open.
    Linux only: `are_there`.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._file = os.memfd_create("fastdrpl-pixels")
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        os.ftruncate(self._file, count * nbytes)
        self._slots = _map(self.path, nbytes)

    @staticmethod
    def are_there() -> bool:
        """Whether this system has such memory."""
        return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")

    def images(self, number: int, count: int, size: int) -> np.ndarray:
        """The first `count` images of slot `number` modulo their count: (count, size, size, 3) uint8; no copy."""
        return _images(self._slots, number, count, size)

    def __enter__(self) -> "Slots":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)  # the memory goes with the last array over it


def fill_slot(
    path: str, nbytes: int, number: int, places: Sequence[Place], target: Target
) -> tuple[list[tuple[int, str]], bytes]:
    """In a decoding process: the pixels of some images into a slot; -> [(position, reason)] of the bad, marks."""
    out = _images(_map_once(path, nbytes), number, len(places), target.size)
    return decode_pictures(places, target, out)


def _map(path: str, nbytes: int) -> np.ndarray:
    """(slots, nbytes) uint8."""
    with open(path, "r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8).reshape(-1, nbytes)


_map_once = functools.lru_cache(1)(_map)  # a decoding process serves one set of slots in its life


def _images(slots: np.ndarray, number: int, count: int, size: int) -> np.ndarray:
    return slots[number % len(slots), : count * size * size * 3].reshape(count, size, size, 3)
