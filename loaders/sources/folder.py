"""A folder of images: training and test folders of class folders, or one folder of class folders."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources.class_names import composed, nearly
from fastdrpl.loaders.sources.folder_layout import check_class_folders, find_layout
from fastdrpl.loaders.sources.photos import (
    MAY_BE_WRONG,
    Listing,
    divide,
    list_files,
    open_photos,
    order_classes,
)
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.source import OpenedSource
from fastdrpl.loaders.sources.split_names import TEST, VAL
from fastdrpl.loaders.sources.walking import Found, Left, describe_left, list_images, subfolders, why_no_image


def open_folder(
    source: Path,
    *,
    target: Target,
    test_fraction: float,
    classes: Path | None,
    workers: int,
    seed: int,
    names: Sequence[str] | None = None,
    tests: Sequence[str] = (TEST, VAL),
) -> OpenedSource:
    """Find class folders and images. Raises UserError (layout) or DataError (a class without images).

    `names` lists the class folders in an order that is known beforehand; all of them must be there, and no other.
    `tests` are the splits that may be the test set; the first of them that has class folders is taken.
    """
    train_folder, test_folder, notes = find_layout(source, test_fraction, tests)
    folders = _class_folders(train_folder)
    check_class_folders(train_folder, subfolders(train_folder))
    names = _class_names(train_folder, list(folders), classes, names)
    root = os.fspath(source)
    found = {name: _list_class(train_folder, folders[name], root) for name in names}
    for name in names:
        if not found[name].paths:
            folder = os.path.join(train_folder, folders[name][0])
            why, fix = why_no_image(folder, found[name])
            raise DataError(
                f"the class {printable(name)!r} has no image{why}", where=printable(folder), fix=fix
            )
    notes += [
        f"folders of one name in two spellings of its letters are one class: {printable(name)!r}"
        for name in names
        if len(folders[name]) > 1
    ]
    paths, stamps, labels, left = _join(names, found)
    if test_folder:
        folders = _class_folders(test_folder)
        others = [name for name in folders if name not in found]
        if others:
            raise DataError(
                f"the test set has a class that the training set has not: {printable(others[0])!r}"
                f"{nearly(others[0], names)}",
                where=printable(test_folder),
            )
        test_found = {name: _list_class(test_folder, folders.get(name, []), root) for name in names}
        test_paths, test_stamps, test_labels, test_left = _join(names, test_found)
        if not test_paths:
            raise DataError("the test set has no image", where=printable(test_folder))
        splits = {"train": np.arange(len(paths)), "test": len(paths) + np.arange(len(test_paths))}
        paths, stamps, left = paths + test_paths, stamps + test_stamps, left + test_left
        labels = np.concatenate([labels, test_labels])
    else:
        splits = divide(labels, test_fraction, seed, where=printable(str(source)))
        if "test" in splits:
            notes.append(MAY_BE_WRONG)
    notes += describe_left(left, len(paths), root)
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


def _class_folders(folder: str) -> dict[str, list[str]]:
    """Class name in Unicode's composed form -> the folders that are called so, mostly one."""
    folders: dict[str, list[str]] = {}
    for name in subfolders(folder):
        folders.setdefault(composed(name), []).append(name)
    return folders


def _list_class(split: str, folders: Sequence[str], root: str) -> Found:
    """The images of the folders of one class."""
    found = [list_images(os.path.join(split, folder), above=[root, split]) for folder in folders]
    return Found(
        [path for part in found for path in part.paths],
        [stamp for part in found for stamp in part.stamps],
        sum((part.left for part in found), Left()),
    )


def _class_names(
    folder: str, present: list[str], classes: Path | None, names: Sequence[str] | None
) -> list[str]:
    """Classes in the order of `names` or of the file `classes`, or sorted by name."""
    if names is None:
        return order_classes(sorted(present), classes, missing="has no folder")
    for what, wrong in (
        ("there is no folder of the class", set(names) - set(present)),
        ("a folder is no class that is known here:", set(present) - set(names)),
    ):
        if wrong:
            raise UserError(f"{what} {printable(min(wrong))!r}", where=printable(folder))
    return list(names)


def _join(
    names: list[str], found: dict[str, Found]
) -> tuple[list[str], list[tuple[int, int]], np.ndarray, Left]:
    paths = [path for name in names for path in found[name].paths]
    stamps = [stamp for name in names for stamp in found[name].stamps]
    labels = np.repeat(np.arange(len(names)), [len(found[name].paths) for name in names]).astype(np.int64)
    return paths, stamps, labels, sum((found[name].left for name in names), Left())
