"""Photos from anywhere: a list of where they lie and what they show -> an opened source that decodes them."""

import codecs
import hashlib
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.marks import MARK
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import composed, describe_names, nearly
from fastdrpl.loaders.sources.pictures import Place, Target, read_pictures, watch_parent
from fastdrpl.loaders.sources.slots import fill_slot, open_slots
from fastdrpl.loaders.sources.source import IMAGENET_MEAN, IMAGENET_STD, OpenedSource, Part, Piece
from fastdrpl.loaders.sources.stratify import choose_test_rows
from fastdrpl.loaders.spawning import WorkerPool, cores

CHUNK = 16  # images a worker decodes at a time
FEW = 64  # images that are not worth starting processes for
AHEAD = 3  # chunks for each worker that are under way
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
MAY_BE_WRONG = "The test set is a part of the same images: its labels may be wrong too."


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All photos of a source, train and test, in one order; no pixel is read yet."""

    labels: np.ndarray  # (n,) int64
    ids: Sequence[str]  # storable, one a photo
    fetch: Callable[[np.ndarray], Iterator[Place]]  # ascending rows -> where each of them is
    stamps: object  # whatever changes when a file does; its repr goes into the fingerprint


def open_photos(
    listing: Listing,
    splits: dict[str, np.ndarray],
    *,
    kind: str,
    name: str,
    where: str,
    class_names: Sequence[str],
    target: Target,
    workers: int,
    test_may_be_wrong: bool = False,
    notes: Sequence[str] = (),
) -> OpenedSource:
    """A source of photos. `splits` maps "train" and perhaps "test" to ascending rows of the listing.

    The names of the classes are made printable. Raises DataError where a class has no training photo, where two
    names become the same text, or where there are not two classes.
    """
    class_names = _printable_names(class_names, where)
    if len(class_names) < 2:
        shown = f"one class, {class_names[0]!r}" if class_names else "no images"
        raise DataError(f"{shown}; wanted two classes or more", where=where)
    parts = {}
    for split, rows in splits.items():
        ids = tuple(listing.ids[row] for row in rows.tolist())
        parts[split] = Part(listing.labels[rows], ids, _reader(listing, rows, target, workers))
    counts = np.bincount(parts["train"].labels, minlength=len(class_names))
    notes = [
        *notes,
        *describe_names(class_names, np.bincount(listing.labels, minlength=len(class_names)).tolist()),
    ]
    if "test" in parts and kind != "webvision":  # which says it itself
        notes += _untested(parts["test"].labels, class_names)
    if not counts.all():
        raise DataError(
            f"the class {class_names[int(counts.argmin())]!r} has no training image",
            where=where,
            fix="add images, or leave the class out",
        )
    return OpenedSource(
        kind=kind,
        name=name,
        fingerprint=_fingerprint(parts, listing.stamps, class_names),
        class_names=class_names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        pad=0,
        height=target.size,
        width=target.size,
        parts=parts,
        test_may_be_wrong=test_may_be_wrong,
        labels_checked=False,
        journal=True,
        decoded_by_pillow=True,
        notes=tuple(notes),
    )


def _untested(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """A line on classes that the test set has no image of."""
    absent = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if not len(absent):
        return []
    return [
        f"The test set has no image of {len(absent):,} of {len(names):,} classes, {names[absent[0]]!r} for one."
    ]


def _printable_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    name_of: dict[str, str] = {}
    for name in names:
        other = name_of.setdefault(printable(name), name)
        if other != name:
            raise DataError(
                f"two classes would have one name when they are printed: {other!a} and {name!a}",
                where=where,
                fix="rename one of them",
            )
    return tuple(map(printable, names))


def list_files(paths: Sequence[str]) -> Callable[[np.ndarray], Iterator[Place]]:
    """`fetch` of a listing whose photos are files."""
    return lambda rows: (paths[row] for row in rows.tolist())


def divide(labels: np.ndarray, fraction: float, seed: int, *, where: str) -> dict[str, np.ndarray]:
    """Rows of the splits of a source without a test set. Raises UserError if the fraction leaves no test image."""
    every = np.arange(len(labels))
    if not fraction:
        return {"train": every}
    test = choose_test_rows(labels, fraction, seed)
    if not len(test):
        raise UserError(f"--test-fraction {fraction} leaves no test image", where=where)
    return {"train": np.setdiff1d(every, test), "test": test}


def refuse_fraction(fraction: float, *, where: str) -> None:
    """Raises UserError if a fraction is asked for although there is a test set."""
    if fraction:
        raise UserError(
            "--test-fraction is for a source without a test set, but there is one",
            where=where,
            fix="leave --test-fraction out",
        )


def number_labels(
    labels: Sequence[str], classes: Path | None, present: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Labels as text -> (class numbers (n,) int64, class names in order). Both are in Unicode's composed form.

    The order is that of the file `classes`, or of `present` if the source knows one, or sorted: as numbers if all
    are whole numbers, else as text.
    """
    labels = [composed(label) for label in labels]
    if present is not None:
        present = list(dict.fromkeys(map(composed, present)))
    else:
        found = sorted(set(labels))
        present = sorted(found, key=int) if all(map(WHOLE_NUMBER.fullmatch, found)) else found
    names = order_classes(present, classes)
    number_of = {name: number for number, name in enumerate(names)}
    return np.fromiter((number_of[label] for label in labels), np.int64, len(labels)), names


