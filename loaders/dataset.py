"""A prepared dataset, opened: the manifest `dataset.json` and one compiled file per split."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastdrpl.loaders.beton_tables import PREPARE_AGAIN, Tables, hash_file, read_tables
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.shards import Shard, deal_rows, shard_name

SCHEMA = 1  # of dataset.json; raise it when a reader of the old one would be misled
MANIFEST = "dataset.json"


@dataclass(frozen=True)
class Split:
    """One compiled file: where the bytes of each row are, and what the file says of them.

    A row is a position in the file; rows never shift. `label` is the label as downloaded.
    """

    name: str  # "train" or "test"
    path: Path  # the .beton file
    height: int  # pixels
    width: int
    store: Literal["raw", "jpeg"]  # raw: height*width*3 bytes, row-major RGB; jpeg: one JPEG file
    label: np.ndarray  # (rows,) int64
    valid: np.ndarray  # (rows,) bool: False for quarantined rows, which hold zeros
    offset: np.ndarray  # (rows,) int64: first byte of the image in the file
    nbytes: np.ndarray  # (rows,) int64
    page_size: int  # bytes, a power of two; no image crosses a page
    shards: tuple[Shard, ...] = ()  # the same images as tar shards, if it was prepared with --format shards

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Source:
    """What a dataset was prepared from."""

    kind: str  # as `fastdrpl prepare` calls it
    fingerprint: str  # sha256 over the source's files
    labels_checked: bool  # False: nobody vouches for the labels


@dataclass(frozen=True)
class Dataset:
    """A prepared folder. `fingerprint` names its content: it is part of the hash of every run."""

    path: Path
    name: str
    source: Source
    class_names: tuple[str, ...]  # class k is class_names[k]
    superclass: tuple[int, ...] | None  # of each class, where the source has such
    superclass_names: tuple[str, ...] | None
    mean: tuple[float, float, float]  # of RGB pixels in 0..1
    std: tuple[float, float, float]
    flip: bool  # whether a mirrored image keeps its label
    pad: int  # pixels of padding before a random crop; 0: the recipe crops inside the stored image
    test_may_be_wrong: bool  # test labels come from the same unchecked source as the training labels
    fingerprint: str  # sha256 in hexadecimal
    splits: dict[str, Split]

    def has(self, name: str) -> bool:
        """Whether there is a split of this name ("train" is always there)."""
        return name in self.splits

    def split(self, name: str) -> Split:
        """The split of this name. Raises UserError where there is none."""
        if name not in self.splits:
            raise UserError(
                f"the prepared dataset has no {name} split",
                where=str(self.path),
                fix="prepare it from a source with one, or with --test-fraction",
            )
        return self.splits[name]

    def ids(self, name: str) -> tuple[str, ...] | None:
        """File name of each row of a split, below the source folder; None where rows were no files.

        Bytes of a name that are not UTF-8 are written as \\xNN.
        """
        path = ids_path(self.path, name)
        if name not in self.splits or not path.exists():
            return None
        try:
            names = tuple(json.loads(line) for line in path.read_bytes().splitlines())
        except ValueError:
            names = ()
        if len(names) != len(self.splits[name]) or not all(isinstance(n, str) for n in names):
            raise _mismatch(path, f"wanted {len(self.splits[name])} file names")
        return names


def ids_path(folder: Path, split: str) -> Path:
    """Where the file names of a split are kept: one JSON string per line."""
    return folder / f"{split}.ids.jsonl"


def content_fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 over what decides the result of a run: pixels, labels, classes, normalisation."""
    keys = ("schema", "class_names", "superclass", "superclass_names", "mean", "std", "flip", "pad", "splits")
    files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".beton")}
    content = {key: manifest[key] for key in keys} | {"files": files}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_dataset(path: Path, *, verify: bool = False) -> Dataset:
    """Open a prepared folder and check it against its manifest.

    Without `verify` the size of each file and every table are checked (labels, places, not pixels); with it
    the sha256 of each file. Raises UserError where there is no dataset, DataError where it is damaged.
    """
    manifest = read_manifest(path)
    try:
        for name, entry in manifest["files"].items():
            _check_size(path / name, int(entry["bytes"]))
        if verify:
            verify_files(path, manifest)
        if content_fingerprint(manifest) != manifest["fingerprint"]:
            raise _mismatch(path / MANIFEST, "it was changed after it was written")
        splits = {name: _open_split(path, name, manifest) for name in manifest["splits"]}
        coarse, coarse_names = manifest["superclass"], manifest["superclass_names"]
        mean, std = manifest["mean"], manifest["std"]
        return Dataset(
            path=path,
            name=manifest["name"],
            source=_source(manifest["source"]),
            class_names=tuple(manifest["class_names"]),
            superclass=None if coarse is None else tuple(coarse),
            superclass_names=None if coarse_names is None else tuple(coarse_names),
            mean=(float(mean[0]), float(mean[1]), float(mean[2])),
            std=(float(std[0]), float(std[1]), float(std[2])),
            flip=bool(manifest["flip"]),
            pad=int(manifest["pad"]),
            test_may_be_wrong=bool(manifest["test_may_be_wrong"]),
            fingerprint=manifest["fingerprint"],
            splits=splits,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _mismatch(path / MANIFEST, f"a field is missing or of a wrong type ({error!r})") from None


def _source(entry: dict[str, Any]) -> Source:
    kind = entry["kind"]  # manifests written before version 0.2 do not say whether labels were checked
    return Source(kind, entry["fingerprint"], bool(entry.get("labels_checked", kind != "folder")))


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of `dataset.json` in a prepared folder. Raises UserError or DataError."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            "no prepared dataset here",
            where=str(file),
            fix="make one with `fastdrpl prepare KIND --out FOLDER`",
        ) from None
    except OSError as error:
        raise DataError(f"cannot read the dataset: {error.strerror}", where=str(file)) from None
    except (ValueError, RecursionError):
        raise _mismatch(file, "it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        seen = manifest.get("schema") if isinstance(manifest, dict) else None
        raise DataError(
            f"the prepared dataset has schema version {seen!r}, this program reads {SCHEMA}",
            where=str(file),
            fix=PREPARE_AGAIN,
        )
    return manifest


def verify_files(path: Path, manifest: dict[str, Any]) -> None:
    """Compare the sha256 of every file with the manifest. Raises DataError naming the first that differs."""
    files = manifest["files"]
    with ThreadPoolExecutor(4) as pool:
        for name, digest in zip(files, pool.map(lambda name: hash_file(path / name), files), strict=True):
            if digest != files[name]["sha256"]:
                raise _mismatch(path / name, "its sha256 is another")


def _check_size(file: Path, wanted: int) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _mismatch(file, f"{error.strerror}") from None
    if size != wanted:
        raise _mismatch(file, f"it has {size} bytes, wanted {wanted}")


def split_of(
    name: str, path: Path, tables: Tables, valid: np.ndarray, shards: tuple[Shard, ...] = ()
) -> Split:
    """A split from the tables of its file; `valid`: (rows,) bool."""
    return Split(
        name=name,
        path=path,
        height=tables.height,
        width=tables.width,
        store=tables.store,
        label=tables.label,
        valid=valid,
        offset=tables.offset,
        nbytes=tables.nbytes,
        page_size=tables.page_size,
        shards=shards,
    )


def _open_split(path: Path, name: str, manifest: dict[str, Any]) -> Split:
    entry, file = manifest["splits"][name], path / f"{name}.beton"
    tables = read_tables(file)
    if tables.sha256 != manifest["files"][file.name]["tables_sha256"]:
        raise _mismatch(file, "its tables have another sha256")
    if len(tables.label) != entry["rows"] or not _below(tables.label, len(manifest["class_names"])):
        raise _mismatch(file, "its rows or labels are others")
    quarantined = np.asarray(entry["quarantined"], dtype=np.int64)
    if not _below(quarantined, len(tables.label)):
        raise _mismatch(path / MANIFEST, "a quarantined row is outside the file")
    valid = np.ones(len(tables.label), dtype=bool)
    valid[quarantined] = False
    counts = [int(shard["samples"]) for shard in entry.get("shards", ())]
    names = [shard_name(name, number) for number in range(len(counts))]
    if names != [shard["name"] for shard in entry.get("shards", ())] or min(counts, default=1) < 1:
        raise _mismatch(path / MANIFEST, "its shards are others")
    shards = [path / shard for shard in names]
    return split_of(
        name,
        file,
        tables,
        valid,
        shards=tuple(
            Shard(shard, shard.with_suffix(".idx"), rows)
            for shard, rows in zip(shards, deal_rows(valid, counts), strict=True)
        )
        if counts
        else (),
    )


def _below(values: np.ndarray, stop: int) -> bool:
    return len(values) == 0 or bool(values.min() >= 0 and values.max() < stop)


def _mismatch(file: Path, what: str) -> DataError:
    return DataError(
        f"the prepared dataset does not match its manifest: {what}", where=str(file), fix=PREPARE_AGAIN
    )
