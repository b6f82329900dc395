"""WebVision 1.0: photos that Google and Flickr returned for 1,000 words, with whatever label they were searched by.

Li et al., "WebVision Database: Visual Learning and Understanding from Web Data", 2017. The paper of this method
takes all images of the first 50 classes, resized to 256x256 (arXiv 1912.08741, section IV-C).
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources.photos import Listing, list_files, open_photos, stamp
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.source import OpenedSource

SYNSETS = "info/synsets.txt"
TRAIN_LISTS = {"google": "info/train_filelist_google.txt", "flickr": "info/train_filelist_flickr.txt"}
VAL_LIST = "info/val_filelist.txt"
VAL_FOLDERS = ("val_images", "val_images_256")  # of the full-size release and of the resized one
CLASSES = 1000
UNPACK = "give --source the folder that holds info/, google/ and flickr/; unpack the archives there (tar -xf)"


class Listed(NamedTuple):
    """The lines of a file list that are of the first classes, and how many lines it has."""

    paths: list[str]
    labels: list[int]
    lines: list[int]  # line number of each, from 1
    total: int


def open_webvision(
    source: Path, *, target: Target, first: int, google_only: bool, workers: int
) -> OpenedSource:
    """Find the lists and the images of the first `first` classes.

    Raises UserError (a list or a folder is not there) or DataError (a list that is damaged or contradicts itself).
    """
    class_names, notes = _read_synsets(source, first)
    paths: list[str] = []
    labels: list[int] = []
    for origin, name in TRAIN_LISTS.items():
        if origin == "google" or not google_only:
            listed = _read_list(source, name, first, len(class_names))
            _check_folders(source, listed)
            notes.append(_describe(name, listed, first))
            paths += listed.paths
            labels += listed.labels
    paths, labels, more = _drop_repeated(paths, labels)
    notes += more
    listed = _read_list(source, VAL_LIST, first, len(class_names))
    notes.append(_describe(VAL_LIST, listed, first))
    if not listed.paths:
        raise DataError(
            f"no image of the first {first} classes in the list", where=printable(str(source / VAL_LIST))
        )
    folder = _val_folder(source)
    val_paths, val_labels = _check_val(source, listed)
    if len(val_paths) < len(listed.paths):
        notes.append(f"{len(listed.paths) - len(val_paths):,} test images are listed twice and count once.")
    lost = first - len(set(val_labels))
    if lost:
        notes.append(f"{lost:,} of the first {first} classes have no validation image.")
    notes.append(f"training set: {len(paths):,} images; test set: {len(val_paths):,} images of {folder}/")
    paths_in_source = paths + [f"{folder}/{path}" for path in val_paths]
    files = [os.path.join(source, path) for path in paths_in_source]
    listing = Listing(
        labels=np.array(labels + val_labels, np.int64),
        ids=[storable(path) for path in paths_in_source],
        fetch=list_files(files),
        stamps=[stamp(path) for path in files],
    )
    splits = {"train": np.arange(len(paths)), "test": len(paths) + np.arange(len(val_paths))}
    return open_photos(
        listing,
        splits,
        kind="webvision",
        name="webvision",
        where=printable(str(source)),
        class_names=class_names[:first],
        target=target,
        workers=workers,
        notes=notes,
    )


def _read_lines(source: Path, name: str) -> list[str]:
    try:
        return os.fsdecode((source / name).read_bytes()).rstrip().split("\n")
    except OSError as error:
        packed = sorted(path.name for path in source.glob("*.tar*"))
        raise UserError(
            f"cannot read {name}: {error.strerror}" + (f"; {packed[0]} is still packed" if packed else ""),
            where=printable(str(source)),
            fix=UNPACK,
        ) from None


def _read_synsets(source: Path, first: int) -> tuple[list[str], list[str]]:
    """The WordNet ids of all classes in order, and what to tell the user about them."""
    if not source.is_dir():
        raise UserError("the source is no folder", where=printable(str(source)), fix=UNPACK)
    names = []
    for number, line in enumerate(_read_lines(source, SYNSETS), start=1):
        name = line.split(" ", 1)[0].rstrip()
        if not (len(name) == 9 and name[0] == "n" and name[1:].isascii() and name[1:].isdigit()):
            raise _damaged(source, SYNSETS, number, f"{printable(line)!r} does not begin with a WordNet id")
        names.append(name)
    if len(set(names)) < len(names):
        raise DataError("a class is listed twice", where=printable(str(source / SYNSETS)))
    if len(names) < first:
        raise UserError(
            f"{first} classes are asked for, {SYNSETS} has {len(names):,}",
            where=printable(str(source / SYNSETS)),
            fix=f"--first {len(names)}" if len(names) > 1 else None,
        )
    notes = []
    if len(names) != CLASSES:
        notes.append(f"{SYNSETS} has {len(names):,} classes; the published one has {CLASSES:,}.")
    if names != sorted(names):
        notes.append(f"{SYNSETS} is not sorted; the published one is. Its own order is used.")
    return names, notes


def _read_list(source: Path, name: str, first: int, classes: int) -> Listed:
    """The images of the first classes in a list of lines `path class`. Raises DataError at a line that is wrong."""
    paths, labels, numbers, number = [], [], [], 0
    for number, line in enumerate(_read_lines(source, name), start=1):
        path, _, text = line.rstrip().rpartition(" ")
        if not (path and text.isascii() and text.isdigit()):
            raise _damaged(
                source, name, number, f"{printable(line)[:100]!r} is not a path and a class number"
            )
        label = int(text) if len(text) < 10 else classes
        if label >= classes:
            raise _damaged(source, name, number, f"class {text[:20]} is not in 0..{classes - 1}")
        if path[0] == "/" or (".." in path and ".." in path.split("/")) or "\0" in path:
            raise _damaged(source, name, number, f"the path leaves the source folder: {printable(path)!r}")
        if label < first:
            plain = "//" not in path and "./" not in path
            paths.append(path if plain else os.path.normpath(path))  # one image, one name
            labels.append(label)
            numbers.append(number)
    return Listed(paths, labels, numbers, number)


def _describe(name: str, listed: Listed, first: int) -> str:
    return f"{name}: {listed.total:,} images listed, {len(listed.paths):,} of the first {first} classes"


def _check_folders(source: Path, listed: Listed) -> None:
    """Refuse a source where a whole folder of the list is not there: only single images may be missing."""
    for top in sorted({path.split("/", 1)[0] for path in listed.paths if "/" in path}):
        if not (source / top).is_dir():
            packed = sorted(path.name for path in source.glob(f"{top}*.tar*"))
            raise UserError(
                f"the folder {printable(top)} is not here" + (f", but {packed[0]} is" if packed else ""),
                where=printable(str(source)),
                fix=UNPACK,
            )


def _val_folder(source: Path) -> str:
    for name in VAL_FOLDERS:
        if (source / name).is_dir():
            return name
    packed = sorted(path.name for path in source.glob("val_images*.tar*"))
    raise UserError(
        f"neither {VAL_FOLDERS[0]} nor {VAL_FOLDERS[1]} is here"
        + (f", but {packed[0]} is" if packed else ""),
        where=printable(str(source)),
        fix=UNPACK,
    )


def _drop_repeated(paths: list[str], labels: list[int]) -> tuple[list[str], list[int], list[str]]:
    """Each (image, class) once, and what to tell the user.

    An image that is listed under two classes stays twice: neither label is known to be the right one, and wrong
    labels are what the training is there to find.
    """
    pairs = list(dict.fromkeys(zip(paths, labels, strict=True)))
    notes = []
    if len(pairs) < len(paths):
        notes.append(
            f"{len(paths) - len(pairs):,} images are listed twice with the same class and count once."
        )
    contradictions = len(pairs) - len({path for path, _ in pairs})
    if contradictions:
        notes.append(
            f"{contradictions:,} images are listed with another class again and keep a row for each."
        )
    return [path for path, _ in pairs], [label for _, label in pairs], notes


def _check_val(source: Path, listed: Listed) -> tuple[list[str], list[int]]:
    """Each test image once. Raises DataError where one has two classes: these labels are vouched for."""
    label_of: dict[str, int] = {}
    for path, label, number in zip(listed.paths, listed.labels, listed.lines, strict=True):
        if label_of.setdefault(path, label) != label:
            what = f"{printable(path)} has class {label} here and class {label_of[path]} before"
            raise _damaged(source, VAL_LIST, number, what)
    return list(label_of), list(label_of.values())


def _damaged(source: Path, name: str, line: int, what: str) -> DataError:
    return DataError(
        what,
        where=f"{printable(str(source / name))}, line {line}",
        fix="download the list again, or repair it",
    )