def order_classes(
    present: Sequence[str], classes: Path | None, *, missing: str = "has no image"
) -> list[str]:
    """The classes in the order of the file `classes`, or as they are.

    `missing` says what is wrong with a listed class that is not present. Raises UserError where the file and
    the classes differ.
    """
    if classes is None:
        return list(present)
    try:
        data = classes.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(
            f"cannot read the class list: {error.strerror}", where=printable(str(classes))
        ) from None
    lines = [composed(line.strip()) for line in os.fsdecode(data).splitlines()]
    names = [line for line in lines if line]
    lost, new = sorted(set(names) - set(present)), sorted(set(present) - set(names))
    for what, wrong, others in ((missing, lost, new), ("is not in the class list", new, lost)):
        if wrong:
            raise UserError(
                f"the class {printable(wrong[0])!r} {what}{nearly(wrong[0], others)}",
                where=printable(str(classes)),
            )
    if len(set(names)) != len(names):
        raise UserError("a class is listed twice", where=printable(str(classes)))
    return names


def stamp(path: str) -> tuple[int, int]:
    """(bytes, time of change) of a file: tells a changed one. Files that are not there have one too."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # broken link, impossible name: it has a row, and is quarantined when read
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-2, -2)


def decode_each(places: Iterable[Place], count: int, target: Target, workers: int) -> Iterator[Piece]:
    """Decode `count` images in order with `workers` processes (0: one per core); memory holds a few chunks.

    Their places may become known one after the other. The images of a piece hold until the next one is asked for.
    """
    walk = iter(places)
    chunks = iter(lambda: list(itertools.islice(walk, CHUNK)), [])
    workers = min(workers or cores(), -(-count // CHUNK))
    if workers < 2 or count < FEW:
        for chunk in chunks:
            yield _piece(read_pictures(chunk, target), target)
        return
    nbytes = CHUNK * target.size * target.size * 3
    shares = open_slots(AHEAD * workers + 1, nbytes) if target.store == "raw" else nullcontext()
    with shares as slots, processes(workers) as pool:  # which end before their memory
        if slots is None:
            for _, result in _in_order(
                pool, workers, chunks, lambda _, chunk: (read_pictures, chunk, target)
            ):
                yield _piece(result, target)
            return

        def task(number: int, chunk: list[Place]) -> tuple[Any, ...]:
            return fill_slot, slots.room, number, chunk, target

        for number, (count, result) in enumerate(_in_order(pool, workers, chunks, task)):
            pixels, bad, marks = result
            if pixels is None:
                yield Piece(slots.images(number, count, target.size), bad, np.frombuffer(marks, MARK))
            else:
                yield _piece(result, target)


def _in_order(
    pool: WorkerPool,
    workers: int,
    chunks: Iterable[list[Place]],
    task: Callable[[int, list[Place]], tuple[Any, ...]],
) -> Iterator[tuple[int, Any]]:
    """The length and result of each chunk in their order; at most AHEAD * workers are under way beside it.

    `task(number, chunk)`: a function and its arguments.
    """
    ahead: deque[tuple[int, Future[Any]]] = deque()
    for number, chunk in enumerate(chunks):
        ahead.append((len(chunk), pool.submit(*task(number, chunk))))
        if len(ahead) > AHEAD * workers:
            count, future = ahead.popleft()
            yield count, future.result()
    for count, future in ahead:
        yield count, future.result()


@contextmanager
def processes(workers: int) -> Iterator[WorkerPool]:
    """Processes that end with this one, or with the block. Raises DataError if one of them dies."""
    pool = WorkerPool(workers, watch_parent)
    try:
        yield pool
    except BrokenProcessPool:
        raise DataError(
            "a decoding process died (out of memory, or killed)",
            fix="run the same command again: it continues; --workers 1 needs the least memory",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _piece(result: tuple[bytes | list[bytes], list[tuple[int, str]], bytes], target: Target) -> Piece:
    data, bad, marks = result
    if isinstance(data, list):
        return Piece(data, bad, np.frombuffer(marks, MARK))
    images = np.frombuffer(data, np.uint8).reshape(-1, target.size, target.size, 3)
    return Piece(images, bad, np.frombuffer(marks, MARK))


def _reader(
    listing: Listing, rows: np.ndarray, target: Target, workers: int
) -> Callable[[int], Iterator[Piece]]:
    return lambda start: decode_each(listing.fetch(rows[start:]), len(rows) - start, target, workers)


def _fingerprint(parts: dict[str, Part], stamps: object, names: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(list(names)).encode())
    for split, part in parts.items():
        digest.update(repr((split, part.ids, part.labels.tolist())).encode())
    digest.update(repr(stamps).encode())
    return digest.hexdigest()
