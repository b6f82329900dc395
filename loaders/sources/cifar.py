"""CIFAR-10 and CIFAR-100, the official "python version": the archive or the unpacked folder.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Every file is compared with the
md5 of the official one before it is read.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastdrpl.loaders.archives import Limits, walk
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.pickles import PickledArray, read_plain
from fastdrpl.loaders.sources.source import OpenedSource, Part, Piece

Triple = tuple[float, float, float]
LIMITS = Limits(members=100, nbytes=400 << 20)  # the larger archive holds 9 members and 187 MB
PIECE = 170  # images handed on at a time: they fit in the processor's cache


@dataclass(frozen=True)
class Official:
    """What the official release looks like. `md5` maps file names to digests, in row order."""

    folder: str
    archive: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    names_key: bytes
    label_key: bytes
    classes: int
    coarse_classes: int  # 0: none
    rows: tuple[int, int]  # training, test
    mean: Triple
    std: Triple


OFFICIAL = {
    "cifar10": Official(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        names_key=b"label_names",
        label_key=b"labels",
        classes=10,
        coarse_classes=0,
        rows=(50_000, 10_000),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "cifar100": Official(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        names_key=b"fine_label_names",
        label_key=b"fine_labels",
        classes=100,
        coarse_classes=20,
        rows=(50_000, 10_000),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
}


@dataclass(frozen=True)
class Batch:
    """One official file. `pixels` is (n, 3072) uint8: three colour planes of 32x32."""

    pixels: np.ndarray
    labels: np.ndarray  # (n,) int64
    coarse: np.ndarray | None  # (n,) int64


def open_cifar(kind: str, source: Path) -> OpenedSource:
    """Find the files, check every md5 and every label. Raises UserError (not found) or DataError."""
    official = OFFICIAL[kind]
    where, openers = _find(source, official)
    digests = official.train | official.test | official.meta
    with ThreadPoolExecutor(2) as pool:  # hashing releases the interpreter lock
        checks = {
            name: pool.submit(_check_md5, openers[name], where, name, digests[name]) for name in digests
        }
        for check in checks.values():
            check.result()
    labels = {}
    for name in official.train | official.test:
        batch = read_batch(openers[name], official, f"{where}/{name}")
        labels[name] = (batch.labels, batch.coarse)
    meta_name = next(iter(official.meta))
    with closing(openers[meta_name]()) as file:
        meta = _dictionary(read_plain(file, where=f"{where}/{meta_name}"), f"{where}/{meta_name}")
    class_names = _names(meta, official.names_key, official.classes, f"{where}/{meta_name}")
    superclass, superclass_names = None, None
    if official.coarse_classes:
        superclass = _superclass(list(labels.values()), official, str(where))
        superclass_names = _names(
            meta, b"coarse_label_names", official.coarse_classes, f"{where}/{meta_name}"
        )
    parts = {}
    for split, names, rows in zip(
        ("train", "test"), (official.train, official.test), official.rows, strict=True
    ):
        label = np.concatenate([labels[name][0] for name in names])
        if len(label) != rows:
            raise DataError(f"{len(label)} {split} images, wanted {rows}", where=str(where))
        parts[split] = Part(label, None, _reader(list(names), openers, where, official))
    return OpenedSource(
        kind=kind,
        name=kind,
        fingerprint=hashlib.sha256("\n".join(digests.values()).encode()).hexdigest(),
        class_names=class_names,
        superclass=superclass,
        superclass_names=superclass_names,
        mean=official.mean,
        std=official.std,
        flip=True,
        pad=4,
        height=32,
        width=32,
        parts=parts,
    )


def read_batch(opener: Callable[[], BinaryIO], official: Official, where: str) -> Batch:
    """One official file, checked. Raises DataError where pixels and labels do not fit."""
    with closing(opener()) as file:
        content = _dictionary(read_plain(file, where=where), where)
    try:
        array = content[b"data"]
        if not isinstance(array, PickledArray):
            raise ValueError("`data` is no array")
        pixels = array.unpack()
        labels = _labels(content[official.label_key], official.classes)
        coarse = (
            _labels(content[b"coarse_labels"], official.coarse_classes) if official.coarse_classes else None
        )
        if pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise ValueError(f"pixels of shape {pixels.shape}, wanted (n, 3072)")
        if len(labels) != len(pixels) or (coarse is not None and len(coarse) != len(pixels)):
            raise ValueError(f"{len(pixels)} images but {len(labels)} labels")
    except KeyError as error:
        raise _damaged(f"no {error} in it", where) from None
    except (ValueError, OverflowError) as error:
        raise _damaged(str(error), where) from None
    return Batch(pixels, labels, coarse)


def _reader(
    names: list[str], openers: dict[str, Callable[[], BinaryIO]], where: Path, official: Official
) -> Callable[[int], Iterator[Piece]]:
    def read(start: int) -> Iterator[Piece]:
        if start:
            raise ValueError("these files are read from their beginning")
        for name in names:
            pixels = read_batch(openers[name], official, f"{where}/{name}").pixels
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for first in range(0, len(images), PIECE):
                yield Piece(images[first : first + PIECE], [])

    return read


def _labels(values: Any, classes: int) -> np.ndarray:
    if not (isinstance(values, list) and all(type(value) is int for value in values)):
        raise ValueError("labels that are no list of whole numbers")
    labels = np.asarray(values, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]} of image {wrong[0]} is not in 0..{classes - 1}")
    return labels


def _superclass(
    labels: list[tuple[np.ndarray, np.ndarray | None]], official: Official, where: str
) -> tuple[int, ...]:
    """The superclass of each class, from the two labels of every image."""
    table = np.full(official.classes, -1, np.int64)
    for fine, coarse in labels:
        if coarse is not None:
            table[fine] = np.where(table[fine] == -1, coarse, table[fine])
            if (table[fine] != coarse).any():
                raise _damaged("a class lies in two superclasses", where)
    if (table < 0).any():
        raise _damaged("a class has no superclass", where)
    return tuple(table.tolist())


def _names(meta: dict[Any, Any], key: bytes, count: int, where: str) -> tuple[str, ...]:
    names = meta.get(key)
    if not (isinstance(names, list) and len(names) == count and all(isinstance(n, bytes) for n in names)):
        raise _damaged(f"it does not hold {count} class names", where)
    return tuple(name.decode("utf-8", "backslashreplace") for name in names)


def _dictionary(content: Any, where: str) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise _damaged("it holds no table", where)
    return content


def _damaged(what: str, where: str) -> DataError:
    return DataError(f"a CIFAR file is damaged: {what}", where=where, fix="download it again")


def _check_md5(opener: Callable[[], BinaryIO], where: Path, name: str, wanted: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with closing(opener()) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise DataError(
            f"{name} is not the official file: its md5 is {digest.hexdigest()}, wanted {wanted}",
            where=str(where),
            fix="download it again; it may have been cut",
        )


def _find(source: Path, official: Official) -> tuple[Path, dict[str, Callable[[], BinaryIO]]]:
    """The place of the official files and a function that opens each: unpacked files before the archive."""
    names = [*official.train, *official.test, *official.meta]
    if source.is_file():
        return source, _open_archive(source, official, names)
    for folder in (source, source / official.folder):
        present = [name for name in names if (folder / name).is_file()]
        if len(present) == len(names):
            return folder, {name: _opener(folder / name) for name in names}
        if present and folder.name == official.folder:
            missing = ", ".join(name for name in names if name not in present)
            raise UserError(f"not all files are here; missing: {missing}", where=str(folder))
    if (source / official.archive).is_file():
        return source / official.archive, _open_archive(source / official.archive, official, names)
    raise UserError(
        f"neither the folder {official.folder} nor the archive {official.archive} is here",
        where=str(source),
        fix="give --source the archive, the unpacked folder, or the folder that holds one of them",
    )


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: open(path, "rb")


def _memory(data: bytes) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(data)


def _open_archive(path: Path, official: Official, names: list[str]) -> dict[str, Callable[[], BinaryIO]]:
    """The official files of an archive, in memory; nothing is unpacked to the disk, all else is skipped."""
    wanted = {f"{official.folder}/{name}": name for name in names}
    found: dict[str, Callable[[], BinaryIO]] = {}
    for member in walk(path, LIMITS, wanted=wanted):
        found[wanted[member.name]] = _memory(member.read_whole())
    if len(found) < len(names):
        missing = ", ".join(name for name in names if name not in found)
        raise DataError(f"files are missing in the archive: {missing}", where=str(path))
    return found
