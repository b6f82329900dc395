"""Reading .npy and .npz files that nobody vouches for: every size is compared before memory is taken.

numpy's own reader takes the memory that a file names, and reads a file's description as Python.
Everything that is wrong with a file is a ValueError here; the caller knows what the file should have been.
"""

import math
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fastdrpl.loaders.archives import DAMAGE, Limits, list_zip
from fastdrpl.loaders.errors import DataError

MAGIC = b"\x93NUMPY"
VERSIONS = {
    b"\x01\x00": "<H",
    b"\x02\x00": "<I",
    b"\x03\x00": "<I",
}  # -> type of the length of the description
LONGEST = 10_000  # bytes of a description
MOST_SIDES = 8
BLOCK = 1 << 20  # bytes read at a time
# Counts of many networks are mostly zeros and pack well; labels do too.
LIMITS = Limits(members=10_000, nbytes=1 << 36, swell=50, free=1 << 28)

_SHAPE = re.compile(rb"""['"]shape['"]\s*:\s*\(([\dL,\s]*)\)""")
_SIDE = re.compile(rb"\s*(\d{1,18})L?\s*")  # L: numpy of Python 2
_ORDER = re.compile(rb"""['"]fortran_order['"]\s*:\s*(True|False)\b""")
_TYPE = re.compile(rb"""['"]descr['"]\s*:\s*['"]([^'"]{1,20})['"]""")
_KNOWN = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|U[1-9]\d{0,5})")


@dataclass(frozen=True)
class NpyHead:
    """What an .npy file says before its numbers: `data` are these bytes themselves."""

    data: bytes
    shape: tuple[int, ...]
    kind: str  # as numpy writes types, such as "<i8"
    by_columns: bool  # in Fortran's order


class Npz:
    """An open .npz file. `read` gives one array; the others are never looked at."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._members = archive, members

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays in it."""
        return tuple(self._members)

    def read(self, name: str, *, kinds: str, most: int) -> np.ndarray:
        """An array of one of the `kinds` (letters of numpy, from "biufU") and at most `most` values.

        Raises ValueError if it is missing, damaged or another one.
        """
        if name not in self._members:
            raise ValueError(f"no array {name!r} in it")
        info = self._members[name]
        with _damage_as_value_error(), self._archive.open(info) as stream:
            return _read(stream, info.file_size, kinds, most)


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """An .npz file for reading. Raises ValueError for a file that is none, or holds too much; OSError."""
    with open(path, "rb") as file:
        with _damage_as_value_error():
            archive = zipfile.ZipFile(file)
            found = list_zip(archive, LIMITS, str(path), os.fstat(file.fileno()).st_size)
        names = {info.filename.removesuffix(".npy"): info for info in found if info.filename.endswith(".npy")}
        with archive:
            yield Npz(archive, names)


def read_npy(path: Path, *, kinds: str, most: int) -> np.ndarray:
    """The array of an .npy file; as `Npz.read`."""
    with open(path, "rb") as file, _damage_as_value_error():
        return _read(file, os.fstat(file.fileno()).st_size, kinds, most)


def is_npy(path: Path) -> bool:
    """Whether a file begins as .npy files do."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_npy_head(stream: IO[bytes]) -> NpyHead:
    """What stands before the numbers of an .npy file; the stream stands at the numbers then. Raises ValueError."""
    begin = stream.read(8)
    if begin[:6] != MAGIC or begin[6:] not in VERSIONS:
        raise ValueError("an array that is no npy file")
    length_type = VERSIONS[begin[6:]]
    length_bytes = stream.read(struct.calcsize(length_type))
    if len(length_bytes) != struct.calcsize(length_type):
        raise ValueError("an array that is cut")
    length = struct.unpack(length_type, length_bytes)[0]
    if length > LONGEST:
        raise ValueError("an array with too long a description")
    text = stream.read(length)
    shape, order, kind = (pattern.search(text) for pattern in (_SHAPE, _ORDER, _TYPE))
    if len(text) != length or shape is None or order is None or kind is None:
        raise ValueError("an array whose description cannot be read, or one of several fields")
    sides = [_SIDE.fullmatch(side) for side in shape[1].split(b",") if side.strip()]
    if len(sides) > MOST_SIDES or not all(sides):
        raise ValueError("an array without a plain shape")
    return NpyHead(
        data=begin + length_bytes + text,
        shape=tuple(int(side[1]) for side in sides if side),
        kind=kind[1].decode("ascii", "backslashreplace"),
        by_columns=order[1] == b"True",
    )


def _read(stream: IO[bytes], size: int, kinds: str, most: int) -> np.ndarray:
    """The array in a stream of `size` bytes."""
    head = read_npy_head(stream)
    if not _KNOWN.fullmatch(head.kind) or np.dtype(head.kind).kind not in kinds:
        raise ValueError(f"values of the type {head.kind!r}")
    kind, count = np.dtype(head.kind), math.prod(head.shape)
    if count > most:
        raise ValueError(f"an array of shape {head.shape}: more than {most:,} values")
    nbytes = size - len(head.data)
    if count * kind.itemsize != nbytes:
        raise ValueError(f"{nbytes:,} bytes for an array of shape {head.shape} and type {head.kind!r}")
    data, filled = np.empty(nbytes, np.uint8), 0
    while filled < nbytes:
        block = stream.read(min(BLOCK, nbytes - filled))
        if not block:
            raise ValueError("it ends before its values do")
        data[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
        filled += len(block)
    if kind.kind == "U" and nbytes and data.view(f"{kind.str[0]}u4").max() > 0x10FFFF:
        raise ValueError("text of characters that there are not")
    return data.view(kind).reshape(head.shape, order="F" if head.by_columns else "C")


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise ValueError(error.what) from None
    except DAMAGE as error:
        raise ValueError(str(error)[:300] or type(error).__name__) from None
