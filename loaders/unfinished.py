"""The folder in which a prepared dataset grows: a lock beside it, and a journal of what is safely written."""

import base64
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdrpl.loaders.errors import UserError


@dataclass
class Progressed:
    """How far one split is: rows in synced pages, their JPEG sizes, marks, the bad ones, and the finished file."""

    rows: int = 0
    sizes: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)  # (row, reason)
    finished: tuple[int, str] | None = None  # (bytes, sha256)
    marks: bytearray = field(default_factory=bytearray)  # of `rows` images, as MARK lays them out


class UnreadableJournal(Exception):
    """A journal whose lines are not what `Journal` writes."""


class Journal:
    """Lines of JSON, each synced before the next piece of work begins. A torn last line counts as absent."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.splits: dict[str, Progressed] = {}

    def load(self) -> bool:
        """Read what an earlier process left; False if there is none, or it is of other work.

        Raises UnreadableJournal for lines that nobody wrote, as a disk leaves them that lost its power.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return False
        if not lines or lines[0] != json.dumps({"key": self.key}).encode():
            return False
        self.splits = {}
        try:
            for line in lines[1:]:
                self._take(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise UnreadableJournal(str(self.path)) from None
        with open(self.path, "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))
        return True

    def begin(self) -> None:
        """Start an empty journal."""
        self.splits = {}
        self._write({"key": self.key})

    def add(self, entry: dict[str, Any]) -> None:
        """Write down that a piece is safely on the disk: {"split", "rows", "sizes", "bad", "marks"[, "finished"]}.

        `marks`: of the rows since the entry before, as `pack` makes them.
        """
        self._take(entry)
        self._write(entry)

    def forget(self, split: str) -> None:
        """Write down that nothing of a split is done."""
        self.add({"split": split, "rows": 0, "sizes": [], "bad": [], "marks": "", "again": True})

    def _take(self, entry: dict[str, Any]) -> None:
        if entry.get("again"):
            self.splits[entry["split"]] = Progressed()
        split = self.splits.setdefault(entry["split"], Progressed())
        split.rows = int(entry["rows"])
        split.sizes += map(int, entry["sizes"])
        split.bad += [(int(row), str(reason)) for row, reason in entry["bad"]]
        split.marks += base64.b64decode(entry["marks"], validate=True)
        if entry.get("finished"):
            size, digest = entry["finished"]
            split.finished = (int(size), str(digest))

    def _write(self, entry: dict[str, Any]) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def pack(marks: bytes) -> str:
    """Marks as an entry of the journal holds them."""
    return base64.b64encode(marks).decode("ascii")


def work_folder(out: Path) -> Path:
    """Where `out` grows until it is complete: beside it, so that the last step is one rename."""
    return out.with_name(f".{out.name}.preparing")


@contextmanager
def hold_lock(out: Path) -> Iterator[None]:
    """Keep other processes from preparing into the same folder. Raises UserError if one does."""
    path = out.with_name(f".{out.name}.lock")
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            mine = False  # held by another process, or just released and removed by one
        if not mine:
            raise UserError(
                "another process is preparing this folder",
                where=str(out),
                fix="wait until it is done, or choose another --out",
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def publish(work: Path, out: Path) -> None:
    """Sync the folder and give it its final name in one step."""
    for path in work.iterdir():
        _sync(path)
    _sync(work)
    os.rename(work, out)
    _sync(out.parent)


def remove(work: Path) -> None:
    """Remove an unfinished folder, if it is there."""
    if work.exists():
        shutil.rmtree(work)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
