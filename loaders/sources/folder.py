"""A folder of images: `train/<class>/*` with `val|test/<class>/*`, or one folder of class folders."""

import hashlib
import multiprocessing
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources.pictures import EXTENSIONS, Target, read_pictures, watch_parent
from fastdrpl.loaders.sources.source import IMAGENET_MEAN, IMAGENET_STD, OpenedSource, Part, Piece
from fastdrpl.loaders.sources.stratify import choose_test_rows

CHUNK = 16  # images a worker decodes at a time
FEW = 64  # images that are not worth starting processes for


class Found(NamedTuple):
    """The images below one class folder, sorted, and how many other things lie there."""

    paths: list[str]
    stamps: list[tuple[int, int]]  # (bytes, time of change) of each: tells a changed file
    ignored: int


def open_folder(
    source: Path, *, target: Target, test_fraction: float, classes: Path | None, workers: int, seed: int
) -> OpenedSource:
    """Find class folders and images. Raises UserError (layout) or DataError (a class without images)."""
    train_folder, test_folder, notes = _choose_folders(source, test_fraction)
    names = _class_names(train_folder, classes)
    found = {name: list_images(os.path.join(train_folder, name)) for name in names}
    for name in names:
        if not found[name].paths:
            raise DataError(
                f"the class {printable(name)!r} has no image",
                where=printable(os.path.join(train_folder, name)),
                fix="add images, or remove the folder",
            )
    paths, stamps, labels, ignored = _join(names, found)
    lists = {"train": (paths, labels)}
    if test_folder:
        others = [name for name in _subfolders(test_folder) if name not in found]
        if others:
            raise DataError(
                f"the test set has a class that the training set has not: {printable(others[0])!r}",
                where=printable(test_folder),
            )
        test_found = {name: list_images(os.path.join(test_folder, name)) for name in names}
        test_paths, test_stamps, test_labels, test_ignored = _join(names, test_found)
        if not test_paths:
            raise DataError("the test set has no image", where=printable(test_folder))
        lists["test"] = (test_paths, test_labels)
        stamps, ignored = stamps + test_stamps, ignored + test_ignored
    elif test_fraction:
        in_test = np.zeros(len(labels), dtype=bool)
        in_test[choose_test_rows(labels, test_fraction, seed)] = True
        if not in_test.any():
            raise UserError(
                f"--test-fraction {test_fraction} leaves no test image", where=printable(str(source))
            )
        lists = {
            "train": (
                [path for path, test in zip(paths, in_test, strict=True) if not test],
                labels[~in_test],
            ),
            "test": ([path for path, test in zip(paths, in_test, strict=True) if test], labels[in_test]),
        }
        notes.append("The test set is a part of the same images: its labels may be wrong too.")
    if ignored:
        notes.append(f"{ignored:,} other files were ignored (no extension of an image, hidden, or a loop).")
    root = os.fspath(source)
    parts = {
        split: Part(
            label,
            tuple(printable(os.path.relpath(path, root)) for path in files),
            _reader(files, target, workers),
        )
        for split, (files, label) in lists.items()
    }
    return OpenedSource(
        kind="folder",
        name=printable(source.resolve().name) or "folder",
        fingerprint=_fingerprint(parts, stamps, names),
        class_names=tuple(printable(name) for name in names),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        pad=0,
        height=target.size,
        width=target.size,
        parts=parts,
        test_may_be_wrong=not test_folder and "test" in parts,
        journal=True,
        notes=tuple(notes),
    )


def list_images(folder: str) -> Found:
    """All images below a folder, sorted by path; links are followed, loops of links are not."""
    paths: list[str] = []
    ignored = 0
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while waiting:
        here, above = waiting.pop()
        try:
            status = os.stat(here)
            entries = list(os.scandir(here))
        except FileNotFoundError:
            continue  # the test set may miss a class
        except OSError as error:
            raise DataError(f"cannot list a folder: {error.strerror}", where=printable(here)) from None
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            ignored += 1
            continue
        for entry in entries:
            if entry.name.startswith("."):
                ignored += 1
            elif _is_folder(entry):
                waiting.append((entry.path, (*above, identity)))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                paths.append(entry.path)
            else:
                ignored += 1
    paths.sort()
    return Found(paths, [_stamp(path) for path in paths], ignored)


