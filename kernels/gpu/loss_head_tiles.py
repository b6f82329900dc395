"""How the loss head's kernels cut a batch into groups of rows, and what the device functions of all of them load."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BLOCK = 2048  # columns a program holds at once; rows of more classes are walked over in blocks
TILE = 2048  # rows times columns a program holds at once: with 8 elements in a thread nothing is spilled
MOST_GROUPS = 32  # groups of rows that are left to the last launch, which is a single program
MANY_GROUPS = 256  # enough of them to occupy a GPU: from there on longer groups cost less than more of them
FOLD = 64  # groups that one launch of `fold_kernel` makes one


class Tile(NamedTuple):
    """A group of rows: `steps` times `rows` of them; and how many columns a program holds at once."""

    rows: int
    steps: int
    block: int

    def groups(self, batch: int) -> int:
        """Into how many groups a batch is cut."""
        return -(-batch // (self.rows * self.steps))


def tile_of(batch: int, classes: int) -> Tile:
    """How a batch is cut up; rows and block are powers of two."""
    tile = Tile(1, 1, LARGEST_BLOCK)
    if classes > LARGEST_BLOCK:
        # Each group writes two numbers a class: where there are many rows, groups are longer and blocks narrower.
        while tile.groups(batch) > MANY_GROUPS and tile.block > LARGEST_BLOCK // 16:
            tile = Tile(2 * tile.rows, 1, tile.block // 2)
        return tile
    while tile.block >= 2 * classes:
        tile = tile._replace(block=tile.block // 2)
    while tile.groups(batch) > MOST_GROUPS and 2 * tile.rows * tile.block <= TILE:
        tile = tile._replace(rows=2 * tile.rows)
    while tile.groups(batch) > (MOST_GROUPS if tile.steps < 2 else MANY_GROUPS) and tile.steps < 16:
        tile = tile._replace(steps=2 * tile.steps)
    return tile


def groups_left(batch: int, classes: int, most: int) -> int:
    """How many groups of rows `launch_rows` leaves."""
    groups = tile_of(batch, classes).groups(batch)
    while groups > most:
        groups = -(-groups // FOLD)
    return groups


def warps_of(tile: int) -> int:
    """Groups of 32 threads for a tile: 8 elements a thread in most."""
    return max(1, min(8, tile // 256))


def empty_numbers(like: Tensor, *shape: int) -> Tensor:
    """Memory for float32 numbers on the device of another tensor."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


# --- device functions ---


@triton.jit
def load_logits(logits, row, column, stride_row, stride_column, inside):
    """A tile of logits in float32, -infinity outside."""
    place = row[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
    return tl.load(logits + place, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def load_target(target, sample, column, classes, inside, LABELS: tl.constexpr):
    """A tile of the samples' targets, 0 outside; of integer labels their one-hot rows."""
    if LABELS:
        label = tl.load(target + sample)
        return ((label[:, None] == column[None, :]) & inside).to(tl.float32)
    else:
        return tl.load(target + sample[:, None] * classes + column[None, :], mask=inside, other=0.0)


@triton.jit
def mix_target(own, target, other, coefficient, column, classes, inside, LABELS: tl.constexpr):
    """The samples' targets mixed with those of their partners: equation 1 is linear in them."""
    weight = tl.load(coefficient)
    return weight * own + (1.0 - weight) * load_target(target, other, column, classes, inside, LABELS)
