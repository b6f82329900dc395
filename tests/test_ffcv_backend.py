"""Batches that ffcv reads are those of the other loaders; its threads end, and say why when they fail."""

import gc
import io
import os
import shutil
import subprocess
import sys
import threading
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

from fastdrpl.loaders import ffcv_backend
from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.extras import keep_thread_counts
from fastdrpl.loaders.ffcv_backend import FFCVLoader
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.resident import ResidentLoader

need("ffcv")

import numba

from fastdrpl.loaders import ffcv_pipeline

ROOT = Path(__file__).resolve().parent.parent
PASS = Pass(seed=1, stage=0, epoch=2, purpose=Purpose.train)
ROWS, SIDE = 600, 48  # several pages
BLACK = (5, 400)  # quarantined


def smooth_pictures(rows: int, side: int) -> np.ndarray:
    """(rows, side, side, 3) uint8: like photos, smooth enough for a JPEG."""
    random = np.random.default_rng(3)
    small = random.integers(0, 256, (rows, 5, 5, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC)) for i in small]
    )


def to_jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_split(path: Path, store: Any, pixels: np.ndarray, black: tuple[int, ...] = BLACK) -> Split:
    pixels = pixels.copy()
    pixels[list(black)] = 0
    valid = np.ones(len(pixels), bool)
    valid[list(black)] = False
    size = dict(height=pixels.shape[1], width=pixels.shape[2])
    writer = BetonWriter(path, np.arange(len(pixels)) % 10, **size, store=store, page_size=1 << 21)
    if store == "raw":
        writer.write_raw(pixels)
    else:
        writer.write_jpeg([to_jpeg(image) for image in pixels])
    writer.finish()
    t = read_tables(path)
    return Split("train", path, t.height, t.width, t.store, t.label, valid, t.offset, t.nbytes, t.page_size)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_split(tmp_path_factory.mktemp("raw") / "train.beton", "raw", smooth_pictures(ROWS, SIDE))


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_split(tmp_path_factory.mktemp("jpeg") / "train.beton", "jpeg", smooth_pictures(ROWS, SIDE))


@pytest.fixture(params=["raw", "jpeg"])
def split(request: Any, raw: Split, jpeg: Split) -> Split:
    return {"raw": raw, "jpeg": jpeg}[request.param]


@pytest.fixture(params=[1, 2])
def workers(request: Any) -> int:
    return request.param


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk for each step."""
    monkeypatch.setattr(ffcv_backend, "CHUNK_BYTES", 1)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a thread, or another number of torch's and numba's threads."""
    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    if reading_threads():  # a failed test's frames may hold an epoch
        gc.collect()
    assert reading_threads() == []
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, ffcv_pipeline.Chunks)]


def copy_split(split: Split, tmp_path: Path) -> Split:
    """The same in a file that may be damaged."""
    return replace(split, path=Path(shutil.copy(split.path, tmp_path)))


def check_pixels(split: Split, seen: np.ndarray, rows: np.ndarray) -> None:
    file = map_file(split)
    wanted = np.stack([decode_row(split, file, int(row)) for row in rows])
    difference = np.abs(seen.astype(int) - wanted.astype(int))
    assert difference.max() <= (0 if split.store == "raw" else 8)
    assert difference.mean() <= (0 if split.store == "raw" else 1.25)


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


def fail(loader: FFCVLoader, kind: type[UserError], text: str, rows: int | None = None) -> UserError:
    """The error of an epoch in file order; it comes soon and names the file."""
    start = time.perf_counter()
    with pytest.raises(kind, match=text) as failure:
        list(loader.epoch(Order(np.arange(rows or len(loader.source_row)), 8, PASS, False)))
    assert time.perf_counter() - start < 20
    assert failure.value.where is not None and str(loader.split.path) in failure.value.where
    return failure.value


