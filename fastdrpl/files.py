"""Files that are either whole or not there, and checksums. Imports no torch."""

import contextlib
import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdrpl.loaders.errors import DataError, UserError

TEMPORARY_PREFIX = ".tmp-"

_FIXES = {
    errno.ENOSPC: "free some space on this disk, then start the same command again",
    errno.EDQUOT: "free some of your disk quota, then start the same command again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then start the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "allow writing to this folder, or choose another one",
    errno.EPERM: "allow writing to this folder, or choose another one",
}
_arrivals: Counter[str] = Counter()


def fault(point: str) -> None:
    """Ends the process at a named point as `kill -9` would, where the tests ask for it.

    The environment variable FASTDRPL_FAULT holds `point` or `point:n` (the n-th arrival, from 1).
    """
    name, _, number = os.environ.get("FASTDRPL_FAULT", "").partition(":")
    if name and name == point:
        _arrivals[point] += 1
        if _arrivals[point] == int(number or 1):
            os._exit(9)


def explain_write_error(error: OSError, path: Path) -> UserError:
    """The error a user sees when `path` could not be written: the cause, the place and what to do."""
    reason = error.strerror or type(error).__name__
    fix = _FIXES.get(error.errno or 0, "check the disk and the permissions of this folder")
    return UserError(f"cannot write {path.name}: {reason}", where=str(path), fix=fix)


def explain_system_error(error: OSError) -> UserError:
    """The error a user sees where the system refused something that was not a single file to write."""
    fix = _FIXES.get(error.errno or 0, "check the disk and the permissions there")
    where = None if error.filename is None else os.fsdecode(error.filename)
    return UserError(f"the system reports: {error.strerror}", where=where, fix=fix)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on the disk. Raises OSError; FileExistsError if it is there."""
    half = len(data) // 2
    write_pieces(path, (memoryview(data)[:half], memoryview(data)[half:]))


def write_pieces(path: Path, pieces: Iterable[memoryview]) -> None:
    """`write_synced` of a content that is never in memory as a whole."""
    with open(path, "xb") as file:
        for number, piece in enumerate(pieces):
            if number == 1:
                file.flush()
                fault("file.half-written")
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: without it a rename can be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a file system (some network ones) that has no such thing
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file in one step: a reader, or a run after a crash, sees the old content or the new one.

    Raises UserError naming the path if it cannot be written (disk full, read-only, ...); the old file is then
    untouched and no temporary file is left.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # of a dead process that had our number
        write_synced(temporary, data)
        fault("file.before-replace")
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # where it could not be made there is nothing to remove
            temporary.unlink(missing_ok=True)
        raise explain_write_error(error, path) from error


def make_folder(path: Path) -> None:
    """A folder, with those above it. Raises UserError where there can be none of this name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_write_error(error, path) from error


def dump_json(value: Any) -> bytes:
    """Strict JSON as bytes, always the same for the same value. Raises ValueError for nan and infinities."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON with `write_atomic`. Raises ValueError for nan and infinities, UserError like it."""
    write_atomic(path, dump_json(value))


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises DataError naming the file if it is missing, unreadable or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror}", where=str(path)) from error
    except ValueError as error:  # both broken JSON and broken UTF-8
        raise DataError(f"{path.name} is not JSON: {error}", where=str(path)) from error


def sha256_file(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits; memory does not grow with the file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
