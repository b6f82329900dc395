"""A folder of images: `train/<class>/*` with `val|test/<class>/*`, or one folder of class folders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources.photos import (
    MAY_BE_WRONG,
    Listing,
    divide,
    list_files,
    open_photos,
    order_classes,
    refuse_fraction,
    stamp,
)
from fastdrpl.loaders.sources.pictures import EXTENSIONS, Target
from fastdrpl.loaders.sources.source import OpenedSource


class Found(NamedTuple):
    """The images below one class folder, sorted, and how many other things lie there."""

    paths: list[str]
    stamps: list[tuple[int, int]]  # (bytes, time of change) of each: tells a changed file
    ignored: int


def open_folder(
    source: Path,
    *,
    target: Target,
    test_fraction: float,
    classes: Path | None,
    workers: int,
    seed: int,
    names: Sequence[str] | None = None,
    tests: Sequence[str] = ("test", "val"),
) -> OpenedSource:
    """Find class folders and images. Raises UserError (layout) or DataError (a class without images).

    `names` lists the class folders in an order that is known beforehand; all of them must be there, and no other.
    `tests` are the folders that may be the test set; the first of them that is there is taken.
    """
    train_folder, test_folder, notes = _choose_folders(source, tests, test_fraction)
    names = _class_names(train_folder, classes, names)
    found = {name: list_images(os.path.join(train_folder, name)) for name in names}
    for name in names:
        if not found[name].paths:
            raise DataError(
                f"the class {printable(name)!r} has no image",
                where=printable(os.path.join(train_folder, name)),
                fix="add images, or remove the folder",
            )
    paths, stamps, labels, ignored = _join(names, found)
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
        splits = {"train": np.arange(len(paths)), "test": len(paths) + np.arange(len(test_paths))}
        paths, stamps, ignored = paths + test_paths, stamps + test_stamps, ignored + test_ignored
        labels = np.concatenate([labels, test_labels])
    else:
        splits = divide(labels, test_fraction, seed, where=printable(str(source)))
        if "test" in splits:
            notes.append(MAY_BE_WRONG)
    if ignored:
        notes.append(f"{ignored:,} other files were ignored (no extension of an image, hidden, or a loop).")
    root = os.fspath(source)
    ids = [storable(os.path.relpath(path, root)) for path in paths]
    return open_photos(
        Listing(labels=labels, ids=ids, fetch=list_files(paths), stamps=stamps),
        splits,
        kind="folder",
        name=printable(source.resolve().name) or "folder",
        where=printable(str(source)),
        class_names=names,
        target=target,
        workers=workers,
        test_may_be_wrong=not test_folder and "test" in splits,
        notes=notes,
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
    return Found(paths, [stamp(path) for path in paths], ignored)


def _choose_folders(
    source: Path, tests: Sequence[str], test_fraction: float
) -> tuple[str, str | None, list[str]]:
    """The training folder, the test folder if there is one, and what to tell the user."""
    if not source.is_dir():
        raise UserError(
            "the source is no folder",
            where=printable(str(source)),
            fix="give --source a folder, a zip or a tar",
        )
    if not (source / "train").is_dir():
        return os.fspath(source), None, []
    tests = [name for name in tests if (source / name).is_dir() and _subfolders(str(source / name))]
    if tests:
        refuse_fraction(test_fraction, where=printable(str(source / tests[0])))
    notes = ["`test` is the test set; `val` is not used."] if len(tests) == 2 else []
    return str(source / "train"), str(source / tests[0]) if tests else None, notes


def _class_names(folder: str, classes: Path | None, names: Sequence[str] | None) -> list[str]:
    """Class folders in the order of `names` or of the file `classes`, or sorted by name."""
    present = _subfolders(folder)
    if len(present) < 2:
        raise UserError(
            f"{len(present)} class folders here, wanted two or more",
            where=printable(folder),
            fix="put the images of each class into a folder of its own",
        )
    if names is None:
        return order_classes(present, classes, missing="has no folder")
    for what, wrong in (
        ("there is no folder of the class", set(names) - set(present)),
        ("a folder is no class that is known here:", set(present) - set(names)),
    ):
        if wrong:
            raise UserError(f"{what} {printable(min(wrong))!r}", where=printable(folder))
    return list(names)


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
    return sorted(name for name in names if name != "__MACOSX")  # which its archiver adds


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _join(
    names: list[str], found: dict[str, Found]
) -> tuple[list[str], list[tuple[int, int]], np.ndarray, int]:
    paths = [path for name in names for path in found[name].paths]
    stamps = [stamp for name in names for stamp in found[name].stamps]
    labels = np.repeat(np.arange(len(names)), [len(found[name].paths) for name in names]).astype(np.int64)
    return paths, stamps, labels, sum(found[name].ignored for name in names)
