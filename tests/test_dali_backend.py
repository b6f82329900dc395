"""DALI as a loader: the right pixels from file and shards, errors with names, nothing left behind."""

import gc
import importlib.metadata
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from need import need
from PIL import Image

from fastdrpl.loaders import dali_shards
from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.loaders.shard_order import ShardWalk
from fastdrpl.loaders.shards import BEFORE_PIXELS, BLOCK, lay_out

need("nvidia.dali")
import nvidia.dali

from fastdrpl.loaders.dali_backend import DALILoader

IMAGES, BAD, SIDE = 101, 40, 24
PASS = Pass(seed=3, stage=0, epoch=1, purpose=Purpose.train)
PATIENCE = 60.0  # seconds in which an error must come
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same photos prepared as raw pixels and as JPEG, with shards; one could not be read."""
    base = tmp_path_factory.mktemp("dali")
    random = np.random.default_rng(8)
    for number in range(IMAGES):
        place = base / "photos" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        small.resize((40, 36), Image.Resampling.BICUBIC).save(place / f"{number:03}.png")
    (base / "photos" / "class0" / f"{2 * BAD:03}.png").write_bytes(b"no image")
    for store in ("raw", "jpeg"):
        config = PrepareConfig(
            kind="folder", source=base / "photos", out=base / store, size=SIDE, store=store, format="shards"
        )
        prepare(replace(config, workers=1), quiet=True)
    return {store: base / store for store in ("raw", "jpeg")}


@pytest.fixture(params=["raw", "jpeg"])
def split(request: Any, folders: dict[str, Path]) -> Split:
    return open_dataset(folders[request.param]).split("train")


@pytest.fixture
def own(request: Any, folders: dict[str, Path], tmp_path: Path) -> Split:
    """A copy that a test may damage: JPEG, unless parametrized."""
    store = getattr(request, "param", "jpeg")
    return open_dataset(Path(shutil.copytree(folders[store], tmp_path / store))).split("train")


@pytest.fixture
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(autouse=True)
def nothing_left(own_temporary_folder: None) -> Iterator[None]:
    """No thread, open file or temporary folder stays."""
    gc.collect()
    before = left()
    yield
    gc.collect()
    end = time.monotonic() + 20
    while left() != before and time.monotonic() < end:
        time.sleep(0.02)
    assert left() == before


def left() -> tuple[int, int, list[str]]:
    """Threads, open files, temporary folders."""
    temporary = [path.name for path in Path(tempfile.gettempdir()).glob("fastdrpl-*")]
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), sorted(temporary)


def valid_rows(split: Split) -> np.ndarray:
    return np.flatnonzero(split.valid)


def walk(loader: DALILoader, order: Order, start_step: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (batch.index.cpu().numpy().copy(), batch.pixels[batch.rows].cpu().numpy().copy())
        for batch in loader.epoch(order, start_step=start_step)
    ]


def check(split: Split, source_row: np.ndarray, order: Order, seen: Any, start_step: int = 0) -> None:
    """Each step's index as the order says, and pixels as pillow decodes them (JPEG: close to)."""
    file = map_file(split)
    worst, mean = (0, 0.0) if split.store == "raw" else (4, 0.5)
    assert len(seen) == len(order) - start_step
    for step, (index, pixels) in enumerate(seen, start_step):
        assert index.tolist() == order[step].tolist()
        assert pixels.dtype == np.uint8 and pixels.shape == (len(index), SIDE, SIDE, 3)
        for sample, image in zip(index, pixels, strict=True):
            wanted = decode_row(split, file, int(source_row[sample])).astype(int)
            difference = np.abs(image.astype(int) - wanted)
            assert difference.max() <= worst and difference.mean() <= mean


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_of_any_length(split: Split, workers: int) -> None:
    source_row = np.random.default_rng(1).integers(0, IMAGES, 90)  # some rows twice, some never
    source_row[5] = BAD
    loader = DALILoader(split, source_row, workers=workers)
    for batch_size in (1, 7, 17, 41, 200):  # the last step has 1, 6, 22, 8 and 90
        order = Order(np.arange(len(source_row)), batch_size, PASS, True)
        check(split, source_row, order, walk(loader, order))
    loader.close()


