"""Writes the tar shards of finished compiled files: streamed, deterministic, and continued where a kill left them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split, split_of
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.shards import (
    BEFORE_PIXELS,
    BEHIND_PIXELS,
    BLOCK,
    END,
    count_samples,
    deal_rows,
    index_text,
    lay_out,
    pixel_extension,
    pixel_head,
    shard_name,
)

CHUNK_BYTES = 8 << 20  # of a tar file that are made in one piece
READERS = 8  # threads: rows are read in no order, which waits for the disk
JOURNAL = "shards.journal"


@dataclass(frozen=True)
class WrittenShard:
    """A finished shard as the manifest tells of it. sha256 in hexadecimal."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str

    def files(self) -> dict[str, dict[str, int | str]]:
        """The manifest's entries of the two files."""
        return {
            self.name: {"bytes": self.bytes, "sha256": self.sha256},
            index_name(self.name): {"bytes": self.index_bytes, "sha256": self.index_sha256},
        }


def index_name(shard: str) -> str:
    """File name of the index of a shard."""
    return shard.removesuffix(".tar") + ".idx"


def overhead_per_sample(width: int, height: int) -> int:
    """Bytes at most that a sample takes in a shard beyond its stored pixels."""
    return BEFORE_PIXELS + BEHIND_PIXELS + BLOCK + len(b"P6 %d %d 255\n" % (width, height)) + 128  # the index


def write_shards(
    work: Path, quarantined: Mapping[str, Sequence[int]], *, quiet: bool = False
) -> dict[str, list[WrittenShard]]:
    """Write the shards of every compiled file in `work` beside it; what an earlier process finished stays.

    `quarantined`: split -> its bad rows. Raises DataError where the disk is too small.
    """
    splits = {name: _open_finished(work, name, rows) for name, rows in quarantined.items()}
    dealt = {name: _deal(split) for name, split in splits.items()}
    journal = work / JOURNAL
    done = _load_journal(journal)
    _check_space(work, [(splits[name], rows) for name in splits for rows in dealt[name]])
    written: dict[str, list[WrittenShard]] = {}
    for name, split in splits.items():
        written[name] = []
        total = sum(len(rows) for rows in dealt[name])
        with Progress(f"{name} shards", total, quiet=quiet) as bar:
            for number, rows in enumerate(dealt[name]):
                file = shard_name(name, number)
                if file not in done:
                    done[file] = _write_shard(split, rows, work / file)
                    _append(journal, done[file])
                written[name].append(done[file])
                bar.advance(len(rows))
    journal.unlink(missing_ok=True)
    return written


def _open_finished(work: Path, name: str, quarantined: Sequence[int]) -> Split:
    path = work / f"{name}.beton"
    tables = read_tables(path)
    valid = np.ones(len(tables.label), dtype=bool)
    valid[list(quarantined)] = False
    return split_of(name, path, tables, valid)


def _deal(split: Split) -> list[np.ndarray]:
    rows = np.flatnonzero(split.valid)
    return deal_rows(split.valid, count_samples(len(rows), int(lay_out(split, rows)[-1])))


def _load_journal(journal: Path) -> dict[str, WrittenShard]:
    """The shards that are safely on the disk; a torn last line counts as absent."""
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    if journal.exists():
        os.truncate(journal, sum(len(line) + 1 for line in lines))
    return {shard.name: shard for shard in (WrittenShard(**json.loads(line)) for line in lines)}


