"""ImageNet32 and ImageNet64: the published batch files, or full-size photos made small.

Chrabaszcz et al., "A Downsampled Variant of ImageNet", arXiv 1707.08819. The labels 1..1000 of the batch files
count the classes as `map_clsloc.txt` of the ILSVRC development kit does; class k here is its line k + 1.
"""

import csv
import dataclasses
import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from fastdrpl.loaders.archives import Limits, damage_named, list_zip
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources.imagenet_batches import CLASSES, Batch, Place, scan_batch
from fastdrpl.loaders.sources.imagenet_photos import WNID, check_validation, find_photos
from fastdrpl.loaders.sources.source import IMAGENET_MEAN, IMAGENET_STD, OpenedSource, Part, Piece
from fastdrpl.loaders.spawning import cores

SIDES = {"imagenet32": 32, "imagenet64": 64}
PUBLISHED = (1_281_167, 50_000)  # training and validation images
TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
VAL = "val_data"
OUTER = Limits(members=10_000, nbytes=1 << 36)
LARGEST_LIST = 1 << 20  # bytes of map_clsloc.txt; the real one has 27,000
SUBSET = "add --subset if you mean to use a part of the images"


@dataclasses.dataclass
class Found:
    """What lies in a source: batch files by name, and class lists."""

    pickles: dict[str, Place]
    npz: dict[str, Place]
    zips: list[Path]
    lists: list[Path]


def open_imagenet_small(
    kind: str,
    source: Path,
    *,
    subset: bool,
    store: Literal["raw", "jpeg"] = "raw",
    quality: int = 95,
    workers: int = 0,
    rows: tuple[int, int] = PUBLISHED,
) -> OpenedSource:
    """Find the files in any of the layouts, and check counts, labels and the order of the classes.

    `rows` are the images of the whole set; with `subset` there may be fewer. Raises UserError (not found, or
    layouts mixed) or DataError (damaged, or not what was published).
    """
    if not source.is_dir():
        raise UserError("the source is no folder", where=str(source), fix="give --source FOLDER")
    photos, found = find_photos(source), _search(source)
    if photos is not None:
        return _open_photos(kind, source, photos, found, subset, store, quality, workers, rows)
    _check_lists(found.lists)
    places, npz = _choose(found, source, subset)
    zipped = any(place.member is not None for place in places.values())
    with ThreadPoolExecutor(cores() if zipped else 1) as pool:  # unpacking releases the interpreter lock
        scanned = list(pool.map(lambda place: scan_batch(place, npz=npz), places.values()))
    batches = dict(zip(places, scanned, strict=True))
    _check_different(batches)
    _check_side(batches, kind, source)
    lists = {"train": [batches[name] for name in TRAIN if name in batches], "test": [batches[VAL]]}
    parts = {
        split: Part(np.concatenate([batch.labels for batch in of]), None, _reader(of, SIDES[kind]))
        for split, of in lists.items()
    }
    notes = [f"Layout: {len(lists['train'])} + 1 published batch files, {'npz' if npz else 'pickled'}."]
    if zipped:
        notes.append("They are read inside the downloaded zips; unpacked files are read faster.")
    notes += _check_counts(parts, rows, subset, source)
    digest = hashlib.sha256(repr([(name, batch.print) for name, batch in batches.items()]).encode())
    return OpenedSource(
        kind=kind,
        name=kind,
        fingerprint=digest.hexdigest(),
        class_names=class_order(),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        pad=SIDES[kind] // 8,
        height=SIDES[kind],
        width=SIDES[kind],
        parts=parts,
        journal=True,
        may_lack_classes=subset,
        notes=tuple(notes),
    )


