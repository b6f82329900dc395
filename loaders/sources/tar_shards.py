"""WebDataset: tar shards in which the members of one name, up to its first dot, are one sample.

Read in two passes: names and labels first, then the images, wherever in a shard they lie. Nothing is unpacked.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fastdrpl.loaders.archives import damage_named
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources.photos import (
    MAY_BE_WRONG,
    Listing,
    divide,
    number_labels,
    open_photos,
    processes,
    refuse_fraction,
    stamp,
)
from fastdrpl.loaders.sources.pictures import LARGEST, Place, Span, Target
from fastdrpl.loaders.sources.shard_scan import Shard, opener_of, scan
from fastdrpl.loaders.sources.source import OpenedSource
from fastdrpl.loaders.sources.split_names import split_in, split_of
from fastdrpl.loaders.sources.walking import WARNING, subfolders
from fastdrpl.loaders.spawning import cores

SHARDS = (".tar", ".tar.gz", ".tgz")
OTHERS = (".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4", ".zip")
MUCH = 1 << 28  # bytes of all shards that are worth starting processes for
SHOWN = 3  # samples that a message names


def open_webdataset(
    source: Path, *, target: Target, test_fraction: float, classes: Path | None, workers: int, seed: int
) -> OpenedSource:
    """Find the shards and scan them for labels. Raises UserError (no shards) or DataError (damaged, no label)."""
    found, notes = _find_shards(source)
    if "test" in found:
        refuse_fraction(test_fraction, where=printable(str(source)))
    shards = _scan_all([path for paths in found.values() for path in paths], workers)
    root = str(source if source.is_dir() else source.parent)
    ids = [
        storable(name + key)
        for shard in shards
        for name in [f"{os.path.relpath(shard.path, root)}/"]
        for key in shard.keys
    ]
    labels, class_names = number_labels(_known(shards, ids), classes)
    counts = ", ".join(f"{len(paths):,} for {split}ing" for split, paths in found.items())
    notes.append(f"{len(shards):,} shards ({counts}) with {len(ids):,} images")
    for what, count in (
        ("samples without an image were left out", sum(shard.without_image for shard in shards)),
        ("links and other members without content were left out", sum(shard.no_files for shard in shards)),
    ):
        if count:
            notes.append(f"{count:,} {what}.")
    if "test" in found:
        train = sum(len(shard.keys) for shard in shards[: len(found["train"])])
        splits = {"train": np.arange(train), "test": np.arange(train, len(ids))}
    else:
        splits = divide(labels, test_fraction, seed, where=printable(str(source)))
        notes += [MAY_BE_WRONG] if "test" in splits else []
    return open_photos(
        Listing(
            labels=labels,
            ids=ids,
            fetch=_fetcher(shards),
            stamps=[(stamp(shard.path), shard.offsets, shard.sizes) for shard in shards],
        ),
        splits,
        kind="webdataset",
        name=printable(source.resolve().name.split(".")[0]) or "webdataset",
        where=printable(str(source)),
        class_names=class_names,
        target=target,
        workers=workers,
        test_may_be_wrong="test" in splits and "test" not in found,
        notes=notes,
    )


def _scan_all(paths: list[str], workers: int) -> list[Shard]:
    workers = min(workers or cores(), len(paths))
    if workers < 2 or sum(os.path.getsize(path) for path in paths) < MUCH:
        return [scan(path) for path in paths]
    with processes(workers) as pool:
        return list(pool.map(scan, paths))


def _known(shards: list[Shard], ids: list[str]) -> list[str]:
    """All labels. Raises DataError where an image has none."""
    labels = [label for shard in shards for label in shard.labels]
    lost = [name for name, label in zip(ids, labels, strict=True) if label is None]
    if lost:
        more = f" and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else ""
        raise DataError(
            f"images without a label: {', '.join(map(printable, lost[:SHOWN]))}{more}",
            fix="a sample needs a member .cls, or .json with `label` or `cls`",
        )
    return [label for label in labels if label is not None]


def _find_shards(source: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The shards of "train" and perhaps "test", and what to tell the user; all are "train" where no name says it."""
    if not source.is_dir():
        if source.name.lower().endswith(SHARDS):
            return {"train": [str(source)]}, []
        raise UserError(
            "the source is no folder and no tar", where=printable(str(source)), fix=_hint([source])
        )
    by_split: dict[str, list[str]] = {}
    for path in _list_shards(source):
        by_split.setdefault(split_in(path.name) or "", []).append(str(path))
    notes = []
    for name in subfolders(str(source)):
        inside, split = _list_shards(source / name), split_of(name)
        if split:
            by_split.setdefault(split, []).extend(map(str, inside))
        elif inside:
            notes.append(f"{WARNING}the {len(inside):,} shards in {printable(name)}/ are not used.")
    by_split = {split: paths for split, paths in by_split.items() if paths}
    if not by_split:
        raise UserError(
            f"no shards here; their names end in {', '.join(SHARDS)}",
            where=printable(str(source)),
            fix=_hint(source.iterdir()),
        )
    if "" in by_split and len(by_split) > 1:
        raise UserError(
            f"some shards are named by a split and some are not: {printable(by_split[''][0])}",
            where=printable(str(source)),
            fix="let all names have one of the words train, test, val, or none; or use folders of these names",
        )
    train = by_split.get("") or by_split.get("train")
    if train is None:
        raise UserError(
            f"no shards for training, only for {', '.join(by_split)}", where=printable(str(source))
        )
    tests = [split for split in ("test", "val") if split in by_split]
    if len(tests) == 2:
        notes.append(f"`test` is the test set; `val` is not used ({len(by_split['val']):,} shards).")
    return {"train": train} | ({"test": by_split[tests[0]]} if tests else {}), notes


def _hint(paths: Iterable[Path]) -> str | None:
    packed = sorted(path.name for path in paths if path.name.lower().endswith(OTHERS))
    return f"unpack what is packed in another way first: {printable(packed[0])}" if packed else None


def _list_shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.lower().endswith(SHARDS) and path.is_file())


def _fetcher(shards: list[Shard]) -> Callable[[np.ndarray], Iterator[Place]]:
    """Images of plain shards are read by the workers where they lie; compressed ones are walked through here."""
    shard_of = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards])
    start = np.searchsorted(shard_of, np.arange(len(shards)))

    def fetch(rows: np.ndarray) -> Iterator[Place]:
        for here in np.split(rows, np.flatnonzero(np.diff(shard_of[rows])) + 1) if len(rows) else []:
            number = int(shard_of[here[0]])
            shard, opener = shards[number], opener_of(shards[number].path)
            spans = [(shard.offsets[at], shard.sizes[at]) for at in (here - start[number]).tolist()]
            if opener is open:
                yield from (Span(shard.path, offset, size) for offset, size in spans)
                continue
            with damage_named(shard.path), opener(shard.path, "rb") as file:
                for offset, size in spans:
                    file.seek(offset)
                    yield file.read(min(size, LARGEST + 1))

    return fetch
