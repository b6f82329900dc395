"""Prepared data in parts that can be carried one at a time, and put together again where they arrive.

    python bench/carry_data.py split data/cifar10 .data       # .data/cifar10.000, .001, ... and .data/cifar10.json
    python bench/carry_data.py join .data data                # data/cifar10, once every part is there

Joining compares every part and file with its sha256. Exit code 3: parts are missing, or differ; which ones is said.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LARGEST = 55 << 20  # bytes of a part
WAITS = 3  # exit code


class Missing(Exception):
    """Parts that have not arrived, or not as they were sent."""


def split(source: Path, out: Path, largest: int = LARGEST) -> list[Path]:
    """Write the files of a folder as parts of at most `largest` bytes, and a list of them: -> the parts."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{source.name}.*"):
        old.unlink()
    archive = out / f"{source.name}.tar"
    with tarfile.open(archive, "w") as tar:
        for file in sorted(source.iterdir()):
            tar.add(file, f"{source.name}/{file.name}", recursive=False)
    parts = []
    with open(archive, "rb") as stream:
        while data := stream.read(largest):
            parts.append(out / f"{source.name}.{len(parts):03}")
            parts[-1].write_bytes(data)
    archive.unlink()
    listed = {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts}
    (out / f"{source.name}.json").write_text(json.dumps(listed, indent=1) + "\n")
    return parts


def join(arrived: Path, out: Path) -> list[Path]:
    """Unpack every set whose list is in `arrived`: -> their folders. Raises `Missing` naming parts."""
    lists = sorted(arrived.glob("*.json"))
    if not lists:
        raise Missing(f"{arrived} has no list of parts (NAME.json)")
    return [_join(file, out) for file in lists]


def _join(file: Path, out: Path) -> Path:
    target, work = out / file.stem, out / f".{file.stem}"
    if target.exists():
        return target
    listed: dict[str, str] = json.loads(file.read_text())
    parts = [file.parent / name for name in listed]
    bad = [
        f"{part.name} {'differs' if part.exists() else 'is missing'}"
        for part in parts
        if not part.exists() or hashlib.sha256(part.read_bytes()).hexdigest() != listed[part.name]
    ]
    if bad:
        raise Missing(
            f"{file.stem}: {len(parts) - len(bad)} of {len(parts)} parts are here; {', '.join(bad)}"
        )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with tarfile.open(fileobj=_Chain(parts), mode="r|") as tar:  # type: ignore[arg-type]
        tar.extractall(work, filter="data")
    (work / file.stem).rename(target)  # at once: what has the name is whole
    work.rmdir()
    return target


class _Chain:
    """Several files, read as one."""

    def __init__(self, parts: list[Path]):
        self._streams: Iterator[BinaryIO] = (open(part, "rb") for part in parts)  # noqa: SIM115 - closed below
        self._stream: BinaryIO | None = next(self._streams)

    def read(self, size: int) -> bytes:
        found = b""
        while self._stream is not None and len(found) < size:
            data = self._stream.read(size - len(found))
            if not data:
                self._stream.close()
                self._stream = next(self._streams, None)
            found += data
        return found


def main() -> int:
    """Split or join."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--largest", type=int, default=LARGEST, help="bytes of a part")
    words = parser.parse_args()
    if words.what == "split":
        parts = split(words.source, words.out, words.largest)
        print(
            f"{len(parts)} parts of at most {words.largest:,} bytes and {words.source.name}.json in {words.out}"
        )
        return 0
    try:
        print(f"here: {', '.join(map(str, join(words.source, words.out)))}")
    except Missing as missing:
        print(f"waiting for data: {missing}", file=sys.stderr)
        return WAITS
    return 0


if __name__ == "__main__":
    sys.exit(main())
