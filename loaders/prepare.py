"""Prepare: what a user downloaded -> a prepared dataset. Atomic, resumable, in bounded memory."""

import csv
import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastdrpl.loaders.beton import BetonWriter, choose_page_size, hash_file, read_tables
from fastdrpl.loaders.dataset import (
    MANIFEST,
    SCHEMA,
    Dataset,
    content_fingerprint,
    ids_path,
    open_dataset,
    read_manifest,
)
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.sources.source import OpenedSource, Part, Piece
from fastdrpl.loaders.unfinished import Journal, Progressed, hold_lock, publish, remove, work_folder

SECONDS_BETWEEN_ENTRIES = 2.0  # of the journal: the work that a kill can cost
QUARANTINE = "quarantine.csv"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Make a prepared dataset out of what you downloaded."""

    kind: Literal["digits", "cifar10", "cifar100", "folder"]
    """What the source is. digits needs no source: it comes with scikit-learn."""
    source: Path | None = None
    """CIFAR: the official archive, the unpacked folder, or the folder that holds one of them.
    folder: train/<class>/* with test/<class>/* or val/<class>/*, or one folder of class folders."""
    out: Path
    """The folder to make. It appears when it is complete; a repeated command checks it."""
    size: int = 256
    """folder: height and width in pixels that every image is resized to."""
    store: Literal["raw", "jpeg"] = "raw"
    """raw pixels are the fastest to read; jpeg needs a fraction of the disk."""
    quality: int = 95
    """Quality of stored JPEG, 1 to 100."""
    test_fraction: float = 0.0
    """folder without a test set: the fraction of each class that becomes one. Its labels may be wrong too."""
    classes: Path | None = None
    """folder: a text file with one class name a line that gives the order of the classes; default: sorted."""
    workers: int = 0
    """folder: processes that decode images; 0 means one per core."""
    seed: int = 1
    """Which images go to the test set where the source has none."""


def prepare(config: PrepareConfig, *, quiet: bool = False) -> Dataset:
    """Make the prepared dataset `config.out`, or check it if it is there already.

    Raises UserError for a request that cannot be carried out, DataError for damaged input or a full disk.
    Nothing incomplete ever stands under the final name. `quiet` prints nothing.
    """
    began = time.monotonic()
    _check(config)
    out = Path(os.path.abspath(config.out))
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(out):
            if _is_occupied(out):
                return _check_finished(config, out, quiet)
            source = _open_source(config)
            return _make(config, source, out, began, quiet)


def _make(config: PrepareConfig, source: OpenedSource, out: Path, began: float, quiet: bool) -> Dataset:
    say = _silent if quiet else _say
    for note in source.notes:
        say(note)
    work, key = work_folder(out), _key(config, source)
    journal = Journal(work / "journal", key)
    resumed = source.journal and journal.load()
    if resumed:
        done = sum(split.rows for split in journal.splits.values())
        say(f"Continuing an unfinished prepare: {done:,} images are done.")
    else:
        if (work / "journal").exists():
            say("The unfinished folder is of another source or configuration: starting over.")
        remove(work)
    _check_space(config, source, work, out)
    try:
        work.mkdir(exist_ok=True)
        if source.journal and not resumed:
            journal.begin()
        finished = {
            name: _write_split(config, source, name, part, work, journal if source.journal else None, quiet)
            for name, part in source.parts.items()
        }
        _write_manifest(config, source, finished, work)
        (work / "journal").unlink(missing_ok=True)
        publish(work, out)
    finally:
        if not source.journal:
            remove(work)
    dataset = open_dataset(out)
    for line in describe(dataset, time.monotonic() - began):
        say(line)
    return dataset


def _write_split(
    config: PrepareConfig,
    source: OpenedSource,
    name: str,
    part: Part,
    work: Path,
    journal: Journal | None,
    quiet: bool,
) -> Progressed:
    """Write one compiled file, going on where the journal says; returns its bad rows, size and sha256."""
    before = journal.splits.get(name, Progressed()) if journal else Progressed()
    if before.finished:
        return before
    row = safe = before.rows
    bad = list(before.bad)
    writer = BetonWriter(
        work / f"{name}.beton",
        part.labels,
        height=source.height,
        width=source.width,
        store=config.store,
        resume=(row, list(before.sizes)),
    )

    def write_down(stop: int, **more: Any) -> None:
        sizes = writer.nbytes[safe:stop].tolist() if config.store == "jpeg" else []
        new = [entry for entry in bad if safe <= entry[0] < stop]
        if journal:
            journal.add({"split": name, "rows": stop, "sizes": sizes, "bad": new} | more)

    with closing(writer), Progress(name, len(part.labels), start=row, quiet=quiet) as bar:
        last = time.monotonic()
        for piece in part.read(row):
            _write_piece(writer, piece, config.quality)
            bad += [(row + position, reason) for position, reason in piece.bad]
            row += len(piece.images)
            bar.advance(len(piece.images))
            if bad:
                bar.note(f"{len(bad):,} unreadable")
            due = time.monotonic() - last >= SECONDS_BETWEEN_ENTRIES
            if journal and due and writer.done_in_pages > safe:
                stop = writer.sync()
                write_down(stop)
                safe, last = stop, time.monotonic()
        size, digest = writer.finish()
    write_down(len(part.labels), finished=(size, digest))
    return Progressed(len(part.labels), [], bad, (size, digest))


def _write_piece(writer: BetonWriter, piece: Piece, quality: int) -> None:
    if isinstance(piece.images, list):
        writer.write_jpeg(piece.images)
    elif writer.store == "jpeg":
        from fastdrpl.loaders.sources.pictures import encode_jpeg  # needs Pillow, which raw pixels do not

        writer.write_jpeg([encode_jpeg(image, quality) for image in piece.images])
    else:
        writer.write_raw(piece.images)


def _write_manifest(
    config: PrepareConfig, source: OpenedSource, finished: dict[str, Progressed], work: Path
) -> None:
    """Write quarantine, file names and `dataset.json`. Raises DataError where a class is left without images."""
    splits: dict[str, Any] = {}
    files: dict[str, Any] = {}
    with open(work / QUARANTINE, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["row", "id", "split", "reason"])
        for name, state in finished.items():
            part = source.parts[name]
            rows.writerows(
                (row, part.ids[row] if part.ids else row, name, reason) for row, reason in state.bad
            )
    for name, state in finished.items():
        part = source.parts[name]
        quarantined = [row for row, _ in state.bad]
        if name == "train":
            _check_classes(source, part, state)
        splits[name] = {"rows": len(part.labels), "quarantined": quarantined}
        if part.ids is not None:
            lines = "".join(json.dumps(line) + "\n" for line in part.ids)
            ids_path(work, name).write_text(lines, encoding="ascii")
        if state.finished:
            size, digest = state.finished
            tables = read_tables(work / f"{name}.beton").sha256
            files[f"{name}.beton"] = {"bytes": size, "sha256": digest, "tables_sha256": tables}
    for path in (work / QUARANTINE, *(ids_path(work, name) for name in finished)):
        if path.exists():
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "name": source.name,
        "source": {"kind": source.kind, "fingerprint": source.fingerprint},
        "config": _relevant(config),
        "height": source.height,
        "width": source.width,
        "class_names": source.class_names,
        "superclass": source.superclass,
        "superclass_names": source.superclass_names,
        "mean": source.mean,
        "std": source.std,
        "flip": source.flip,
        "pad": source.pad,
        "test_may_be_wrong": source.test_may_be_wrong,
        "splits": splits,
        "files": files,
    }
    manifest["fingerprint"] = content_fingerprint(manifest)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii")


def _check_classes(source: OpenedSource, part: Part, state: Progressed) -> None:
    good = np.bincount(part.labels, minlength=len(source.class_names))
    good -= np.bincount(part.labels[[row for row, _ in state.bad]], minlength=len(good))
    empty = np.flatnonzero(good == 0)
    if len(empty):
        reasons = ", ".join(sorted({reason for row, reason in state.bad if part.labels[row] == empty[0]}))
        raise DataError(
            f"no image of the class {source.class_names[empty[0]]!r} can be used ({reasons or 'it has none'})",
            where=source.name,
            fix="repair its images, or remove its folder",
        )


def describe(dataset: Dataset, seconds: float | None = None) -> list[str]:
    """What a prepared dataset holds, in lines for the user."""
    names = dataset.class_names
    shown = ", ".join(names if len(names) <= 12 else (*names[:6], "...", *names[-3:]))
    lines = [f"{dataset.name}: {len(names)} classes in this order: {shown}"]
    for name, split in dataset.splits.items():
        bad = int((~split.valid).sum())
        text = f"{name}: {len(split):,} images of {split.width}x{split.height}, {split.store}"
        lines.append(text + (f", {bad:,} of them quarantined" if bad else ""))
    if not dataset.has("test"):
        lines.append("There is no test set: accuracies will be empty.")
    with open(dataset.path / QUARANTINE, newline="", encoding="utf-8") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    lines += [f"quarantined: {count:,} x {reason}" for reason, count in reasons.most_common()]
    size = sum(path.stat().st_size for path in dataset.path.iterdir())
    took = "" if seconds is None else f" in {seconds:.1f} s"
    return [*lines, f"{size / 1e6:,.1f} MB in {dataset.path}{took}"]


def _check(config: PrepareConfig) -> None:
    """Refuse values outside their range, and options that this kind does not know."""
    ranges: tuple[tuple[str, float, bool, str], ...] = (
        ("size", config.size, 1 <= config.size <= 4096, "1 to 4096"),
        ("quality", config.quality, 1 <= config.quality <= 100, "1 to 100"),
        ("test-fraction", config.test_fraction, 0 <= config.test_fraction < 1, "0 or more, less than 1"),
        ("workers", config.workers, 0 <= config.workers <= 1024, "0 to 1024"),
        ("seed", config.seed, 0 <= config.seed < 1 << 64, "0 to 2**64 - 1"),
    )
    for name, value, good, wanted in ranges:
        if not good:
            raise UserError(f"--{name} is {value}, wanted {wanted}")
    if config.kind not in ("digits", "cifar10", "cifar100", "folder"):
        raise UserError(f"unknown kind {config.kind!r}", fix="one of digits, cifar10, cifar100, folder")
    if config.kind == "digits" and config.source is not None:
        raise UserError("digits come with scikit-learn and take no --source", where=str(config.source))
    if config.kind != "digits" and config.source is None:
        raise UserError(f"{config.kind} needs --source", fix="give --source FOLDER")
    if config.source is not None and not config.source.exists():
        raise UserError("the source does not exist", where=str(config.source))
    for name in ("size", "test_fraction", "classes"):
        if config.kind != "folder" and getattr(config, name) != getattr(PrepareConfig, name):
            raise UserError(f"--{name.replace('_', '-')} is for kind folder, not for {config.kind}")
    if not Path(os.path.abspath(config.out)).name:
        raise UserError("--out needs a folder name", where=str(config.out))


def _open_source(config: PrepareConfig) -> OpenedSource:
    if config.kind == "digits":
        from fastdrpl.loaders.sources.digits import open_digits

        return open_digits(config.seed)
    if config.source is None:
        raise UserError(f"{config.kind} needs --source")
    if config.kind == "folder":
        from fastdrpl.loaders.sources.folder import open_folder  # needs Pillow
        from fastdrpl.loaders.sources.pictures import Target

        return open_folder(
            config.source,
            target=Target(config.size, config.store, config.quality),
            test_fraction=config.test_fraction,
            classes=config.classes,
            workers=config.workers,
            seed=config.seed,
        )
    from fastdrpl.loaders.sources.cifar import open_cifar

    return open_cifar(config.kind, config.source)


def _relevant(config: PrepareConfig) -> dict[str, Any]:
    """The options that decide the content."""
    options: dict[str, Any] = {"kind": config.kind, "store": config.store}
    if config.store == "jpeg":
        options["quality"] = config.quality
    if config.kind == "folder":
        options |= {"size": config.size, "test_fraction": config.test_fraction}
    if config.kind == "digits" or config.test_fraction:
        options["seed"] = config.seed
    return options


def _check_finished(config: PrepareConfig, out: Path, quiet: bool) -> Dataset:
    """`out` is there: check that it is what is asked for, and every file's sha256."""
    if not (out / MANIFEST).exists():
        raise UserError(
            "the output folder holds something else", where=str(out), fix="choose another --out, or empty it"
        )
    there, asked = read_manifest(out).get("config"), _relevant(config)
    if not isinstance(there, dict):
        raise DataError("the manifest has no configuration", where=str(out / MANIFEST))
    fields = [name for name in (there | asked) if there.get(name) != asked.get(name)]
    if fields:
        shown = "; ".join(f"{name}: {there.get(name)} there, {asked.get(name)} asked" for name in fields)
        raise UserError(
            f"the output folder was prepared with another configuration ({shown})",
            where=str(out),
            fix="choose another --out, or remove the folder",
        )
    dataset = open_dataset(out, verify=True)
    source = _open_source(config)
    for what, old, new in (
        ("class order", dataset.class_names, source.class_names),
        ("files", dataset.source.fingerprint, source.fingerprint),
    ):
        if old != new:
            raise UserError(
                f"the output folder was prepared from another source or another state of it: its {what} differ",
                where=str(out),
                fix="choose another --out, or remove the folder",
            )
    if not quiet:
        _say("Already prepared: every file was verified (sha256).")
        for line in describe(dataset):
            _say(line)
    return dataset


def _is_occupied(out: Path) -> bool:
    return os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir()))


def _check_space(config: PrepareConfig, source: OpenedSource, work: Path, out: Path) -> None:
    """Raises DataError if the disk cannot hold the result (JPEG: a third of the pixels is assumed)."""
    image = source.height * source.width * 3
    page = choose_page_size(image)
    rows = [len(part.labels) for part in source.parts.values()]
    stored = [
        -(-n // (page // image)) * page if config.store == "raw" else n * (image // 3 + 1024) for n in rows
    ]
    needed = sum(stored) + sum(rows) * 200 + len(rows) * 2 * page
    there = sum(path.stat().st_size for path in work.glob("*.beton"))
    free = shutil.disk_usage(out.parent).free
    if needed - there > free:
        raise DataError(
            f"not enough disk: {(needed - there) / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            where=str(out.parent),
            fix="free some space, choose another --out, or use --store jpeg or a smaller --size",
        )


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = str(error.filename or out)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space and run the same command again"
            raise DataError("the disk is full", where=str(out.parent), fix=fix) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"cannot read or write here: {error.strerror}", where=where) from None
        raise DataError(f"the system reports: {error.strerror}", where=where) from None


def _key(config: PrepareConfig, source: OpenedSource) -> str:
    """What an unfinished folder must have been made from to be continued."""
    content = [SCHEMA, _relevant(config), source.fingerprint]
    if source.kind == "folder":
        import PIL

        content.append(PIL.__version__)  # another version may decode to other pixels
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    """Say nothing."""
