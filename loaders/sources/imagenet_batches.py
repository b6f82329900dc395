"""One batch file of ImageNet32 or ImageNet64, in either published layout; its pixels are never loaded whole.

A pickle of {data, labels[, mean]}, or an npz with the same names. `data` is (n, 3 * side * side) uint8: three
colour planes an image. `labels` count from 1. The file lies on the disk, or still in the downloaded zip.
"""

import codecs
import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fastdrpl.loaders.archives import Limits, damage_named, list_zip
from fastdrpl.loaders.arrays import NpyHead, read_npy_head
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.pickles import Located, PickledArray, scan_plain, whole_numbers

CLASSES = 1000
READ = (
    1 << 19
)  # bytes of pixels read at a time: what is read is still in the processor's cache when it is copied
SAMPLES, SAMPLE = 16, 1 << 16  # blocks of a file that tell it from another, and their bytes
LARGEST_LABELS = 64 << 20  # bytes
INNER = Limits(members=100, nbytes=1 << 36)
WHOLE = {"|u1", "|i1", *(f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (2, 4, 8))}


@dataclass(frozen=True)
class Place:
    """A file on the disk, or in a zip there."""

    path: Path
    member: str | None = None
    crc: int = 0  # of a member
    size: int = 0  # bytes

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}, member {self.member}"

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file at its beginning; it can seek, in a zip slowly."""
        with open(self.path, "rb") as file:
            if self.member is None:
                yield file
                return
            with damage_named(str(self.path), self.member):
                archive = zipfile.ZipFile(file)
                content = archive.open(self.member)
            with archive, content:
                yield content


@dataclass(frozen=True)
class Batch:
    """One file, scanned: labels, and where the planes of its images lie."""

    place: Place
    labels: np.ndarray  # (n,) int64, from 0 on
    row_bytes: int  # bytes of an image
    print: str  # tells the file from another
    offset: int  # of the first plane: in the file, or in `member` of it
    member: str | None = None  # of an npz that is packed
    text: bool = False  # stored as text, see `Located`
    crc: tuple[int, int] | None = None  # check sums: of what lies before the planes, and of all with them

    def read(self, start: int) -> Iterator[np.ndarray]:
        """The planes from image `start` on: pieces (k, row_bytes) uint8, each an array of its own."""
        rows = max(1, READ // self.row_bytes)
        with self.place.open() as file, self._planes(file) as stream:
            with damage_named(str(self.place)):
                _skip(stream, start * self.row_bytes, 0 if self.text else self.offset)
            crc, wanted = self.crc if self.crc and start == 0 else (0, None)
            for first in range(start, len(self.labels), rows):
                piece = np.empty((min(rows, len(self.labels) - first), self.row_bytes), np.uint8)
                with damage_named(str(self.place)):
                    _fill(stream, piece.data.cast("B"))
                if wanted is not None:
                    crc = zlib.crc32(piece.data, crc)
                yield piece
            if wanted is not None and crc != wanted:
                raise _damaged("its check sum is wrong", self.place)

    @contextmanager
    def _planes(self, file: IO[bytes]) -> Iterator[IO[bytes]]:
        if self.text:
            file.seek(self.offset)
            yield _Latin1(file)  # type: ignore[misc]
        elif self.member is None:
            yield file
        else:
            with damage_named(str(self.place), self.member):
                archive = zipfile.ZipFile(file)
                content = archive.open(self.member)
            with archive, content:
                yield content


def scan_batch(place: Place, *, npz: bool) -> Batch:
    """Read the labels of a file and find its planes. Raises DataError for a damaged or another kind of file."""
    with damage_named(str(place)), place.open() as file:
        batch = _scan_npz(place, file) if npz else _scan_pickle(place, file)
        if place.member is not None:
            while file.read(1 << 20):  # at the end the zip compares its check sum
                pass
    return batch


def _scan_pickle(place: Place, file: IO[bytes]) -> Batch:
    content = scan_plain(file, place.size, where=str(place))
    if not isinstance(content, dict):
        raise _damaged("it holds no table", place)
    table = {
        key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()
    }
    try:
        array = table["data"]
        if not isinstance(array, PickledArray):
            raise ValueError("`data` is no array")
        shape, data = array.locate()
        labels = _count_from_0(whole_numbers(table["labels"]))
        if not isinstance(data, Located):
            raise ValueError(f"an array of shape {shape} without pixels")
        row_bytes = _row_bytes(shape, labels, None if data.text else data.nbytes)
    except KeyError as error:
        raise _damaged(f"no {error} in it", place) from None
    except ValueError as error:
        raise _damaged(str(error), place) from None
    sample = _sample(file, data) if place.member is None else place.crc
    seen = _fingerprint(labels, row_bytes, sample)
    return Batch(place, labels, row_bytes, seen, data.offset, text=data.text)


def _scan_npz(place: Place, file: IO[bytes]) -> Batch:
    with zipfile.ZipFile(file) as archive:
        found = {info.filename: info for info in list_zip(archive, INNER, str(place), place.size)}
        missing = [name for name in ("data.npy", "labels.npy") if name not in found]
        if missing:
            raise _damaged(f"no {missing[0]} in it", place)
        info, label_info = found["data.npy"], found["labels.npy"]
        if any(not 0 <= member.header_offset < place.size for member in (info, label_info)):
            raise _damaged("a member that begins outside of it", place)
        if label_info.file_size > LARGEST_LABELS:
            raise _damaged(f"labels of {label_info.file_size:,} bytes", place)
        try:
            with archive.open(info) as stream:
                head = _read_head(stream)
                if head.kind != "|u1":
                    raise ValueError(f"pixels of the type {head.kind!r}, wanted '|u1'")
            with archive.open(label_info) as stream:
                label_head = _read_head(stream)
                values = np.frombuffer(stream.read(), np.dtype(label_head.kind))
                if label_head.shape != (len(values),):
                    raise ValueError(f"labels of shape {label_head.shape}, wanted one row of numbers")
                labels = _count_from_0(values.astype(np.int64))
            row_bytes = _row_bytes(head.shape, labels, info.file_size - len(head.data))
        except ValueError as error:
            raise _damaged(str(error), place) from None
    seen = _fingerprint(labels, row_bytes, info.CRC)
    if info.compress_type != zipfile.ZIP_STORED:
        return Batch(place, labels, row_bytes, seen, len(head.data), member="data.npy")
    file.seek(info.header_offset)  # not packed: its bytes can be read from where they lie
    local = file.read(30)
    name, extra = struct.unpack("<HH", local[26:30])
    offset = info.header_offset + 30 + name + extra + len(head.data)
    return Batch(place, labels, row_bytes, seen, offset, crc=(zlib.crc32(head.data), info.CRC))


def _read_head(stream: IO[bytes]) -> NpyHead:
    head = read_npy_head(stream)
    if head.by_columns:
        raise ValueError("an array that is not in C order")
    if head.kind not in WHOLE:
        raise ValueError(f"an array of the type {head.kind!r}, wanted whole numbers")
    return head


def _row_bytes(shape: tuple[int, ...], labels: np.ndarray, nbytes: int | None) -> int:
    if len(shape) != 2 or shape[1] < 3 or shape[0] < 1:
        raise ValueError(f"pixels of shape {shape}, wanted (images, 3 * side * side)")
    if nbytes is not None and math.prod(shape) != nbytes:
        raise ValueError(f"{nbytes:,} bytes of pixels for the shape {shape}")
    if shape[0] != len(labels):
        raise ValueError(f"{shape[0]:,} images but {len(labels):,} labels")
    return shape[1]


def _count_from_0(labels: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero((labels < 1) | (labels > CLASSES))
    if len(wrong):
        zero = labels[wrong[0]] == 0 and labels.max() < CLASSES and labels.min() == 0
        hint = " (they seem to count from 0; the published files count from 1)" if zero else ""
        raise ValueError(f"label {labels[wrong[0]]} of image {wrong[0]} is not in 1..{CLASSES}{hint}")
    return labels - 1


def _fingerprint(labels: np.ndarray, row_bytes: int, sample: object) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes() + repr((row_bytes, sample)).encode()).hexdigest()


def _sample(file: IO[bytes], data: Located) -> str:
    digest = hashlib.sha256()
    for block in range(SAMPLES):
        file.seek(data.offset + (data.nbytes - min(SAMPLE, data.nbytes)) * block // (SAMPLES - 1))
        digest.update(file.read(min(SAMPLE, data.nbytes)))
    return digest.hexdigest()


def _skip(stream: IO[bytes], nbytes: int, offset: int) -> None:
    if isinstance(stream, _Latin1):
        while nbytes:
            nbytes -= len(stream.read(min(nbytes, READ))) or _cut()
    else:
        stream.seek(offset + nbytes)


def _fill(stream: IO[bytes], out: memoryview) -> None:
    while len(out):
        out = out[stream.readinto(out) or _cut() :]  # type: ignore[attr-defined]


def _cut() -> int:
    raise EOFError("it ends before its pixels do")


def _damaged(what: str, place: Place) -> DataError:
    return DataError(
        f"a batch file is damaged or of another kind: {what}",
        where=str(place),
        fix="download it again from its official address",
    )


class _Latin1(io.RawIOBase):
    """Bytes out of UTF-8 text of Latin-1 characters, read one after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, out: "memoryview") -> int:  # type: ignore[override]
        while data := self.file.read(len(out)):
            if plain := self.decoder.decode(data).encode("latin-1"):
                out[: len(plain)] = plain
                return len(plain)
        return 0
