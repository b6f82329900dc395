"""Shards that tests write and prepare."""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare

Members = Iterable[tuple[str, bytes]]


def photo(grey: int, kind: str = "PNG", size: tuple[int, int] = (9, 7)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(out, kind)
    return out.getvalue()


def write_shard(path: Path, members: Members, mode: str = "w", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sample(number: int, label: object = None, key: str | None = None) -> list[tuple[str, bytes]]:
    """Image number k has colour 4 * k and, if nothing else is said, class k modulo 3."""
    key = key or f"{number:06}"
    label = number % 3 if label is None else label
    return [(f"{key}.cls", str(label).encode()), (f"{key}.png", photo(4 * number))]


def run(source: Path, out: Path, **options: Any) -> Dataset:
    return prepare(PrepareConfig(kind="webdataset", source=source, out=out, **({"size": 8} | options)))


def hostile(kind: str) -> bytes:
    """A shard that asks for too much, or is not whole."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in [m for k in range(6) for m in sample(k)]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = out.getvalue()
    header = tarfile.TarInfo("x.png")
    if kind == "cut in an image":
        return data[: 512 * 6 + 700]
    if kind == "cut between members":
        return data[: 512 * 4]
    if kind == "broken header":
        return data[: 512 * 4] + b"\xff" * 512 + data[512 * 5 :]
    if kind == "empty":
        return b""
    if kind == "text":
        return b"no tar at all\n" * 1000
    if kind == "name of 4 GB":
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    elif kind == "pax header of 4 GB":
        header.type, header.size = tarfile.XHDTYPE, 1 << 32
    elif kind == "size 2**62":
        header.size = 1 << 62
    elif kind == "negative size":
        block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
        block[124:136] = b"\xff" * 12  # base 256: -1
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
        return bytes(block) + data
    if kind == "bomb":
        header.size = 8 << 30
        return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22))
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16) + data
