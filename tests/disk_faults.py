"""A file system that refuses a call of a run, from a moment on or once."""

import builtins
import errno
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

WRITES = ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "pwrite", "ftruncate")


@dataclass(frozen=True)
class Fault:
    """What is refused below a folder: which calls, how, and whether it ends again after one refusal."""

    name: str
    calls: tuple[str, ...]
    number: int
    lasting: bool = True


FAULTS = (
    Fault("the disk is full at the first sync", ("fsync",), errno.ENOSPC, lasting=False),
    Fault("the disk stays full", ("open", "fsync", "pwrite", "mkdir"), errno.ENOSPC),
    Fault("the quota is used up", ("open", "pwrite"), errno.EDQUOT),
    Fault("the disk fails once", ("fsync",), errno.EIO, lasting=False),
    Fault("the disk fails for good", WRITES, errno.EIO),
    Fault("it is mounted read-only meanwhile", WRITES, errno.EROFS),
    Fault("the permission to write is lost", ("open", "mkdir", "rename", "replace", "unlink"), errno.EACCES),
    Fault("removing is not allowed", ("unlink", "rmdir"), errno.EPERM),
    Fault("a rename fails, as over NFS", ("rename",), errno.ESTALE, lasting=False),
    Fault("no rename works", ("rename", "replace"), errno.EIO),
    Fault("the journal cannot be written", ("pwrite", "ftruncate"), errno.EIO),
    Fault("no folder can be made", ("mkdir",), errno.EACCES),
)


def _path_of(argument: Any) -> str:
    if isinstance(argument, int):
        return os.readlink(f"/proc/self/fd/{argument}")
    return os.fspath(argument)


@dataclass
class Met:
    """How often each call was met, and how often one was refused."""

    calls: Counter[str]
    refused: int = 0


@contextmanager
def refusing(fault: Fault, folder: Path, moment: int | None) -> Iterator[Met]:
    """Refuse the `moment`-th of the calls (from 1) below a folder; None = only count them."""
    met = Met(Counter())

    def guard(name: str, sound: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            writes = name != "open" or _is_for_writing(*given, **named)
            if writes and _path_of(given[0]).startswith(f"{folder}/"):
                met.calls[name] += 1
                past = -1 if moment is None else met.calls.total() - moment
                if past == 0 or (fault.lasting and past > 0):
                    met.refused += 1
                    raise OSError(fault.number, os.strerror(fault.number), given[0])
            return sound(*given, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in fault.calls:
            if name == "open":
                patch.setattr(builtins, "open", guard(name, builtins.open))
                patch.setattr(io, "open", builtins.open)
            else:
                patch.setattr(os, name, guard(name, getattr(os, name)))
        yield met


def _is_for_writing(file: Any, mode: str = "r", *_: Any, **__: Any) -> bool:
    return not isinstance(file, int) and any(letter in mode for letter in "wxa+")
