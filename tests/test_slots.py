"""Photos decoded by several processes into shared memory: the same pieces as by one, however they travel."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdrpl.loaders.sources import photos
from fastdrpl.loaders.sources.photos import AHEAD, CHUNK, decode_each
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.slots import Slots, open_slots

WORKERS, SIZE = 2, 24
PHOTOS = CHUNK * (2 * AHEAD * WORKERS + 3) + 5  # every slot is used more than once; the last chunk is short


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photos of one grey each, and every ninth no image."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number:04}.png" for number in range(PHOTOS)]
    for number, path in enumerate(paths):
        Image.new("RGB", (SIZE, SIZE), (1 + number % 255,) * 3).save(path)
        if number % 9 == 4:
            path.write_bytes(b"no image")
    return [str(path) for path in paths]


def walk(
    places: list[str], workers: int, store: str = "raw"
) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    """Pixels of each piece, copied while they hold; rows of the bad; marks."""
    pieces, bad, marks, row = [], [], [], 0
    for piece in decode_each(iter(places), len(places), Target(SIZE, store, 90), workers):  # type: ignore[arg-type]
        pieces.append(np.array(piece.images))
        bad += [row + position for position, _ in piece.bad]
        assert piece.marks is not None
        marks.append(piece.marks)
        row += len(piece.images)
    assert row == len(places)
    return pieces, bad, np.concatenate(marks)


@contextlib.contextmanager
def open_elsewhere(count: int, nbytes: int) -> Iterator[Slots | None]:
    """Slots whose room other processes cannot open."""
    with open_slots(count, nbytes) as slots:
        assert slots is not None
        slots.room = slots.room._replace(path="/proc/self/fd/no-number")
        yield slots


def refuse(*_: object) -> int:
    raise PermissionError(13, "not allowed")


@pytest.mark.parametrize("refused", ["nothing", "memory", "children"])
def test_pieces_of_several_processes_are_those_of_one(
    places: list[str], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Also where the system gives no such memory, or does not let the processes open it."""
    if refused == "memory":
        monkeypatch.setattr(os, "memfd_create", refuse)
    elif refused == "children":
        monkeypatch.setattr(photos, "open_slots", open_elsewhere)
    one, bad, marks = walk(places, 1)
    several = walk(places, WORKERS)
    assert bad == several[1] == [row for row in range(PHOTOS) if row % 9 == 4]
    assert np.array_equal(marks, several[2])
    pixels = np.concatenate(one)
    assert np.array_equal(pixels, np.concatenate(several[0]))
    grey = np.array([0 if row in bad else 1 + row % 255 for row in range(PHOTOS)])
    assert np.array_equal(pixels, np.broadcast_to(grey[:, None, None, None], pixels.shape))


def shared_memory() -> int:
    """How many descriptors of such memory this process has."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found += "fastdrpl-pixels" in os.readlink(file)
    return found


def test_the_memory_goes_with_the_walk(places: list[str]) -> None:
    """Whether the walk ends or is left in its middle."""
    for stop in (1, PHOTOS):
        for number, _piece in enumerate(
            decode_each(iter(places), PHOTOS, Target(SIZE, "raw", 90), WORKERS), 1
        ):
            assert shared_memory()
            if number == stop:
                break
        del _piece  # its images hold the memory
        assert shared_memory() == 0