@pytest.mark.parametrize(
    "damage", ["zeros from the start", "zeros in the middle", "another size", "another format"]
)
def test_a_damaged_jpeg_is_named(jpeg: Split, tmp_path: Path, damage: str, workers: int) -> None:
    split = copy_split(jpeg, tmp_path)
    start, stop = int(split.offset[333]), int(split.offset[333] + split.nbytes[333])
    content = bytearray(split.path.read_bytes())
    if damage == "zeros from the start":
        content[start + 2 : stop] = bytes(stop - start - 2)
    elif damage == "zeros in the middle":
        content[(start + stop) // 2 : stop] = bytes(stop - (start + stop) // 2)
    elif damage == "another size":  # the decoder itself would scale it to what is asked for, and say nothing
        place = content.index(b"\xff\xc0", start)
        content[place + 5 : place + 9] = (SIDE * 2).to_bytes(2, "big") * 2
    else:
        content[start : start + 8] = b"\x89PNG\r\n\x1a\n"
    split.path.write_bytes(content)
    error = fail(FFCVLoader(split, np.arange(ROWS), workers=workers), DataError, "row 333")
    assert error.exit_code == 3
    # Who does not use the row is not stopped by it; and a quarantined row may hold anything.
    others = FFCVLoader(split, np.delete(np.arange(ROWS), 333), workers=workers)
    assert len(list(others.epoch(Order(np.arange(ROWS - 1), 8, PASS, True)))) == 75
    valid = split.valid.copy()
    valid[333] = False
    quarantined = FFCVLoader(replace(split, valid=valid), np.array([333, 334]))
    batch = next(quarantined.epoch(Order(np.arange(2), 2, PASS, False)))
    assert not batch.pixels[0].any() and batch.pixels[1].any()


def test_what_only_pillow_reads_is_read_by_pillow(jpeg: Split, tmp_path: Path) -> None:
    """A JPEG in colours for print: the library's decoder refuses it."""
    split = copy_split(jpeg, tmp_path)
    start, stop = int(split.offset[9]), int(split.offset[9] + split.nbytes[9])
    out = io.BytesIO()
    Image.fromarray(decode_row(split, map_file(split), 9)).convert("CMYK").save(out, "JPEG", quality=20)
    content = bytearray(split.path.read_bytes())
    content[start:stop] = out.getvalue().ljust(stop - start, b"\0")
    assert len(content) == split.path.stat().st_size
    split.path.write_bytes(content)
    batch = next(FFCVLoader(split, np.array([8, 9])).epoch(Order(np.arange(2), 2, PASS, False)))
    assert np.array_equal(batch.pixels[1].numpy(), decode_row(split, map_file(split), 9))


@pytest.mark.usefixtures("small_chunks")
def test_a_file_cut_while_it_is_read_is_an_error(split: Split, tmp_path: Path, workers: int) -> None:
    split = copy_split(split, tmp_path)
    batches = FFCVLoader(split, np.arange(ROWS), workers=workers).epoch(
        Order(np.arange(ROWS), 8, PASS, False)
    )
    next(batches)
    time.sleep(0.5)  # the thread has filled its ring and rests: nobody reads just now
    os.truncate(split.path, int(split.offset[100]))
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"was cut to \d+ bytes while it was read") as failure:
        for _ in batches:
            pass
    assert time.perf_counter() - start < 20 and str(split.path) in str(failure.value)


def test_a_removed_file_is_read_to_its_end(raw: Split, tmp_path: Path) -> None:
    split = copy_split(raw, tmp_path)
    loader = FFCVLoader(split, np.arange(ROWS))
    split.path.unlink()  # the mapping keeps it
    for batch in loader.epoch(Order(np.arange(ROWS), 100, PASS, False)):
        check_pixels(raw, batch.pixels.numpy(), batch.index.numpy())


def test_any_error_of_the_thread_reaches_its_reader(raw: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Any, *arguments: Any) -> None:
        raise MemoryError("not a byte left")

    loader = FFCVLoader(raw, np.arange(ROWS))
    monkeypatch.setattr(ffcv_pipeline.ReadImages, "check_length", no_memory)
    error = fail(loader, UserError, r"MemoryError: not a byte left")
    assert isinstance(error.__cause__, MemoryError)
    assert error.where is not None and "rows from 0 to 599" in error.where


