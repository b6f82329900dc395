"""Tar shards: which rows lie in which, and where.

A shard is a plain tar file. A sample is three members with one key, its row in ten digits: `KEY.row` (the row, 8
bytes little-endian), `KEY.jpg` or, where pixels are stored raw, `KEY.ppm` (they are preceded by a head of one
length, so that every reader of images can open them), and `KEY.cls` (the label as downloaded, as text: for other
readers, no loader of ours looks at it). Beside it lies the index by which DALI seeks (`.idx`, version 1.2: a line
per sample with extension, offset, bytes and name of each member). Quarantined rows are in no shard.

Rows are dealt to the shards at random, once and for all: rows often come sorted by class, and a shard is read in
a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdrpl.kernels.philox import permutation
from fastdrpl.loaders.order import Pass, Purpose

if TYPE_CHECKING:
    from fastdrpl.loaders.dataset import Split

BLOCK = 512  # bytes: tar knows no smaller unit
SHARD_BYTES = 192 << 20  # a shard is not larger
FEWEST_SHARDS = 16  # of a split: an epoch shuffles shards, not rows
FEWEST_ROWS = 16  # in a shard, where a split is too small for that many
END = 2 * BLOCK  # zeros that close a tar file
BEFORE_PIXELS = 3 * BLOCK  # head and content of the row, head of the pixels
BEHIND_PIXELS = 2 * BLOCK  # head and content of the label
DEAL = Pass(seed=0, stage=1, epoch=0, purpose=Purpose.split)  # part of every set with shards: never change it


@dataclass(frozen=True)
class Shard:
    """One tar file and its index."""

    path: Path
    index_path: Path
    rows: np.ndarray  # (n,) int64 in the order in which they lie in the file; all of them valid


def deal_rows(valid: np.ndarray, counts: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The rows of each shard: (n,) int64 in the order in which they lie there.

    `valid`: (rows,) bool of the split; `counts`: samples of each shard, which must add up to the valid rows.
    """
    rows = np.flatnonzero(valid)
    if sum(counts) != len(rows):
        raise ValueError(f"shards of {sum(counts)} samples for {len(rows)} valid rows")
    dealt = rows[permutation(DEAL.order_stream, rows)]
    return np.split(dealt, np.cumsum(counts)[:-1]) if len(counts) else []


def count_samples(samples: int, nbytes: int) -> list[int]:
    """How many samples each shard of a split gets: even, in shards of at most `SHARD_BYTES`, if possible 16 of them.

    `nbytes`: what all samples take in tar files.
    """
    shards = max(-(-nbytes // SHARD_BYTES), min(FEWEST_SHARDS, -(-samples // FEWEST_ROWS)))
    shards = min(shards, samples)
    return np.diff(np.arange(shards + 1) * samples // max(shards, 1)).tolist()


def shard_name(split: str, number: int) -> str:
    """File name of a shard; its index has `.idx` instead of `.tar`."""
    return f"{split}-{number:06}.tar"


def pixel_head(split: "Split") -> bytes:
    """What stands before the pixels of a row in its member: the head of a PPM file where they are raw."""
    return b"P6 %d %d 255\n" % (split.width, split.height) if split.store == "raw" else b""


def pixel_extension(split: "Split") -> str:
    """Extension of the member with the pixels."""
    return "ppm" if split.store == "raw" else "jpg"


def lay_out(split: "Split", rows: np.ndarray) -> np.ndarray:
    """First byte of each of these samples in a tar file that holds them in this order, and the end: (n + 1,) int64."""
    pixels = split.nbytes[rows] + len(pixel_head(split))
    sample = BEFORE_PIXELS + -(-pixels // BLOCK) * BLOCK + BEHIND_PIXELS
    return np.concatenate([[0], np.cumsum(sample)])


def tar_bytes(split: "Split", shard: Shard) -> int:
    """How long the tar file must be."""
    return int(lay_out(split, shard.rows)[-1]) + END


def index_text(split: "Split", rows: np.ndarray) -> str:
    """DALI's index of a shard that holds these rows in this order."""
    starts, extension, head = lay_out(split, rows), pixel_extension(split), len(pixel_head(split))
    columns = [rows, starts[:-1] + BLOCK, starts[:-1] + BEFORE_PIXELS, split.nbytes[rows] + head]
    columns += [starts[1:] - BLOCK, split.label[rows]]
    lines = [f"v1.2 {len(rows)}\n"]
    for row, at, pixels_at, nbytes, label_at, label in zip(*(c.tolist() for c in columns), strict=True):
        key = f"{row:010}"
        pixels = f"{extension} {pixels_at} {nbytes} {key}.{extension}"
        lines.append(f"row {at} 8 {key}.row {pixels} cls {label_at} {len(str(label))} {key}.cls\n")
    return "".join(lines)
