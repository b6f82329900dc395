"""Which folder holds the training classes and which the test set. What is a guess is said, what is unclear refused."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.photos import refuse_fraction
from fastdrpl.loaders.sources.split_names import TEST, TRAIN, VAL, by_split, split_of
from fastdrpl.loaders.sources.walking import WARNING, describe_lost, list_images, subfolders

_PARTS = frozenset(("images", "labels", "annotations", "masks", "ann", "img"))  # of sets for detection
_SHOWN = 5  # names that a line lists
_ONE_EACH = "put the images of each class into a folder of its own"


class Layout(NamedTuple):
    """The folder of the training classes, that of the test classes if there is one, lines for the user."""

    train: str
    test: str | None
    notes: list[str]


def find_layout(source: Path, test_fraction: float, tests: Sequence[str] = (TEST, VAL)) -> Layout:
    """Find the split folders of a source by the names that people use, and name what is not used.

    `tests`: the splits that may be the test set; the first of them that has class folders is taken. Raises UserError
    for a source whose folders are splits without a training set, or that has two folders of one split.
    """
    if not source.is_dir():
        raise UserError(
            "the source is no folder",
            where=printable(str(source)),
            fix="give --source a folder, a zip or a tar",
        )
    notes: list[str] = []
    root = _look_through(str(source), notes)
    names = subfolders(root)
    found = by_split(names)
    if not any(subfolders(os.path.join(root, name)) for name in found.get(TRAIN, [])):
        _check_classes(root, names, found, notes)
        _name_loose(root, notes)
        return Layout(root, None, notes)
    for split, folders in found.items():
        if len(folders) > 1:
            raise UserError(
                f"two folders are named as one split ({split}): {_listed(folders)}",
                where=printable(root),
                fix="join them, or move one of them away",
            )
    place_of = {split: os.path.join(root, folders[0]) for split, folders in found.items()}
    with_classes = [split for split in tests if split in place_of and subfolders(place_of[split])]
    test = place_of[with_classes[0]] if with_classes else None
    if test:
        refuse_fraction(test_fraction, where=printable(test))
        notes.append(f"{printable(os.path.basename(test))}/ is the test set.")
    for split, place in place_of.items():
        if split != TRAIN and place != test:
            notes.append(_unused(split, place, tests))
    others = [name for name in names if split_of(name) is None]
    if others:
        notes.append(f"{WARNING}folders that are not used: {_listed(others)}")
    for place in (root, place_of[TRAIN], *([test] if test else [])):
        _name_loose(place, notes)
    return Layout(place_of[TRAIN], test, notes)


def check_class_folders(folder: str, names: Sequence[str]) -> None:
    """Raises UserError where the folders are no classes: too few, parts of a detection set, or split inside."""
    if {name.casefold() for name in names} <= _PARTS and any(name.casefold() == "images" for name in names):
        raise UserError(
            f"this looks like a data set for detection or segmentation: {_listed(names)}",
            where=printable(folder),
            fix="a classifier needs one label an image: " + _ONE_EACH,
        )
    if len(names) < 2:
        raise UserError(
            f"{len(names)} class folders here, wanted two or more{_instead(folder)}",
            where=printable(folder),
            fix=_ONE_EACH,
        )
    for name in names:
        inside = by_split(subfolders(os.path.join(folder, name)))
        if TRAIN in inside and len(inside) > 1:
            raise UserError(
                f"the class folder {printable(name)!r} is itself divided into "
                f"{_listed([place for places in inside.values() for place in places])}",
                where=printable(folder),
                fix="splits come first and classes inside them: train/<class>/*, test/<class>/*",
            )


def _instead(folder: str) -> str:
    """What lies in a folder that should hold class folders."""
    if os.path.isfile(os.path.join(folder, "metadata.csv")):
        return "; metadata.csv lies here: that is for kind table"
    loose = len(list_images(folder, deep=False).paths)
    return f"; {loose:,} images lie here in no folder" if loose else ""


def _look_through(folder: str, notes: list[str]) -> str:
    """Go into a folder as long as all it holds is one other folder of folders."""
    here = folder
    while True:
        inside = subfolders(here)
        if len(inside) != 1 or split_of(inside[0]) or not subfolders(os.path.join(here, inside[0])):
            break
        here = os.path.join(here, inside[0])
    if here != folder:
        notes.append(f"{printable(os.path.relpath(here, folder))}/ is the only folder here: looked inside.")
        _name_loose(folder, notes)
    return here


def _check_classes(root: str, names: list[str], found: dict[str, list[str]], notes: list[str]) -> None:
    """Refuse folders that are splits though there is no training set; name those that are taken for classes."""
    words = [name for name in names if split_of(name)]
    if words and len(words) == len(names):
        what = "there is no training folder" if TRAIN not in found else "they hold no class folders"
        raise UserError(
            f"the folders are named as splits, not as classes ({_listed(names)}), and {what}",
            where=printable(root),
            fix="wanted train/<class>/* and perhaps test/<class>/*, or <class>/* alone",
        )
    for name in words:
        inside = set(subfolders(os.path.join(root, name))) & set(names)
        if inside:
            raise UserError(
                f"the folder {printable(name)!r} holds classes that lie beside it as well ({_listed(sorted(inside))})",
                where=printable(root),
                fix="move the classes for training into a folder train/",
            )
    if words:
        notes.append(f"{WARNING}named as a split, but taken as a class: {_listed(words)}")


def _unused(split: str, place: str, tests: Sequence[str]) -> str:
    """A line on a folder of a split that is not used: how many images are held out, and why."""
    name, count = printable(os.path.basename(place)), len(list_images(place).paths)
    if split in tests and not subfolders(place):
        return f"{WARNING}{name}/ is not used ({count:,} images): it has no class folders, so no labels."
    return f"{name}/ is not used ({count:,} images)."


def _name_loose(folder: str, notes: list[str]) -> None:
    """Lines on images that lie in no class folder, and on links to folders that are not there."""
    found, name = list_images(folder, deep=False), printable(os.path.basename(os.path.abspath(folder)))
    if found.paths:
        first = printable(os.path.basename(found.paths[0]))
        notes.append(
            f"{WARNING}{len(found.paths):,} images of {name}/ lie in no class folder and are not used, "
            f"{first} for one"
        )
    notes += describe_lost(found.left, folder)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{printable(name)}/" for name in names[:_SHOWN]) + more
