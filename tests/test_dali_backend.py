"""DALI as a loader: the right pixels from file and shards, errors with names, nothing left behind."""

import importlib.metadata
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from need import need

from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.loaders.shard_order import ShardWalk

need("nvidia.dali")
import nvidia.dali
from dali_cases import (
    BAD,
    IMAGES,
    PASS,
    PATIENCE,
    SIDE,
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


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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