@cache
def class_order() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes: entry k is the class of the label k + 1 in the published files."""
    with open(Path(__file__).with_name("imagenet_classes.csv"), newline="", encoding="ascii") as file:
        return tuple(row["wnid"] for row in csv.DictReader(file))


def _search(source: Path) -> Found:
    """Batch files, zips and class lists in a folder and up to two folders below it."""
    found = Found({}, {}, [], [])
    waiting = [(source, 0)]
    while waiting:
        here, depth = waiting.pop()
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            path, stem = Path(entry.path), entry.name.removesuffix(".npz")
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth < 2 and not WNID.fullmatch(entry.name):
                    waiting.append((path, depth + 1))
            elif stem in TRAIN or stem == VAL:
                _add(found, entry.name, Place(path, size=entry.stat().st_size))
            elif re.fullmatch(r"(?i).*imagenet.*\.zip", entry.name):
                found.zips.append(path)
            elif entry.name == "map_clsloc.txt":
                found.lists.append(path)
    return found


def _add(found: Found, name: str, place: Place) -> None:
    stem = name.removesuffix(".npz")
    same = found.npz if name.endswith(".npz") else found.pickles
    if stem in same:
        raise UserError(
            f"{name} is here twice",
            where=f"{same[stem]} and {place}",
            fix="give --source a folder that holds the files of one size once",
        )
    same[stem] = place


def _choose(found: Found, source: Path, subset: bool) -> tuple[dict[str, Place], bool]:
    """The files to read, by name in row order, and whether they are npz."""
    if not _complete(found.pickles) and not _complete(found.npz):
        inside = Found({}, {}, [], [])
        for path in found.zips:
            with damage_named(str(path)), zipfile.ZipFile(path) as archive:
                for info in list_zip(archive, OUTER, str(path), path.stat().st_size):
                    name = info.filename.rpartition("/")[2]
                    if name.removesuffix(".npz") in (*TRAIN, VAL):
                        _add(inside, name, Place(path, info.filename, info.CRC, info.file_size))
        found = Found(inside.pickles | found.pickles, inside.npz | found.npz, found.zips, found.lists)
    if found.pickles and found.npz:
        first, second = next(iter(found.pickles.values())), next(iter(found.npz.values()))
        raise UserError(
            "both published layouts are here, pickled and npz",
            where=f"{first} and {second}",
            fix="give --source a folder that holds one of them",
        )
    chosen = found.pickles or found.npz
    if not chosen:
        raise UserError(
            f"no {TRAIN[0]} ... {TRAIN[-1]} and {VAL} here (pickled or .npz), no zips with them, and no photos",
            where=str(source),
            fix="give --source the folder of the batch files, or of train/<WordNet id>/* and val/<WordNet id>/*",
        )
    missing = [name for name in (*TRAIN, VAL) if name not in chosen]
    if missing and not (subset and VAL in chosen and len(chosen) > 1):
        raise UserError(f"batch files are missing: {', '.join(missing)}", where=str(source), fix=SUBSET)
    return {name: chosen[name] for name in (*TRAIN, VAL) if name in chosen}, bool(found.npz)


def _complete(places: dict[str, Place]) -> bool:
    return len(places) == len(TRAIN) + 1


def _check_different(batches: dict[str, Batch]) -> None:
    name_of: dict[str, str] = {}
    for name, batch in batches.items():
        other = name_of.setdefault(batch.print, name)
        if other != name:
            raise DataError(
                f"{other} and {name} hold the same images",
                where=f"{batches[other].place} and {batch.place}",
                fix="one is a copy of the other: unpack or download it again",
            )


def _check_side(batches: dict[str, Batch], kind: str, source: Path) -> None:
    sides = {3 * side * side: f"{side}x{side}" for side in SIDES.values()}
    seen: dict[int, Batch] = {}
    for batch in batches.values():
        seen.setdefault(batch.row_bytes, batch)
    if len(seen) > 1:
        shown = "; ".join(f"{sides.get(n, f'{n} bytes')} in {batch.place}" for n, batch in seen.items())
        raise UserError(
            f"files of several image sizes: {shown}",
            where=str(source),
            fix="give --source a folder that holds the files of one size",
        )
    ((row_bytes, batch),) = seen.items()
    if row_bytes != 3 * SIDES[kind] ** 2:
        other = [name for name, side in SIDES.items() if row_bytes == 3 * side * side]
        raise UserError(
            f"images of {sides.get(row_bytes, f'{row_bytes} bytes')}, wanted {SIDES[kind]}x{SIDES[kind]}",
            where=str(batch.place),
            fix=f"run `fastdrpl prepare {other[0]}`" if other else "give --source the published files",
        )


def _check_counts(parts: dict[str, Part], rows: tuple[int, int], subset: bool, source: Path) -> list[str]:
    seen = tuple(len(parts[split].labels) if split in parts else 0 for split in ("train", "test"))
    text = f"{seen[0]:,} training and {seen[1]:,} validation images; the whole set has {rows[0]:,} and {rows[1]:,}"
    if seen == rows:
        return []
    if not subset or seen[0] > rows[0] or seen[1] > rows[1]:
        fix = SUBSET if seen[0] <= rows[0] and seen[1] <= rows[1] else "give --source the published files"
        raise DataError(text, where=str(source), fix=fix)
    return [f"A subset: {text}."]


def _check_lists(lists: list[Path]) -> None:
    """Compare lists of the classes that lie beside the data with ours. Raises DataError."""
    for path in lists:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file.read(LARGEST_LIST).splitlines() if line.strip()]
        seen = {int(line[1]): line[0] for line in lines if len(line) > 1 and line[1].isdecimal()}
        ours = dict(enumerate(class_order(), start=1))
        wrong = [number for number in ours if seen.get(number) != ours[number]]
        if wrong or len(seen) != CLASSES:
            number = wrong[0] if wrong else CLASSES + 1
            raise DataError(
                f"another class order: its class {number} is {seen.get(number)}, "
                f"but in ImageNet32 and ImageNet64 it is {ours.get(number)}",
                where=str(path),
                fix="use the data that belong to this list, or remove the list if it belongs to other data",
            )


def _reader(batches: list[Batch], side: int) -> Callable[[int], Iterator[Piece]]:
    def read(start: int) -> Iterator[Piece]:
        for batch in batches:
            if start < len(batch.labels):
                for planes in batch.read(start):
                    yield Piece(planes.reshape(-1, 3, side, side).transpose(0, 2, 3, 1), [])
            start = max(0, start - len(batch.labels))

    return read


def _open_photos(
    kind: str,
    source: Path,
    photos: Path,
    found: Found,
    subset: bool,
    store: Literal["raw", "jpeg"],
    quality: int,
    workers: int,
    rows: tuple[int, int],
) -> OpenedSource:
    """Full-size photos: train/<WordNet id>/* and val/<WordNet id>/* in the folder `photos`."""
    from fastdrpl.loaders.sources.folder import open_folder
    from fastdrpl.loaders.sources.pictures import Target  # needs Pillow

    below = found if photos == source else _search(photos)
    files = [*found.pickles.values(), *found.npz.values(), *below.pickles.values(), *below.npz.values()]
    if files:
        raise UserError(
            "both photos and a batch file are here",
            where=f"{photos / 'train'} and {files[0]}",
            fix="give --source a folder that holds one of them",
        )
    _check_lists(found.lists)
    check_validation(photos)
    order = class_order()
    present = {entry.name for entry in os.scandir(photos / "train") if entry.is_dir()}
    names = [name for name in order if name in present]
    if len(names) < len(order) and not subset:
        missing = [name for name in order if name not in present]
        raise UserError(
            f"{len(missing)} of the 1000 classes have no folder, the first of them {missing[0]}",
            where=str(photos / "train"),
            fix=SUBSET,
        )
    opened = open_folder(
        photos,
        target=Target(SIDES[kind], store, quality, "box"),
        test_fraction=0.0,
        classes=None,
        workers=workers,
        seed=0,
        names=names,
        tests=("val",),  # `test`, where it is there, is the set whose labels were never published
    )
    label = np.array([order.index(name) for name in names], dtype=np.int64)
    parts = {
        split: dataclasses.replace(part, labels=label[part.labels]) for split, part in opened.parts.items()
    }
    notes = [
        "Layout: full-size photos, resized with the box filter; the published files may differ in some pixels.",
        *_check_counts(parts, rows, subset, source),
    ]
    return dataclasses.replace(
        opened,
        kind=kind,
        name=kind,
        fingerprint=hashlib.sha256(f"{kind} {opened.fingerprint}".encode()).hexdigest(),
        class_names=order,
        pad=SIDES[kind] // 8,
        parts=parts,
        labels_checked=True,
        may_lack_classes=subset,
        notes=(*notes, *opened.notes),
    )
