"""One process per run folder: a lock that the kernel lets go of, however the process ends."""

import fcntl
import json
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fastdrpl.files import explain_write_error
from fastdrpl.loaders.errors import UserError

LOCK_FILE = ".lock"
PATIENCE = 0.5  # seconds: a look at the lock from outside holds it for a moment

# Record locks belong to the process, so that forked loader workers, which may outlive it, do not hold them.
# The price: the kernel does not refuse a second lock of the same process, and closing any descriptor of the
# file lets go. Hence this set.
_held: set[Path] = set()


class RunLock:
    """The lock of a run folder, held from `with` to its end. With several ranks, only the first one takes it.

    Entering raises UserError naming process and machine of the holder, or naming the folder if it cannot be
    written.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder).resolve() / LOCK_FILE
        self._descriptor = -1

    def __enter__(self) -> Self:
        if self.path in _held:
            raise _in_use(self.path, f"process {os.getpid()} on {platform.node()} (this one)")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explain_write_error(error, self.path) from error
        try:
            if not _acquire(descriptor):
                raise _in_use(self.path, _describe(descriptor))
            if not _is_still(
                self.path, descriptor
            ):  # its holder has removed the folder that it had just made
                raise _in_use(self.path, "a process that has just ended")
            _sign(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise explain_write_error(error, self.path) from error
        except UserError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _held.discard(self.path)
        os.close(
            self._descriptor
        )  # the file stays: removing it would let two processes lock two files of one name
        self._descriptor = -1


def lock_holder(folder: Path) -> str | None:
    """Who holds the lock of a run folder, in words; None if nobody does. Writes nothing."""
    path = Path(folder).resolve() / LOCK_FILE
    if path in _held:
        return f"process {os.getpid()} on {platform.node()} (this one)"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except (BlockingIOError, PermissionError):
        return _describe(descriptor)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: held by another process
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that has the name now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    text = json.dumps(
        {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _describe(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock but has not signed yet
        return "a process that has just started"


def _in_use(path: Path, holder: str) -> UserError:
    return UserError(
        f"this run folder is in use by {holder}",
        where=str(path.parent),
        fix="wait until it ends or stop it (it saves a checkpoint), or choose another --run folder",
    )
