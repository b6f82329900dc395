"""A corrected copy of an image folder: every image in the folder of its class, the dropped ones left out."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastdrpl.errors import DataError, UserError
from fastdrpl.files import explain_write_error
from fastdrpl.fixing.where import Prepared
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources.class_names import composed
from fastdrpl.loaders.sources.folder_layout import find_layout
from fastdrpl.loaders.sources.walking import list_images, subfolders
from fastdrpl.loaders.unfinished import hold_lock, publish, remove
from fastdrpl.loaders.unpacking import descend

_UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
_NO_LINK = "give --link copy, which needs the space, or --link symbolic, which needs the source to stay"


@dataclass(frozen=True)
class Plan:
    """What a corrected copy of a folder will hold."""

    root: Path  # of the source
    places: dict[str, str]  # path of an image below the root -> below the copy
    files: dict[str, str]  # the same by the file names that a run has
    moved: int  # images that are in another class
    renamed: int  # those of them whose name was taken there
    dropped: int
    unknown: int  # images that the run does not know, such as test images: as they are
    other: int  # files that are no images: not in the copy
    empty: tuple[str, ...]  # classes that have no training image any more


def plan_folder(prepared: Prepared, final: Mapping[str, str | None]) -> Plan:
    """Where each image goes. `final`: file -> class, None where it is left out; other images stay where they are.

    Writes nothing. Raises `UserError` or `DataError` where the source is not the one that was prepared.
    """
    root = _root(prepared.source, final)
    found = list_images(str(root))
    below = len(os.path.join(root, ""))
    paths = {storable(path[below:]): path[below:] for path in found.paths}
    lost = [file for file in final if file not in paths]
    if lost:
        raise DataError(
            f"{len(lost):,} of {len(final):,} images of the run are not in the source, {printable(lost[0])!r} for one",
            where=printable(str(root)),
            fix="say with --source where the images are; what was renamed since must be prepared and trained again",
        )
    train = find_layout(root, 0.0).train
    start, folder_of = os.path.join(train, "")[below:], _class_folders(train)
    places: dict[str, str] = {}
    moving: list[tuple[str, str]] = []
    for file, path in paths.items():
        name = final.get(file, "")
        folder, _, rest = path.removeprefix(start).partition(os.sep)
        if name and _class_of(folder) != name:
            if name not in folder_of:
                raise DataError(
                    f"the folder of the class {name!r} is gone",
                    where=printable(str(root)),
                    fix="say with --source where the folder is that was prepared",
                )
            moving.append((path, os.path.join(start, folder_of[name], rest)))
        elif name is not None:
            places[path] = path
    taken, renamed = set(places.values()), 0
    for path, wanted in sorted(moving):
        places[path] = _free(wanted, taken)
        taken.add(places[path])
        renamed += places[path] != wanted
    left = {
        _class_of(place.removeprefix(start).partition(os.sep)[0])
        for place in taken
        if place.startswith(start)
    }
    return Plan(
        root=root,
        places=places,
        files={file: storable(places[path]) for file, path in paths.items() if path in places},
        moved=len(moving),
        renamed=renamed,
        dropped=len(paths) - len(places),
        unknown=len(paths) - len(final),
        other=found.left.total,
        empty=tuple(sorted(folder_of.keys() - left)),
    )


def write_folder(out: Path, plan: Plan, link: str) -> None:
    """Make the folder `out`, whole or not at all.

    Raises `UserError` where a folder is there already, or a file cannot be linked or copied.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            "there is something here already; a folder is never overwritten",
            where=str(out),
            fix="choose another --out_folder, or remove this one",
        )
    out, put = Path(os.path.abspath(out)), _PUT[link]
    work = out.with_name(f".{out.name}.fixing")
    made: set[str] = set()
    place = out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(out):
            remove(work)
            try:
                work.mkdir()
                for source, target in plan.places.items():
                    place = work / target
                    if (folder := os.path.dirname(target)) not in made:
                        os.makedirs(work / folder, exist_ok=True)
                        made.add(folder)
                    put(os.path.join(os.path.abspath(plan.root), source), str(place))
                publish(work, out)
            finally:
                remove(work)
    except OSError as error:
        explained = explain_write_error(error, place)
        if link == "hard" and error.errno in _UNLINKABLE:
            raise UserError(explained.what, where=explained.where, fix=_NO_LINK) from error
        raise explained from error


def _hard(source: str, target: str) -> None:
    os.link(os.path.realpath(source), target)


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target)


_PUT: dict[str, Callable[[str, str], None]] = {"hard": _hard, "symbolic": os.symlink, "copy": _copy}


def _root(source: Path, final: Mapping[str, str | None]) -> Path:
    """The folder that file names begin in: the source, or the one folder in it that an archive was unpacked to."""
    if not source.is_dir():
        raise UserError(
            "the source is no folder, so there is nothing to link to",
            where=printable(str(source)),
            fix="unpack the archive, and say with --source where",
        )
    first = next(iter(final), "")
    inner = descend(source)
    return inner if not os.path.lexists(source / first) and os.path.lexists(inner / first) else source


def _class_of(folder: str) -> str:
    return printable(composed(folder))


def _class_folders(train: str) -> dict[str, str]:
    """Class -> the first folder of its name."""
    folders: dict[str, str] = {}
    for folder in subfolders(train):
        folders.setdefault(_class_of(folder), folder)
    return folders


def _free(wanted: str, taken: set[str]) -> str:
    """The path, or the first of `name~2.png`, `name~3.png`, ... that nothing has."""
    start, end = os.path.splitext(wanted)
    number, place = 2, wanted
    while place in taken:
        place, number = f"{start}~{number}{end}", number + 1
    return place
