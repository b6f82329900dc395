"""Reading archives that nobody vouches for: one guarded walk over tar and zip, and one way to unpack.

Refused: paths that lead out, links, devices, sparse files, encrypted members, two members of one name, too
many members, too many bytes, and bytes that swell too much. Only what is read is ever held in memory.
"""

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from fastdrpl.loaders.errors import DataError

BLOCK = 1 << 20  # bytes copied at a time
CHUNK = 1 << 16  # bytes that a tar is read in
PAGE = 1 << 12  # bytes that file systems give out at a time
HEADERS = 1 << 20  # bytes that the headers of one tar member may take
LATEST = float(1 << 33)  # seconds since 1970; no file system knows much later times
MAGIC: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
OTHERS = {  # what is not unpacked here
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress",
    b"LZIP": "lzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much an archive may hold: members, and bytes after unpacking (the smaller of the two bounds)."""

    members: int
    nbytes: int
    swell: int = 200  # times the size of the archive; archives below `free` unpacked bytes are not held to it
    free: int = 1 << 30

    def of(self, packed: int) -> int:
        """The most bytes that an archive of `packed` bytes may hold."""
        return min(self.nbytes, max(self.free, self.swell * packed))


PHOTOS = Limits(members=20_000_000, nbytes=4 << 40)


class Member:
    """One file in an archive. `read(n)` gives its content piece by piece, once, before the next member."""

    def __init__(self, name: str, size: int, changed: float, file: IO[bytes], where: str) -> None:
        self.name, self.size = name, size
        self.changed = changed if 0 <= changed <= LATEST else 0.0  # seconds since 1970
        self._file, self._where, self._left = file, where, size

    def read(self, nbytes: int) -> bytes:
        """The next bytes, none at the end. Raises DataError where the archive is damaged."""
        with damage_named(self._where, self.name):
            data = self._file.read(min(nbytes, self._left)) if self._left else b""
            if self._left and not data:
                raise EOFError("it ends before its content does")
        self._left -= len(data)
        return data

    def read_whole(self) -> bytes:
        """What is left, in memory. Raises DataError as `read`."""
        return b"".join(iter(lambda: self.read(BLOCK), b""))


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or a tar (plain, gzip, bzip2 or xz), by its content."""
    if not path.is_file():
        return False
    if _is_zip(path):
        return True
    try:
        with open(path, "rb") as file, _unpacked(file) as stream:
            tarfile.TarInfo.frombuf(
                stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape"
            )  # has a check sum
    except (*DAMAGE, OSError):
        return False
    return True


def foreign_packing(path: Path) -> str | None:
    """The name of a packing that is not unpacked here, by the content of a file; None for all other files."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        head = file.read(8)
    return next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)


