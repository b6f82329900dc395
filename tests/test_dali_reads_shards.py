"""The DALI loader along shards: stored order, missing, damaged and other ones."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from need import need

from fastdrpl.loaders import dali_shards
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.shard_order import ShardWalk
from fastdrpl.loaders.shards import BEFORE_PIXELS, BLOCK, lay_out

need("nvidia.dali")

from dali_cases import (
    PASS,
    PATIENCE,
    check,
    check_nothing_left,
    choose_split,
    copy_own,
    damage,
    use_temporary_folder,
    valid_rows,
    walk,
    write_folders,
)

from fastdrpl.loaders.dali_backend import DALILoader


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory)


@pytest.fixture(params=["raw", "jpeg"])
def split(request: Any, folders: dict[str, Path]) -> Split:
    return choose_split(request, folders)


@pytest.fixture
def own(request: Any, folders: dict[str, Path], tmp_path: Path) -> Split:
    return copy_own(request, folders, tmp_path)


@pytest.fixture
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_temporary_folder(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def nothing_left(own_temporary_folder: None) -> Iterator[None]:
    yield from check_nothing_left(own_temporary_folder)


# Shards


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 16, 37])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_along_their_order(split: Split, world: int, batch_size: int, shuffle: bool) -> None:
    rows = np.random.default_rng(0).permutation(valid_rows(split))[:90]
    make, loader = ShardWalk(split, rows), DALILoader(split, rows)
    samples = np.random.default_rng(1).permutation(90)
    seen = []
    for rank in range(world):
        for index in (np.arange(90), samples[:51].copy()):
            order = make(index, batch_size, PASS, shuffle, rank, world)
            check(split, rows, order, walk(loader, order))
        for start_step in (1, len(order) - 1, len(order)):
            check(split, rows, order, walk(loader, order, start_step), start_step)
        seen += [sample for index, _ in walk(loader, order) for sample in index.tolist()]
    assert sorted(seen) == sorted(samples[:51].tolist())


@pytest.mark.parametrize(("stretch", "files"), [(1, 64), (20, 64), (50, 1), (1 << 15, 2)])
def test_many_short_stretches(
    split: Split, monkeypatch: pytest.MonkeyPatch, stretch: int, files: int
) -> None:
    monkeypatch.setattr(dali_shards, "STRETCH", stretch)
    monkeypatch.setattr(dali_shards, "FILES", files)
    rows = valid_rows(split)
    for rank in (0, 1):
        order = ShardWalk(split, rows)(np.arange(100), 9, PASS, True, rank, 2)
        check(split, rows, order, walk(DALILoader(split, rows), order))


def poison(split: Split, spared: np.ndarray) -> None:
    """Overwrite everything in the shards, heads too, but rows and pixels of these rows."""
    for shard in split.shards:
        content = np.full(shard.path.stat().st_size, 0xEE, np.uint8)
        before = np.frombuffer(shard.path.read_bytes(), np.uint8)
        for row, start, end in zip(
            shard.rows, *(lambda x: (x[:-1], x[1:]))(lay_out(split, shard.rows)), strict=True
        ):
            if row in spared:
                content[start : end - 2 * BLOCK] = before[start : end - 2 * BLOCK]
        shard.path.write_bytes(content.tobytes())


@pytest.mark.parametrize("own", ["raw", "jpeg"], indirect=True)
def test_only_what_is_needed_is_read(own: Split) -> None:
    """A subset, one rank's piece, a later start: DALI jumps to the wanted samples and reads nothing else."""
    rows = valid_rows(own)
    order = ShardWalk(own, rows)(np.arange(0, 100, 3), 6, PASS, True, 1, 2)
    needed = np.concatenate([order[step] for step in range(2, len(order))])
    poison(own, rows[needed])
    loader = DALILoader(own, rows)
    check(own, rows, order, walk(loader, order, 2), 2)
    if own.store == "jpeg":  # the check of the check
        with pytest.raises(DataError):
            walk(loader, order)
    else:
        with pytest.raises(DataError, match=r"has row .* where row \d+ belongs"):
            walk(loader, order)


