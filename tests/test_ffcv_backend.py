"""Batches that ffcv reads are those of the other loaders; its threads end, and say why when they fail."""

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from need import need

from fastdrpl.loaders import ffcv_backend
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.extras import keep_thread_counts
from fastdrpl.loaders.ffcv_backend import FFCVLoader
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.resident import ResidentLoader

need("ffcv")

import numba
from ffcv_cases import (
    BLACK,
    PASS,
    ROWS,
    SIDE,
    check_nothing_is_left,
    check_pixels,
    choose_split,
    choose_workers,
    make_small_chunks,
    reading_threads,
    write_jpeg,
    write_raw,
)

from fastdrpl.loaders import ffcv_pipeline


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_raw(tmp_path_factory)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_jpeg(tmp_path_factory)


@pytest.fixture(params=["raw", "jpeg"])
def split(request: Any, raw: Split, jpeg: Split) -> Split:
    return choose_split(request, raw, jpeg)


@pytest.fixture(params=[1, 2])
def workers(request: Any) -> int:
    return choose_workers(request)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small_chunks(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield from check_nothing_is_left()


def test_the_same_batches_as_from_the_resident_loader(
    split: Split, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_row = np.random.default_rng(0).permutation(ROWS)[:450]
    source_row[7] = source_row[8]  # samples may show one image
    source_row[10:20] = source_row[300]
    ours, reference = FFCVLoader(split, source_row, workers=workers), ResidentLoader(split, source_row)
    orders = [
        Order(np.arange(450), 64, PASS, True),
        Order(np.arange(435), 48, PASS, True),  # 3 left over: they join the last batch
        Order(np.arange(450), 450, PASS, True),
        Order(np.array([4, 449, 0, 7, 8, 33]), 4, PASS, False),
        Order(np.arange(40), 1, PASS, True),  # batches of one
        Order(np.array([17]), 32, PASS, True),
        Order(np.arange(450), 33, PASS, True, rank=0, world=2),
        Order(np.arange(450), 33, PASS, True, rank=1, world=2),
        Order(np.arange(7), 1, PASS, True, rank=1, world=2),  # nothing for this rank
    ]
    for chunk_bytes in (ffcv_backend.CHUNK_BYTES, 200_000, 1):
        monkeypatch.setattr(ffcv_backend, "CHUNK_BYTES", chunk_bytes)
        for order in orders:
            for start in {0, 1, len(order) // 2, len(order)}:
                if start > len(order):
                    continue
                pairs = list_pairs(ours, reference, order, start)
                assert len(pairs) == len(order) - start
                for step, (batch, pixels, wanted) in enumerate(pairs, start):
                    index, rows = batch
                    assert np.array_equal(index, order[step]) and np.array_equal(rows, np.arange(len(index)))
                    assert pixels.shape == (len(index), SIDE, SIDE, 3) and pixels.dtype == np.uint8
                    difference = np.abs(pixels.astype(int) - wanted)
                    if len(index):
                        assert difference.max() <= (0 if split.store == "raw" else 8)
                        assert difference.mean() <= (0 if split.store == "raw" else 1.25)
    ours.close()


def list_pairs(ours: FFCVLoader, reference: ResidentLoader, order: Order, start: int) -> list:
    """((index, rows), pixels, pixels of the reference) of each step, all of it kept."""
    out = []
    both = zip(ours.epoch(order, start_step=start), reference.epoch(order, start_step=start), strict=True)
    for one, other in both:
        assert torch.equal(one.index, other.index) and one.index.dtype == one.rows.dtype == torch.int64
        wanted = other.pixels[other.rows].numpy()
        out.append(((one.index.numpy(), one.rows.numpy()), one.pixels[one.rows].numpy(), wanted))
    return out


def test_quarantined_rows_are_black(split: Split) -> None:
    loader = FFCVLoader(split, np.array([4, *BLACK, 6]))
    batch = next(iter(loader.epoch(Order(np.arange(4), 4, PASS, False))))
    assert not batch.pixels[[1, 2]].any() and batch.pixels[0].any() and batch.pixels[3].any()


def test_an_empty_order_and_an_empty_view(raw: Split) -> None:
    nothing = Order(np.empty(0, np.int64), 8, PASS, True)
    for source_row in (np.arange(ROWS), np.empty(0, np.int64)):
        assert list(FFCVLoader(raw, source_row).epoch(nothing)) == []


@pytest.mark.usefixtures("small_chunks")
def test_a_batch_holds_until_the_next_is_asked_for(split: Split, workers: int) -> None:
    loader = FFCVLoader(split, np.arange(ROWS), workers=workers)
    order = Order(np.arange(ROWS), 16, PASS, True)
    buffers = set()
    for step, batch in enumerate(loader.epoch(order)):
        if step % 6 == 0:
            time.sleep(0.1)  # the thread runs ahead as far as it can
        check_pixels(split, batch.pixels.numpy(), batch.index.numpy())
        buffers.add(batch.pixels.data_ptr())
    assert len(buffers) == ffcv_pipeline.AHEAD + 2  # it was a ring, used many times over
    loader.close()


@pytest.mark.usefixtures("small_chunks")
def test_epochs_and_loaders_at_once(raw: Split, jpeg: Split, workers: int) -> None:
    one, other = (
        FFCVLoader(raw, np.arange(ROWS), workers=workers),
        FFCVLoader(jpeg, np.arange(ROWS), workers=2),
    )
    orders = [Order(np.arange(k, ROWS, 2), 8 + 8 * k, PASS, True) for k in (0, 1)]
    epochs = [(loader.split, loader.epoch(order)) for loader in (one, other) for order in orders]
    seen = 0
    while epochs:
        for pair in list(epochs):
            batch = next(pair[1], None)
            if batch is None:
                epochs.remove(pair)
                continue
            seen += len(batch.index)
            check_pixels(pair[0], batch.pixels.numpy(), batch.index.numpy())
    assert seen == 2 * ROWS


def test_thread_counts_stay_what_they_were(raw: Split) -> None:
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        for ask in ((3, 1), (2, numba.config.NUMBA_NUM_THREADS)):
            torch.set_num_threads(ask[0])
            numba.set_num_threads(ask[1])
            loader = FFCVLoader(raw, np.arange(ROWS), workers=1)
            assert (torch.get_num_threads(), numba.get_num_threads()) == ask
            for _ in loader.epoch(Order(np.arange(ROWS), 64, PASS, True)):
                assert (torch.get_num_threads(), numba.get_num_threads()) == ask
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def test_more_workers_than_cores_are_as_many_as_cores(raw: Split) -> None:
    loader = FFCVLoader(raw, np.arange(ROWS), workers=1000)
    assert loader.workers == numba.config.NUMBA_NUM_THREADS
    assert len(list(loader.epoch(Order(np.arange(ROWS), 64, PASS, True)))) == 10
    assert FFCVLoader(raw, np.arange(ROWS), workers=0).workers == 1
    with pytest.raises(UserError, match="-1"):
        FFCVLoader(raw, np.arange(ROWS), workers=-1)


def test_the_library_itself_stays_as_it_was(split: Split) -> None:
    """Its own loader compiles and reads as before, beside one of ours."""
    from ffcv.loader import Loader
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.compiler import Compiler

    ours = FFCVLoader(split, np.arange(ROWS), workers=1)
    with keep_thread_counts():
        theirs = Loader(str(split.path), batch_size=ROWS, num_workers=1, drop_last=False, seed=0)
        images, _, index = next(batches := iter(theirs))
    assert Compiler.is_enabled and ffcv_pipeline.ffcv_loader.OSCacheManager is OSCacheManager
    batch = next(ours.epoch(Order(np.arange(ROWS), ROWS, PASS, False)))
    assert np.array_equal(index.reshape(-1), batch.index) and np.array_equal(images, batch.pixels)
    batches.close()
    batches.join(10)


@pytest.mark.usefixtures("small_chunks")
def test_an_early_stop_leaves_no_thread(raw: Split, workers: int) -> None:
    loader, order = FFCVLoader(raw, np.arange(ROWS), workers=workers), Order(np.arange(ROWS), 8, PASS, True)
    before = len(os.listdir("/proc/self/task"))
    for _ in range(10):
        start = time.perf_counter()
        for _ in loader.epoch(order):
            assert len(reading_threads()) == 1
            break
        assert reading_threads() == []
        assert time.perf_counter() - start < 2
    end = time.perf_counter() + 10
    while len(os.listdir("/proc/self/task")) > before:  # those that numba started for our thread end with it
        assert time.perf_counter() < end
        time.sleep(0.02)
    first, second = loader.epoch(order), loader.epoch(order)
    next(first), next(second)
    assert len(reading_threads()) == 2
    loader.close()
    assert reading_threads() == []
    with pytest.raises(StopIteration):
        next(first)
    with pytest.raises(UserError, match="closed"):
        next(loader.epoch(order))


@pytest.mark.usefixtures("small_chunks")
def test_a_forgotten_loader_leaves_no_thread(raw: Split) -> None:
    batches = FFCVLoader(raw, np.arange(ROWS)).epoch(Order(np.arange(ROWS), 8, PASS, True))
    next(batches)
    assert len(reading_threads()) == 1
    del batches
    gc.collect()
    assert reading_threads() == []