def unpacked_size(path: Path) -> int:
    """Bytes on the disk that an archive needs when it is unpacked. Of a tar its own: photos hardly shrink."""
    if not _is_zip(path):
        return path.stat().st_size
    with damage_named(str(path)), zipfile.ZipFile(path) as archive:
        return sum(-(-info.file_size // PAGE) * PAGE for info in archive.infolist())


def walk(path: Path, limits: Limits, *, wanted: Container[str] | None = None) -> Iterator[Member]:
    """The files of an archive, in its order; nothing is written to the disk.

    With `wanted` only members of these names are looked at, and all others are skipped whatever they are.
    Raises DataError, which names archive and member, for a damaged or a hostile archive.
    """
    names = _Names(str(path), limits, wanted)
    if _is_zip(path):
        yield from _walk_zip(path, limits, names)
    else:
        yield from _walk_tar(path, limits, names)


def extract(archive: Path, folder: Path, limits: Limits = PHOTOS) -> int:
    """Unpack all files of an archive into a new folder; returns how many. Modes and owners are not kept.

    Raises DataError as `walk`, and leaves no folder then.
    """
    folder.mkdir(parents=True)
    count, ready, done = 0, set(), False
    try:
        for member in walk(archive, limits):
            out = folder / member.name
            if out.parent not in ready:
                out.parent.mkdir(parents=True, exist_ok=True)
                ready.add(out.parent)
            with open(out, "xb") as file:
                while data := member.read(BLOCK):
                    file.write(data)
            os.utime(out, (member.changed, member.changed))
            count += 1
        done = True
    finally:
        if not done:
            shutil.rmtree(folder)
    return count


def list_zip(archive: zipfile.ZipFile, limits: Limits, where: str, packed: int) -> list[zipfile.ZipInfo]:
    """The files in an opened zip of `packed` bytes, in its order, all checked. Raises DataError."""
    names = _Names(where, limits, None)
    return [info for info in archive.infolist() if _accept_zip(info, names, limits.of(packed))]


@contextmanager
def damage_named(where: str, member: str | None = None) -> Iterator[None]:
    """Turns what readers of archives raise on damaged bytes into a DataError; disk errors stay as they are."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        _refuse(where, f"the archive is damaged: {error or type(error).__name__}", member)
    except OSError as error:  # of gzip and bzip2, which have no number, and of a place before the beginning
        if error.errno not in (None, errno.EINVAL):
            raise
        _refuse(where, f"the archive is damaged: {error}", member)


def _refuse(where: str, what: str, member: str | None = None) -> NoReturn:
    inside = f", member {member[:200]!r}" if member is not None else ""
    raise DataError(
        what, where=where + inside, fix="download it again from its official address; it may have been cut"
    ) from None


class _Names:
    """What the members met so far were called, and how much they hold."""

    def __init__(self, where: str, limits: Limits, wanted: Container[str] | None) -> None:
        self.where, self.limits, self.wanted = where, limits, wanted
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.members = self.nbytes = 0

    def count(self, size: int, most: int, name: str) -> None:
        self.members += 1
        self.nbytes += size
        if self.members > self.limits.members:
            _refuse(self.where, f"an archive with more than {self.limits.members:,} members", name)
        if size < 0 or self.nbytes > most:
            _refuse(self.where, f"an archive that unpacks to more than {most:,} bytes", name)

    def is_wanted(self, name: str) -> bool:
        return self.wanted is None or _plain(name) in self.wanted

    def take(self, name: str, *, folder: bool = False) -> str:
        """The name of a file or folder in plain form. Raises DataError where it leads out or is taken."""
        parts = name.replace("\\", "/").split("/")
        if not name or name[0] in "/\\" or name[1:2] == ":" or ".." in parts or "\0" in name:
            _refuse(self.where, "an archive with a path that leads out of its folder", name)
        if len(os.fsencode(name)) > 4000 or any(len(os.fsencode(part)) > 255 for part in parts):
            _refuse(self.where, "an archive with a path too long for the disk", name)
        plain = _plain(name)
        if plain == "." and folder:
            return plain
        above = plain
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in self.files:
                _refuse(self.where, "an archive where a file is a folder too", name)
            if above in self.folders:
                break
            self.folders.add(above)
        if plain in self.files or (plain in self.folders and not folder) or plain == ".":
            _refuse(self.where, "an archive that holds one name twice", name)
        (self.folders if folder else self.files).add(plain)
        return plain


def _plain(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "."


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member; some writers on Windows put backslashes between folders, which no zip should have."""
    name = info.filename
    return name if "/" in name else name.replace("\\", "/")


def _walk_zip(path: Path, limits: Limits, names: _Names) -> Iterator[Member]:
    with ExitStack() as stack:
        with damage_named(str(path)):
            archive = stack.enter_context(zipfile.ZipFile(path))
        most = limits.of(path.stat().st_size)
        for info in archive.infolist():
            if not _accept_zip(info, names, most):
                continue
            with damage_named(str(path), info.filename):
                content = archive.open(info)
                changed = time.mktime((*info.date_time, 0, 0, -1))
            with content:
                yield Member(_plain(_zip_name(info)), info.file_size, changed, content, str(path))


def _accept_zip(info: zipfile.ZipInfo, names: _Names, most: int) -> bool:
    """Whether a member is a file to look at. Raises DataError for one that must not be."""
    name = _zip_name(info)
    names.count(info.file_size, most, info.filename)
    if not names.is_wanted(name):
        return False
    if name.endswith("/"):
        names.take(name, folder=True)
        return False
    names.take(name)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        _refuse(names.where, "an archive with a link or a device", info.filename)
    if info.flag_bits & 0x1:
        _refuse(names.where, "an archive with an encrypted member", info.filename)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _refuse(names.where, f"an archive packed by method {info.compress_type}", info.filename)
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        _refuse(names.where, "the archive is damaged: two sizes of one member", info.filename)
    return True


class _StrictInfo(tarfile.TarInfo):
    """The usual reader takes an unreadable header for the end of the archive; this one says so."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictInfo":
        try:
            return super().fromtarfile(archive)  # type: ignore[return-value]
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise EOFError("it ends without an end mark") from None
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise ValueError(f"a header cannot be read: {error}") from None


class _Bounded:
    """A stream that refuses to give more than `stop` bytes in all: a header cannot claim the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.given, self.stop = stream, 0, HEADERS

    def read(self, nbytes: int) -> bytes:
        if self.given >= self.stop:
            raise ValueError("headers longer than any name")
        data = self.stream.read(nbytes)
        self.given += len(data)
        return data


def _walk_tar(path: Path, limits: Limits, names: _Names) -> Iterator[Member]:
    where = str(path)
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        most = limits.of(os.fstat(file.fileno()).st_size)
        with damage_named(where):
            stream = stack.enter_context(_unpacked(file))
            bounded = _Bounded(stream)
            archive = stack.enter_context(
                tarfile.open(fileobj=bounded, mode="r|", tarinfo=_StrictInfo, bufsize=CHUNK)  # type: ignore[call-overload]
            )
        last = None
        while True:
            with damage_named(where, last):
                if archive.offset - bounded.given > most:  # what is skipped is read
                    raise ValueError(f"a member of more than {most:,} bytes")
                bounded.stop = max(bounded.given, archive.offset) + HEADERS
                info = archive.next()
                archive.members = []  # they are kept, and there may be millions
            if info is None:
                break
            last = info.name
            names.count(info.size, most, info.name)
            bounded.stop = bounded.given + max(info.size, 0) + HEADERS
            if not names.is_wanted(info.name):
                continue
            if info.isdir():
                names.take(info.name, folder=True)
                continue
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse:
                if names.wanted is not None:
                    continue
                _refuse(where, "an archive with a link, a device or a sparse file", info.name)
            names.take(info.name)
            with damage_named(where, info.name):
                content = archive.extractfile(info)
            if content is not None:
                yield Member(_plain(info.name), info.size, float(info.mtime), content, where)
        with damage_named(where):  # the rest holds the check sum
            while stream.read(BLOCK):
                bounded.given += BLOCK
                if bounded.given > 2 * most:
                    raise ValueError("more behind its end than in it")


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


@contextmanager
def _unpacked(file: IO[bytes]) -> Iterator[IO[bytes]]:
    head = file.read(6)
    file.seek(0)
    for magic, opener in MAGIC.items():
        if head.startswith(magic):
            with opener(file, "rb") as stream:
                yield stream
            return
    yield file