def test_other_rows_than_asked_for_are_an_error(raw: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ffcv_pipeline.ReadIndex.read
    monkeypatch.setattr(ffcv_pipeline.ReadIndex, "read", lambda *arguments: np.maximum(read(*arguments), 1))
    fail(FFCVLoader(raw, np.arange(ROWS)), DataError, "other rows than it was asked for")


def test_a_thread_that_hangs_is_reported(raw: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    loader = FFCVLoader(raw, np.arange(ROWS))
    monkeypatch.setattr(ffcv_pipeline, "PATIENCE", 1)
    monkeypatch.setattr(ffcv_pipeline, "GRACE", 0.1)
    monkeypatch.setattr(ffcv_pipeline.ReadImages, "check_length", lambda self: end.wait(60))
    fail(loader, UserError, "gave nothing for 1 s")
    end.set()
    for thread in reading_threads():
        thread.join(10)


def test_a_thread_that_is_gone_is_reported_at_once(raw: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = FFCVLoader(raw, np.arange(ROWS))
    monkeypatch.setattr(ffcv_pipeline.Chunks, "run", lambda self: None)
    fail(loader, UserError, "ended without a word")


def test_patience_ends_within_a_minute() -> None:
    assert 0 < ffcv_pipeline.PATIENCE + ffcv_pipeline.GRACE < 60


def test_a_missing_library_is_named_with_its_install_line(
    raw: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(UserError, match=r"(?s)ffcv is not installed.*pip install ffcv==1\.0\.2"):
        FFCVLoader(raw, np.arange(ROWS))


def test_a_file_of_a_newer_version_is_refused(raw: Split, tmp_path: Path) -> None:
    split = copy_split(raw, tmp_path)
    with open(split.path, "r+b") as file:
        file.write((3).to_bytes(2, "little"))
    with pytest.raises(DataError, match="format version 3, wanted 2"):
        FFCVLoader(split, np.arange(ROWS))


def test_a_file_that_changed_since_it_was_opened_is_refused(raw: Split, jpeg: Split, tmp_path: Path) -> None:
    split = copy_split(raw, tmp_path)
    write_split(split.path, "raw", smooth_pictures(ROWS, SIDE + 4))
    with pytest.raises(DataError, match="has changed since"):
        FFCVLoader(split, np.arange(ROWS))
    shutil.copy(jpeg.path, split.path)
    with pytest.raises(DataError, match=r"damaged|has changed|ends at byte"):
        FFCVLoader(split, np.arange(ROWS))
    os.truncate(split.path, 3 << 20)
    with pytest.raises(DataError, match="ends at byte"):
        FFCVLoader(split, np.arange(ROWS))
    split.path.unlink()
    with pytest.raises(DataError, match="missing"):
        FFCVLoader(split, np.arange(ROWS))


def test_rows_that_are_not_there_are_refused(raw: Split) -> None:
    with pytest.raises(UserError, match=r"want 0\.\.599"):
        FFCVLoader(raw, np.array([0, ROWS]))


def test_no_global_random_state_is_touched(raw: Split) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(FFCVLoader(raw, np.arange(ROWS)).epoch(Order(np.arange(ROWS), 32, PASS, True)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


FRESH_PROCESS = """
import sys
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(3)
from fastdrpl.loaders.extras import require

require("ffcv")
assert torch.get_num_threads() == 3, torch.get_num_threads()
import numba

assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
from fastdrpl.kernels.augment import augment_uint8
from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders import ffcv_backend
from fastdrpl.loaders.ffcv_backend import FFCVLoader
from fastdrpl.loaders.order import Order, Pass, Purpose

ffcv_backend.CHUNK_BYTES = 1
PASS = Pass(seed=1, stage=0, epoch=0, purpose=Purpose.train)
splits = []
for path in map(Path, sys.argv[1:]):
    t = read_tables(path)
    valid = np.ones(len(t.label), bool)
    splits.append(Split("x", path, t.height, t.width, t.store, t.label, valid, t.offset, t.nbytes, t.page_size))
rows = np.arange(len(valid))
loaders = [FFCVLoader(split, rows, workers=2) for split in splits for _ in range(2)]
large = torch.zeros((4000, 48, 48, 3), dtype=torch.uint8), torch.arange(4000), torch.arange(4000)
total = 0
for epoch in range(3):
    order = Order(rows, 8, PASS, True)
    for step, batches in enumerate(zip(*(loader.epoch(order) for loader in loaders), strict=True)):
        total += sum(int(batch.pixels.sum(dtype=torch.int64)) for batch in batches)
        if step % 10 == 0:  # parallel work of our own beside it
            augment_uint8(*large, PASS.stream, pad=2, size=48, flip=True)
print("layer", numba.threading_layer(), "threads", torch.get_num_threads(), "total", total)
"""


def test_a_fresh_process_with_several_loaders_at_once(raw: Split, jpeg: Split) -> None:
    """In the poorest surroundings: compiled code cannot be kept, and of numba's ways to run threads the one
    that ends the process when two of ours start parallel work at once."""
    poor = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_CACHE_DIR": "/proc/nowhere"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, str(raw.path), str(jpeg.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **poor},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[1] == "workqueue" and words[3] == "3"
    wanted = 2 * 3 * sum(int(np.sum(read_all(split), dtype=np.int64)) for split in (raw, jpeg))
    assert int(words[5]) == pytest.approx(wanted, rel=0.01)


BESIDE_THE_LIBRARY = """
import sys
from pathlib import Path

import numba
import numpy as np

from fastdrpl.loaders.extras import require

require("ffcv")
from ffcv.loader import Loader

from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.ffcv_backend import FFCVLoader


@numba.njit
def first(numbers):
    return numbers[0]


first(np.ones(1, np.uint8))
path = Path(sys.argv[1])
for os_cache in (True, False):
    for _ in Loader(str(path), batch_size=50, num_workers=1, os_cache=os_cache, drop_last=False, seed=0):
        pass
assert numba.uint8[::1].mutable
assert first.nopython_signatures, "the function does not find its own signatures"
t = read_tables(path)
valid = np.ones(len(t.label), bool)
FFCVLoader(
    Split("x", path, t.height, t.width, t.store, t.label, valid, t.offset, t.nbytes, t.page_size), np.arange(len(valid))
)
"""


def test_the_library_leaves_numba_its_types(raw: Split, tmp_path: Path) -> None:
    """Its loader would mark numba's one type of uint8 arrays as read-only, for everybody in the process.

    Only what is compiled afresh notices: the process keeps its compiled code in an empty folder.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BESIDE_THE_LIBRARY, str(raw.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def read_all(split: Split) -> np.ndarray:
    file = map_file(split)
    return np.stack([decode_row(split, file, row) for row in range(len(split))])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gets_the_same_pixels(split: Split) -> None:
    loader, order = FFCVLoader(split, np.arange(ROWS), "cuda"), Order(np.arange(ROWS), 16, PASS, True)
    for batch in loader.epoch(order):
        assert batch.pixels.is_cuda and batch.rows.is_cuda and batch.index.is_cuda
        torch.cuda._sleep(1_000_000)
        check_pixels(split, batch.pixels[batch.rows].cpu().numpy(), batch.index.cpu().numpy())