def test_the_same_as_the_resident_loader(split: Split) -> None:
    order = Order(np.arange(IMAGES), 16, PASS, True)
    resident = list(ResidentLoader(split, np.arange(IMAGES)).epoch(order))
    for batch, other in zip(DALILoader(split, np.arange(IMAGES)).epoch(order), resident, strict=True):
        assert torch.equal(batch.index, other.index) and batch.rows.dtype == torch.int64
        difference = batch.pixels[batch.rows].int() - other.pixels[other.rows].int()
        assert difference.abs().max() <= (0 if split.store == "raw" else 4)


def test_rows_without_an_image_are_black(split: Split) -> None:
    order = Order(np.arange(3), 3, PASS, False)
    valid = split.valid.copy()
    valid[5] = False  # whatever the file holds there
    ((_, pixels),) = walk(DALILoader(replace(split, valid=valid), np.array([5, 6, BAD])), order)
    assert not pixels[[0, 2]].any() and pixels[1].any()


@pytest.mark.parametrize("world", [1, 3, 7])
def test_ranks_without_a_share_in_most_steps(split: Split, world: int) -> None:
    source_row = np.arange(IMAGES)
    loader = DALILoader(split, source_row)
    for rank in range(world):
        order = Order(np.arange(26), 4, PASS, True, rank, world)  # rank 5 has samples in the last step only
        check(split, source_row, order, walk(loader, order))
    assert walk(loader, Order(np.empty(0, np.int64), 4, PASS, True)) == []


def test_what_was_handed_out_stays(split: Split) -> None:
    """A batch holds until the next one is asked for, and here for ever."""
    order = Order(np.arange(IMAGES), 8, PASS, True)
    batches = list(DALILoader(split, np.arange(IMAGES)).epoch(order))
    check(
        split,
        np.arange(IMAGES),
        order,
        [(batch.index.numpy(), batch.pixels[batch.rows].numpy()) for batch in batches],
    )


def orders(split: Split) -> tuple[np.ndarray, list[Order]]:
    rows = valid_rows(split)
    make = ShardWalk(split, rows)
    samples = np.arange(len(rows))
    return rows, [Order(samples, 16, PASS, True), make(samples, 16, PASS, True)]


def test_two_epochs_at_once_and_a_stop_in_the_middle(split: Split) -> None:
    rows, both = orders(split)
    loader = DALILoader(split, rows)
    first, second = (loader.epoch(order) for order in both)
    for step in range(3):
        seen = [(batch.index.numpy(), batch.pixels.numpy()) for batch in (next(first), next(second))]
        for order, one in zip(both, seen, strict=True):
            assert one[0].tolist() == order[step].tolist()
            shown = Order(order[step], len(order[step]), PASS, False)
            check(split, rows, shown, [one])
    first.close()  # one by hand, the other by the loader
    assert next(second).index.tolist() == both[1][3].tolist()
    loader.close()
    with pytest.raises(StopIteration):
        next(second)
    for order in both:  # and by nobody
        for _ in loader.epoch(order):
            break


def damage(split: Split, row: int, how: str, path: Path, start: int) -> None:
    content = bytearray(path.read_bytes())
    stop = start + int(split.nbytes[row])
    if how == "zeros":
        content[start:stop] = bytes(stop - start)
    elif how == "cut":
        content[start + 300 : stop] = bytes(stop - start - 300)
    else:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 9)).save(buffer, "JPEG", quality=1)
        assert len(buffer.getvalue()) < stop - start
        content[start:stop] = buffer.getvalue().ljust(stop - start, b"\0")
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["zeros", "cut", "another size"])
def test_a_file_with_a_bad_image_names_it(own: Split, how: str) -> None:
    damage(own, 33, how, own.path, int(own.offset[33]))
    loader = DALILoader(own, np.arange(IMAGES))
    began = time.monotonic()
    for batch_size in (1, 16):
        with pytest.raises(DataError, match=r"row 33 .*jpeg") as failure:
            list(loader.epoch(Order(np.arange(IMAGES), batch_size, PASS, True)))
        assert str(own.path) in str(failure.value.where) and failure.value.exit_code == 3
    assert time.monotonic() - began < PATIENCE
    assert len(list(loader.epoch(Order(np.arange(33), 8, PASS, False)))) == 4