def _append(journal: Path, shard: WrittenShard) -> None:
    with open(journal, "ab") as file:
        file.write(json.dumps(asdict(shard)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _check_space(work: Path, shards: list[tuple[Split, np.ndarray]]) -> None:
    wanted = sum(int(lay_out(split, rows)[-1]) + END + 160 * len(rows) for split, rows in shards)
    there = sum(path.stat().st_size for path in work.glob("*.tar"))
    free = shutil.disk_usage(work).free
    if wanted - there > free:
        raise DataError(
            f"not enough disk for the shards: {(wanted - there) / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            where=str(work.parent),
            fix="free some space, choose another --out, or leave --format shards out",
        )


def _write_shard(split: Split, rows: np.ndarray, path: Path) -> WrittenShard:
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for chunk in _tar_chunks(split, rows):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    index = index_text(split, rows).encode("ascii")
    with open(path.with_name(index_name(path.name)), "wb") as file:
        file.write(index)
        file.flush()
        os.fsync(file.fileno())
    return WrittenShard(
        path.name, len(rows), size, digest.hexdigest(), len(index), hashlib.sha256(index).hexdigest()
    )


def _tar_chunks(split: Split, rows: np.ndarray) -> Iterator[memoryview]:
    starts = lay_out(split, rows)
    descriptor = os.open(split.path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        with ThreadPoolExecutor(READERS) as pool:
            first = 0
            while first < len(rows):
                stop = int(np.searchsorted(starts, starts[first] + CHUNK_BYTES, side="right")) - 1
                stop = min(max(stop, first + 1), len(rows))
                buffer = np.zeros(int(starts[stop] - starts[first]), np.uint8)
                _fill(buffer, split, rows[first:stop], starts[first : stop + 1] - starts[first])
                _read_pixels(
                    pool, descriptor, buffer, split, rows[first:stop], starts[first:stop] - starts[first]
                )
                yield buffer.data
                first = stop
    finally:
        os.close(descriptor)
    yield memoryview(bytes(END))


def _fill(buffer: np.ndarray, split: Split, rows: np.ndarray, starts: np.ndarray) -> None:
    """Everything but the pixels. `starts`: (n + 1,) first byte of each sample in the buffer, and the end."""
    blocks = buffer.reshape(-1, BLOCK)
    begin, end = starts[:-1] // BLOCK, starts[1:] // BLOCK
    head = np.frombuffer(pixel_head(split), np.uint8)
    label = np.array([str(value).encode() for value in split.label[rows].tolist()], dtype=bytes)
    label_bytes = np.char.str_len(label)
    blocks[begin] = _heads(rows, "row", np.full(len(rows), 8))
    blocks[begin + 1, :8] = rows.astype("<i8").view(np.uint8).reshape(-1, 8)
    blocks[begin + 2] = _heads(rows, pixel_extension(split), split.nbytes[rows] + len(head))
    blocks[begin + 3, : len(head)] = head
    blocks[end - 2] = _heads(rows, "cls", label_bytes)
    blocks[end - 1, : label.dtype.itemsize] = label.view(np.uint8).reshape(len(rows), -1)


def _read_pixels(
    pool: ThreadPoolExecutor,
    descriptor: int,
    buffer: np.ndarray,
    split: Split,
    rows: np.ndarray,
    starts: np.ndarray,
) -> None:
    begin = starts + BEFORE_PIXELS + len(pixel_head(split))
    by_place = np.argsort(split.offset[rows])  # kinder to a disk that turns

    def read(part: np.ndarray) -> None:
        for at, nbytes, offset in zip(
            begin[part].tolist(),
            split.nbytes[rows[part]].tolist(),
            split.offset[rows[part]].tolist(),
            strict=True,
        ):
            if os.preadv(descriptor, [buffer[at : at + nbytes].data], offset) != nbytes:
                raise DataError("the compiled file became shorter while it was read", where=str(split.path))

    for done in [pool.submit(read, part) for part in np.array_split(by_place, READERS)]:
        done.result()


def _heads(rows: np.ndarray, extension: str, sizes: np.ndarray) -> np.ndarray:
    """The tar heads (POSIX ustar) of members KEY.extension: (n, 512) uint8. Owner and time are 0."""
    heads = np.zeros((len(rows), BLOCK), np.uint8)

    def put(at: int, text: bytes) -> None:
        heads[:, at : at + len(text)] = np.frombuffer(text, np.uint8)

    heads[:, :10] = rows[:, None] // 10 ** np.arange(9, -1, -1) % 10 + ord("0")
    put(10, f".{extension}".encode())
    put(100, b"0000644\00000000\00000000\0")  # mode, user, group
    heads[:, 124:135] = _octal(sizes, 11)
    put(136, b"00000000000\0")  # time of change
    put(148, b"        0")  # the checksum counts as blanks; type: a file
    put(257, b"ustar\000")
    put(329, b"0000000\00000000\0")  # device
    heads[:, 148:154] = _octal(heads.sum(axis=1, dtype=np.int64), 6)
    heads[:, 154] = 0
    return heads


def _octal(values: np.ndarray, digits: int) -> np.ndarray:
    return (values[:, None] >> 3 * np.arange(digits - 1, -1, -1) & 7) + ord("0")
