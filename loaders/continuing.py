"""What a stopped prepare left: is it still what its journals say? What is not is made again."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from fastdrpl.loaders.beton_tables import hash_file
from fastdrpl.loaders.marks import MARK
from fastdrpl.loaders.shard_writer import JOURNAL, WrittenShard
from fastdrpl.loaders.sources.source import OpenedSource
from fastdrpl.loaders.unfinished import Journal, Progressed, UnreadableJournal

LARGE = 1 << 30  # bytes that take a while to check


def take_up(journal: Journal, source: OpenedSource, work: Path, say: Callable[[str], None]) -> bool:
    """Whether the unfinished folder `work` can be continued; the journal says then what need not be done again.

    Finished files whose size or sha256 has changed, and unfinished ones that are missing, leave the journal.
    """
    try:
        if not journal.load():
            if journal.path.exists():
                say("The unfinished folder is of another source or configuration: starting over.")
            return False
        for name, state in journal.splits.items():
            _check_entry(name, state, source)
    except UnreadableJournal:
        say("The journal of the unfinished folder cannot be read: starting over.")
        return False
    done = sum(state.finished[0] for state in journal.splits.values() if state.finished)
    if done >= LARGE:
        say(f"Checking {done / 1e9:.1f} GB of finished files ...")
    for name, state in list(journal.splits.items()):
        wrong = _what_is_wrong(work / f"{name}.beton", state)
        if wrong:
            say(f"{name}.beton in the unfinished folder {wrong}: it is made again.")
            journal.forget(name)
    _drop_changed_shards(work, say)
    return True


def _check_entry(name: str, state: Progressed, source: OpenedSource) -> None:
    part = source.parts.get(name)
    if part is None or not 0 <= state.rows <= len(part.labels) or len(state.sizes) not in (0, state.rows):
        raise UnreadableJournal
    if len(state.marks) != state.rows * MARK.itemsize:
        raise UnreadableJournal
    if not all(0 <= row < len(part.labels) for row, _ in state.bad):
        raise UnreadableJournal


def _what_is_wrong(path: Path, state: Progressed) -> str | None:
    """Whether a compiled file is not what the journal says; None if it is, as far as that can be told."""
    if not state.rows:
        return None
    if not path.is_file():
        return "is missing"
    if state.finished is None:
        return None  # its writer compares the length
    size, digest = state.finished
    if path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, not {size:,}"
    return None if hash_file(path) == digest else "has changed (another sha256)"


def _drop_changed_shards(work: Path, say: Callable[[str], None]) -> None:
    """Take tar shards that are not what they were when they were finished out of their journal."""
    path = work / JOURNAL
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    sound = [line for line in lines if _is_sound(work, line)]
    if len(sound) < len(lines):
        say(
            f"{len(lines) - len(sound):,} of {len(lines):,} finished shards have changed: they are made again."
        )
        rewritten = path.with_name(f"{JOURNAL}.new")
        with open(rewritten, "wb") as file:
            file.writelines(line + b"\n" for line in sound)
            file.flush()
            os.fsync(file.fileno())
        os.replace(rewritten, path)


def _is_sound(work: Path, line: bytes) -> bool:
    try:
        files = WrittenShard(**json.loads(line)).files()
        return all(
            (work / name).stat().st_size == entry["bytes"] and hash_file(work / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (ValueError, TypeError, AttributeError, FileNotFoundError):  # no line of ours, or no such file
        return False