def test_a_batch_of_one_other_size_is_noticed(folders: dict[str, Path]) -> None:
    split = replace(open_dataset(folders["jpeg"]).split("train"), height=SIDE // 2)
    with pytest.raises(DataError, match=r"row \d+ is no jpeg image of 12 x 24"):
        list(DALILoader(split, np.arange(IMAGES)).epoch(Order(np.arange(IMAGES), 16, PASS, True)))


def test_a_file_cut_short_is_refused(own: Split) -> None:
    os.truncate(own.path, int(own.offset[90]) + 10)
    with pytest.raises(DataError, match="the image of row 90 ends"):
        DALILoader(own, np.arange(IMAGES))


@pytest.mark.parametrize("own", ["raw"], indirect=True)
def test_raw_images_of_another_length_are_refused(own: Split) -> None:
    nbytes = own.nbytes.copy()
    nbytes[7] -= 1
    with pytest.raises(DataError, match="row 7 is no raw image"):
        DALILoader(replace(own, nbytes=nbytes), np.arange(IMAGES))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"source_row": np.array([IMAGES])}, "source rows"), ({"workers": -1}, "want 0 or more")],
)
def test_bad_arguments_are_refused(split: Split, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        DALILoader(**{"split": split, "source_row": np.arange(3), **arguments})


def test_without_the_library_the_install_line_is_said(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match=r"pip install .*nvidia-dali-cuda130"):
        DALILoader(split, np.arange(3))


def test_no_thread_count_or_random_state_is_touched(split: Split) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    rows, both = orders(split)
    for order in both:
        walk(DALILoader(split, rows), order)
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


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


@needs_gpu
def test_on_a_gpu_from_the_file_and_from_shards(split: Split) -> None:
    rows, both = orders(split)
    file = map_file(split)
    worst, mean = (0, 0.0) if split.store == "raw" else (8, 1.25)
    loader = DALILoader(split, rows, "cuda")
    for order in both:
        for step, batch in enumerate(loader.epoch(order)):
            assert batch.pixels.is_cuda and batch.rows.is_cuda and batch.index.is_cuda
            assert batch.index.tolist() == order[step].tolist()
            for sample, image in zip(order[step], batch.pixels[batch.rows].cpu().numpy(), strict=True):
                difference = np.abs(
                    image.astype(int) - decode_row(split, file, int(rows[sample])).astype(int)
                )
                assert difference.max() <= worst and difference.mean() <= mean
    loader.close()


@needs_gpu
def test_on_a_gpu_work_that_is_queued_sees_its_own_batch(split: Split) -> None:
    """Nothing waits for the device: buffers must not be filled again under work that still runs."""
    rows, both = orders(split)
    for order in both:
        sums = []
        for batch in DALILoader(split, rows, "cuda").epoch(order):
            torch.cuda._sleep(50_000_000)
            sums.append(batch.pixels[batch.rows].long().sum())
        slow = [
            batch.pixels[batch.rows].long().sum().item()
            for batch in DALILoader(split, rows, "cuda").epoch(order)
        ]
        assert [total.item() for total in sums] == slow


def test_the_version_we_tested() -> None:
    assert nvidia.dali.__version__ == importlib.metadata.version("nvidia-dali-cuda130")
    assert tuple(int(part) for part in nvidia.dali.__version__.split(".")[:2]) >= (2, 4)