def test_whole_shards_are_read_by_their_stored_index(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali_shards, "_read_index", lambda shard: pytest.fail(f"{shard} in part"))
    rows = valid_rows(split)
    walk(DALILoader(split, rows), ShardWalk(split, rows)(np.arange(100), 9, PASS, True))


@pytest.mark.parametrize("own", ["raw", "jpeg"], indirect=True)
@pytest.mark.parametrize("what", ["cut", "removed"])
def test_a_shard_that_is_gone_is_named(own: Split, what: str) -> None:
    rows = valid_rows(own)
    order = ShardWalk(own, rows)(np.arange(100), 9, PASS, False)
    shard = own.shards[3].path
    os.truncate(shard, 5000) if what == "cut" else shard.unlink()
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"(?s)shard.*{shard.name}") as failure:
        walk(DALILoader(own, rows), order)
    assert time.monotonic() - began < PATIENCE and failure.value.exit_code == 3


@pytest.mark.parametrize("own", ["raw", "jpeg"], indirect=True)
@pytest.mark.parametrize("what", ["cut", "removed"])
def test_a_shard_that_goes_in_the_middle_is_named(
    own: Split, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its bytes are being read, and while it waits for its turn."""
    monkeypatch.setattr(dali_shards, "STRETCH", 30)
    rows = valid_rows(own)
    order = ShardWalk(own, rows)(np.arange(100), 3, PASS, False)
    loader = DALILoader(own, rows)
    for number in (1, 5):
        shard = own.shards[number].path
        content = shard.read_bytes()
        batches = loader.epoch(order)
        next(batches)
        os.truncate(shard, 2000) if what == "cut" else shard.unlink()
        began = time.monotonic()
        with pytest.raises(DataError, match=rf"(?s)shard.*{shard.name}"):
            list(batches)
        assert time.monotonic() - began < PATIENCE
        shard.write_bytes(content)
    check(own, rows, order, walk(loader, order))


def start_of(split: Split, number: int, place: int) -> int:
    return int(lay_out(split, split.shards[number].rows)[place])


def test_a_bad_image_in_a_shard_is_named(own: Split) -> None:
    shard = own.shards[2]
    damage(own, int(shard.rows[4]), "zeros", shard.path, start_of(own, 2, 4) + BEFORE_PIXELS)
    rows = valid_rows(own)
    order = ShardWalk(own, rows)(np.arange(100), 9, PASS, True)
    with pytest.raises(DataError, match=rf"(?s)row {shard.rows[4]} is no jpeg image.*{shard.path.name}"):
        walk(DALILoader(own, rows), order)


@pytest.mark.parametrize("own", ["raw", "jpeg"], indirect=True)
def test_a_shard_with_other_rows_is_named(own: Split) -> None:
    shard = own.shards[5]
    content = bytearray(shard.path.read_bytes())
    at = start_of(own, 5, 2) + BLOCK
    content[at : at + 8] = (12345).to_bytes(8, "little")
    shard.path.write_bytes(content)
    rows = valid_rows(own)
    with pytest.raises(DataError, match=rf"(?s)row 12345 where row {shard.rows[2]} .*{shard.path.name}"):
        walk(DALILoader(own, rows), ShardWalk(own, rows)(np.arange(100), 9, PASS, True))


@pytest.mark.parametrize("content", [b"", b"v1.2 3\nrow 512 8 a.row\n", None])
def test_a_damaged_index_is_named(own: Split, content: bytes | None) -> None:
    shard = own.shards[1]
    shard.index_path.unlink() if content is None else shard.index_path.write_bytes(content)
    rows = valid_rows(own)
    for index in (np.arange(100), np.arange(0, 100, 2)):
        with pytest.raises(DataError, match=shard.path.stem):
            walk(DALILoader(own, rows), ShardWalk(own, rows)(index, 9, PASS, True))
