"""One tar shard of samples: where its images lie, and their labels. It is walked over with care, never unpacked."""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from fastdrpl.loaders.archives import MAGIC, PHOTOS, damage_named
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.pictures import EXTENSIONS

SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # key and extensions
IMAGES = EXTENSIONS | {".img", ".image"}
SMALL = 1 << 20  # bytes that a label or a header may have


@dataclass
class Shard:
    """One tar file: its samples with an image, in the order of the images."""

    path: str
    keys: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # of the images, in the uncompressed shard
    sizes: list[int] = field(default_factory=list)
    without_image: int = 0
    no_files: int = 0  # links and other members that hold nothing


def scan(path: str) -> Shard:
    """Where the images of a shard lie, and their labels. Raises DataError for a damaged or hostile shard."""
    shard = Shard(path)
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    keys: dict[str, set[str]] = {}  # of every sample: the extensions met
    for member, file in _members(path):
        if not _is_plain(member):
            shard.no_files += not member.isdir()
            continue
        name = SAMPLE.fullmatch(member.name.removeprefix("./"))
        if name is None:
            continue  # no extension, or hidden
        key, extension = name[1], f".{name[2].lower()}"
        met = keys.setdefault(key, set())
        if extension in met or (extension in IMAGES and key in images):
            twice = "two images" if extension in IMAGES else f"{extension!r} twice"
            raise DataError(f"the sample {printable(key)!r} has {twice}", where=path)
        met.add(extension)
        if extension in IMAGES:
            images[key] = (member.offset_data, member.size)
        elif extension == ".cls" or (extension == ".json" and ".cls" not in met):
            label = _label(file, member, extension, path)
            if label:
                labels[key] = label
    for key in sorted(images, key=images.__getitem__):
        shard.keys.append(key)
        shard.labels.append(labels.get(key))
        shard.offsets.append(images[key][0])
        shard.sizes.append(images[key][1])
    shard.without_image = len(keys) - len(images)
    return shard


class _Guarded:
    """A file from which little is read at a time: no header can claim the memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, nbytes: int) -> bytes:
        if not 0 <= nbytes <= SMALL:
            raise ValueError(f"a header of {nbytes:,} bytes")
        return self._read(nbytes)


def _members(path: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The members of a tar, and the file, which stands at their content. What is not read is skipped."""
    most, opener = PHOTOS.of(os.path.getsize(path)), opener_of(path)
    with (
        damage_named(path),
        opener(path, "rb") as file,
        tarfile.open(fileobj=_Guarded(file), mode="r:") as archive,  # type: ignore[call-overload]
    ):
        while (member := archive.next()) is not None:
            archive.members.clear()  # they are kept, and there may be millions
            if member.size < 0 or member.offset_data + member.size > most:
                raise ValueError(f"a member of {member.size:,} bytes")
            yield member, file
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError(f"no end mark and no readable header at byte {archive.offset:,}")
        while opener is not open and file.read(SMALL):  # the rest holds the check sum
            if file.tell() > 2 * most:
                raise ValueError("more behind its end than in it")


def opener_of(path: str) -> Callable[..., Any]:
    """`open`, or what opens a compressed file."""
    with open(path, "rb") as file:
        head = file.read(8)
    found: list[Any] = [opener for magic, opener in MAGIC.items() if head.startswith(magic)]
    return found[0] if found else open


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.sparse


def _label(file: IO[bytes], member: tarfile.TarInfo, extension: str, path: str) -> str | None:
    """The label in a `.cls` or `.json` member as text, None where it has none."""
    where = f"{path}, member {printable(member.name)!r}"
    if member.size > SMALL:
        raise DataError(f"a label of {member.size:,} bytes", where=where)
    with damage_named(path, member.name):
        file.seek(member.offset_data)
        data = file.read(member.size)
    try:
        text = data.decode()
        value = text if extension == ".cls" else _from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise DataError(f"a label cannot be read: {error}", where=where) from None
    if value is None or type(value) is int:
        return None if value is None else str(value)
    if not isinstance(value, str):
        raise DataError(f"a label is {type(value).__name__}; wanted text or a whole number", where=where)
    return value.strip()


def _from_json(content: object) -> object:
    if not isinstance(content, dict):
        return None
    return content.get("label", content.get("cls"))
