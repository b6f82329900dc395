"""Prepare: what a user downloaded -> a prepared dataset. Atomic, resumable, in bounded memory."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.loaders import identical, problems
from fastdrpl.loaders.beton import BetonWriter, choose_page_size
from fastdrpl.loaders.continuing import take_up
from fastdrpl.loaders.dataset import (
    MANIFEST,
    SCHEMA,
    Dataset,
    open_dataset,
    read_manifest,
)
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.manifest import describe, write_manifest
from fastdrpl.loaders.marks import MARK, MARKS_VERSION, Marker
from fastdrpl.loaders.prepare_config import (
    PrepareConfig,
    check_config,
    origin_of,
    refuse_out_in_source,
    relevant_options,
)
from fastdrpl.loaders.problem_search import find_problems
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.shard_writer import overhead_per_sample, write_shards
from fastdrpl.loaders.sources.opening import open_source
from fastdrpl.loaders.sources.source import OpenedSource, Part, Piece
from fastdrpl.loaders.unfinished import Journal, Progressed, hold_lock, pack, publish, remove, work_folder
from fastdrpl.loaders.unpacking import unpacked_source

SECONDS_BETWEEN_ENTRIES = 2.0  # of the journal: the work that a kill can cost


def prepare(config: PrepareConfig, *, quiet: bool = False) -> Dataset:
    """Make the prepared dataset `config.out`, or check it if it is there already.

    Raises UserError for a request that cannot be carried out, DataError for damaged input or a full disk.
    Nothing incomplete ever stands under the final name. `quiet` prints nothing. A KeyboardInterrupt passes
    through, and says it where the same command continues.
    """
    began = time.monotonic()
    check_config(config)
    refuse_out_in_source(config)
    out = Path(os.path.abspath(config.out))
    try:
        return _prepare(config, out, began, quiet)
    except KeyboardInterrupt:
        if (work_folder(out) / "journal").exists():
            raise KeyboardInterrupt("the same command continues") from None
        raise


def _prepare(config: PrepareConfig, out: Path, began: float, quiet: bool) -> Dataset:
    origin = origin_of(config)  # before an archive is replaced by the folder it is unpacked to
    with _disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(out), unpacked_source(config, out, _silent if quiet else _say) as config:
            if _is_occupied(out):
                return _check_finished(config, out, quiet)
            return _make(config, open_source(config), out, began, quiet, origin)


def _make(
    config: PrepareConfig,
    source: OpenedSource,
    out: Path,
    began: float,
    quiet: bool,
    origin: dict[str, str],
) -> Dataset:
    say = _silent if quiet else _say
    for note in source.notes:
        say(note)
    work, key = work_folder(out), _key(config, source)
    journal = Journal(work / "journal", key)
    resumed = source.journal and take_up(journal, source, work, say)
    done = sum(split.rows for split in journal.splits.values()) if resumed else 0
    if done:
        say(f"Continuing an unfinished prepare: {done:,} images are done.")
    else:
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
        shards = {}
        if config.format == "shards":
            shards = write_shards(
                work, {name: [row for row, _ in state.bad] for name, state in finished.items()}, quiet=quiet
            )
        found = _find_problems(config, source, finished, work, quiet)
        write_manifest(config, source, finished, work, shards, found, origin)
        (work / "journal").unlink(missing_ok=True)
        publish(work, out)
    finally:
        if not source.journal:
            remove(work)
    dataset = open_dataset(out)
    for line in describe(dataset, time.monotonic() - began):
        say(line)
    return dataset


def _find_problems(
    config: PrepareConfig, source: OpenedSource, finished: dict[str, Progressed], work: Path, quiet: bool
) -> dict[str, Any]:
    """Write problems.csv; -> the entries of dataset.json. Raises DataError for a kind that is refused."""
    found, entry, copies = find_problems(work, source, finished, quiet=quiet)
    problems.write_problems(work / problems.PROBLEMS, found)
    problems.refuse_problems(entry, config.refuse, work / problems.PROBLEMS if source.journal else None)
    # Of a published set everybody has the same doubles; of one's own photos nobody knows them.
    own = {} if source.labels_checked else {identical.FIELD: copies}
    return own | {problems.FIELD: entry}


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
    path = work / f"{name}.beton"
    try:
        writer = _open_writer(config, source, part, path, before)
    except DataError as error:  # shorter than the journal says, as a disk leaves it that lost its power
        if journal is None:
            raise
        (_silent if quiet else _say)(f"{path.name}: {error.what}: it is made again.")
        journal.forget(name)
        before = Progressed()
        writer = _open_writer(config, source, part, path, before)
    row = safe = before.rows
    bad = list(before.bad)

    def write_down(stop: int, **more: Any) -> None:
        sizes = writer.nbytes[safe:stop].tolist() if config.store == "jpeg" else []
        new = [entry for entry in bad if safe <= entry[0] < stop]
        if journal:
            marks = pack(marker.marks()[safe:stop].tobytes())
            journal.add({"split": name, "rows": stop, "sizes": sizes, "bad": new, "marks": marks} | more)

    with (
        closing(writer),
        Marker(np.frombuffer(bytes(before.marks), MARK)) as marker,
        ThreadPoolExecutor(1) as background,  # to sync takes as long as to write
        Progress(name, len(part.labels), start=row, quiet=quiet) as bar,
    ):
        last = time.monotonic()
        synced: Future[int] | None = None
        for piece in part.read(row):
            _write_piece(writer, piece, config.quality)
            marker.add(piece)
            bad += [(row + position, reason) for position, reason in piece.bad]
            row += len(piece.images)
            bar.advance(len(piece.images))
            if bad:
                bar.note(f"{len(bad):,} unreadable")
            if synced is not None and synced.done():
                stop, synced = synced.result(), None
                write_down(stop)
                safe, last = stop, time.monotonic()
            due = time.monotonic() - last >= SECONDS_BETWEEN_ENTRIES
            if journal and due and synced is None and writer.done_in_pages > safe:
                synced = background.submit(writer.sync)
        if synced is not None:
            synced.result()
        size, digest = writer.finish()
        marks = bytearray(marker.marks().tobytes())
    write_down(len(part.labels), finished=(size, digest))
    return Progressed(len(part.labels), [], bad, (size, digest), marks)


def _open_writer(
    config: PrepareConfig, source: OpenedSource, part: Part, path: Path, before: Progressed
) -> BetonWriter:
    return BetonWriter(
        path,
        part.labels,
        height=source.height,
        width=source.width,
        store=config.store,
        resume=(before.rows, list(before.sizes)),
    )


def _write_piece(writer: BetonWriter, piece: Piece, quality: int) -> None:
    if isinstance(piece.images, list):
        writer.write_jpeg(piece.images)
    elif writer.store == "jpeg":
        from fastdrpl.loaders.sources.pictures import encode_jpeg  # needs Pillow, which raw pixels do not

        writer.write_jpeg([encode_jpeg(image, quality) for image in piece.images])
    else:
        writer.write_raw(piece.images)


def _check_finished(config: PrepareConfig, out: Path, quiet: bool) -> Dataset:
    """`out` is there: check that it is what is asked for, and every file's sha256."""
    if not (out / MANIFEST).exists():
        raise UserError(
            "the output folder holds something else", where=str(out), fix="choose another --out, or empty it"
        )
    there, asked = read_manifest(out).get("config"), relevant_options(config)
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
    source = open_source(config)
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
    problems.refuse_problems(read_manifest(out).get(problems.FIELD), config.refuse, out)
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
    if config.format == "shards":
        needed += sum(stored) + sum(rows) * overhead_per_sample(source.width, source.height)
    there = sum(path.stat().st_size for path in work.glob("*.beton"))
    there += sum(path.stat().st_size for path in work.glob("*.tar"))
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
        fix = "choose an --out in a folder that you may write to"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"cannot read or write here: {error.strerror}", where=where, fix=fix) from None
        if error.errno == errno.ENOENT and Path(where).is_relative_to(out.parent):  # as /proc has it
            raise UserError(f"nothing can be written here: {error.strerror}", where=where, fix=fix) from None
        raise DataError(f"the system reports: {error.strerror}", where=where) from None


def _key(config: PrepareConfig, source: OpenedSource) -> str:
    """What an unfinished folder must have been made from to be continued."""
    content = [SCHEMA, MARKS_VERSION, relevant_options(config), source.fingerprint]
    if source.decoded_by_pillow:
        import PIL

        content.append(PIL.__version__)  # another version may decode to other pixels
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    """Say nothing."""