def printable(name: str) -> str:
    """A file name that can be printed and stored: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def decode_all(paths: list[str], target: Target, workers: int) -> Iterator[Piece]:
    """Decode files in order with `workers` processes (0: one per core); memory holds a few chunks."""
    chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
    workers = min(workers or _cores(), -(-len(paths) // CHUNK))
    if workers < 2 or len(paths) < FEW:
        for chunk in chunks:
            yield _piece(read_pictures(chunk, target), target)
        return
    context = multiprocessing.get_context("spawn")  # a fork may copy a lock that another thread holds
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=watch_parent)
    try:
        ahead: deque[Future[tuple[bytes | list[bytes], list[tuple[int, str]]]]] = deque()
        for chunk in chunks:
            ahead.append(pool.submit(read_pictures, chunk, target))
            if len(ahead) > 3 * workers:
                yield _piece(ahead.popleft().result(), target)
        while ahead:
            yield _piece(ahead.popleft().result(), target)
    except BrokenProcessPool:
        raise DataError(
            "a decoding process died (out of memory, or killed)",
            fix="run the same command again: it continues; --workers 1 needs the least memory",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _piece(result: tuple[bytes | list[bytes], list[tuple[int, str]]], target: Target) -> Piece:
    data, bad = result
    if isinstance(data, bytes):
        return Piece(np.frombuffer(data, np.uint8).reshape(-1, target.size, target.size, 3), bad)
    return Piece(data, bad)


def _reader(paths: list[str], target: Target, workers: int) -> Callable[[int], Iterator[Piece]]:
    return lambda start: decode_all(paths[start:], target, workers)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose_folders(source: Path, test_fraction: float) -> tuple[str, str | None, list[str]]:
    """The training folder, the test folder if there is one, and what to tell the user."""
    if not source.is_dir():
        raise UserError("the source is no folder", where=printable(str(source)), fix="give --source FOLDER")
    if not (source / "train").is_dir():
        return os.fspath(source), None, []
    tests = [name for name in ("test", "val") if (source / name).is_dir() and _subfolders(str(source / name))]
    if test_fraction and tests:
        raise UserError(
            "--test-fraction is for a source without a test set, but there is one",
            where=printable(str(source / tests[0])),
            fix="leave --test-fraction out",
        )
    notes = ["`test` is the test set; `val` is not used."] if len(tests) == 2 else []
    return str(source / "train"), str(source / tests[0]) if tests else None, notes


def _class_names(folder: str, classes: Path | None) -> list[str]:
    """Class folders in the order of the file `classes`, or sorted by name."""
    present = _subfolders(folder)
    if len(present) < 2:
        raise UserError(
            f"{len(present)} class folders here, wanted two or more",
            where=printable(folder),
            fix="put the images of each class into a folder of its own",
        )
    if classes is None:
        return present
    try:
        lines = [line.strip() for line in os.fsdecode(classes.read_bytes()).splitlines()]
    except OSError as error:
        raise UserError(f"cannot read the class list: {error.strerror}", where=str(classes)) from None
    names = [line for line in lines if line]
    missing, extra = sorted(set(names) - set(present)), sorted(set(present) - set(names))
    for what, wrong in (("has no folder", missing), ("is not in the class list", extra)):
        if wrong:
            raise UserError(f"the class {printable(wrong[0])!r} {what}", where=str(classes))
    if len(set(names)) != len(names):
        raise UserError("a class is listed twice", where=str(classes))
    return names


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:  # a broken link: it has a row, and goes to the quarantine when it is read
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-2, -2)


def _join(
    names: list[str], found: dict[str, Found]
) -> tuple[list[str], list[tuple[int, int]], np.ndarray, int]:
    paths = [path for name in names for path in found[name].paths]
    stamps = [stamp for name in names for stamp in found[name].stamps]
    labels = np.repeat(np.arange(len(names)), [len(found[name].paths) for name in names]).astype(np.int64)
    return paths, stamps, labels, sum(found[name].ignored for name in names)


def _fingerprint(parts: dict[str, Part], stamps: list[tuple[int, int]], names: list[str]) -> str:
    digest = hashlib.sha256(repr([printable(name) for name in names]).encode())
    for split, part in parts.items():
        digest.update(repr((split, part.ids, part.labels.tolist())).encode())
    digest.update(repr(stamps).encode())
    return digest.hexdigest()
