"""Memory that decoding processes fill with pixels; to send them through a pipe took a ninth of `prepare`'s time."""

import functools
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from fastdrpl.loaders.sources.pictures import Place, Target, decode_pictures


class Room(NamedTuple):
    """Where other processes find the memory of this one: slots of `nbytes` each."""

    path: str
    identity: tuple[int, int]  # device and inode: a descriptor's number may come to mean another file
    nbytes: int


class Slots:
    """The memory in this process: (slots, nbytes) uint8, and the room that tells others where it is."""

    def __init__(self, room: Room, memory: np.ndarray) -> None:
        self.room, self._memory = room, memory

    def images(self, number: int, count: int, size: int) -> np.ndarray:
        """The first `count` images of slot `number` modulo their count: (count, size, size, 3) uint8; no copy."""
        return _images(self._memory, number, count, size)


@contextmanager
def open_slots(count: int, nbytes: int) -> Iterator[Slots | None]:
    """`count` slots; None where the system has or gives no such memory. It goes with the last array over it.

    It is no file of /dev/shm, which containers keep small, but one without a name, that this process has open.
    """
    try:
        file = os.memfd_create("fastdrpl-pixels")
    except (AttributeError, OSError):  # not Linux, or not allowed
        yield None
        return
    try:
        os.ftruncate(file, count * nbytes)
        status = os.fstat(file)
        room = Room(f"/proc/{os.getpid()}/fd/{file}", (status.st_dev, status.st_ino), nbytes)
        memory = _map(room)
        yield None if memory is None else Slots(room, memory)
    finally:
        os.close(file)


def fill_slot(
    room: Room, number: int, places: Sequence[Place], target: Target
) -> tuple[bytes | None, list[tuple[int, str]], bytes]:
    """In a decoding process: the pixels of some images into a slot; -> None, [(position, reason)] of the bad, marks.

    The pixels themselves in place of None where this process may not open the memory of the other.
    """
    memory = _map_once(room)
    if memory is None:
        out = np.empty((len(places), target.size, target.size, 3), np.uint8)
    else:
        out = _images(memory, number, len(places), target.size)
    bad, marks = decode_pictures(places, target, out)
    return out.tobytes() if memory is None else None, bad, marks


def _map(room: Room) -> np.ndarray | None:
    """(slots, nbytes) uint8; None where it cannot be opened."""
    try:
        with open(room.path, "r+b") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != room.identity:
                return None
            return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8).reshape(-1, room.nbytes)
    except OSError:
        return None


_map_once = functools.lru_cache(1)(_map)  # a decoding process serves one set of slots in its life


def _images(memory: np.ndarray, number: int, count: int, size: int) -> np.ndarray:
    return memory[number % len(memory), : count * size * size * 3].reshape(count, size, size, 3)
