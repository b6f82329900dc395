"""The two loaders give the same batches, pixels untouched; they fail by name and leave nothing behind."""

import io
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdrpl.kernels.augment import augment_uint8
from fastdrpl.loaders import worker
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.loaders.worker import WorkerLoader

PASS = Pass(seed=1, stage=0, epoch=2, purpose=Purpose.train)
ROWS = 120


def pictures(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (ROWS, height, width, 3), np.uint8)


def write_raw(path: Path, pixels: np.ndarray, page_size: int, quarantined: tuple[int, ...] = ()) -> Split:
    """A compiled file by hand: some head, then pages with as many whole images each as fit; the rest is junk."""
    rows, height, width, _ = pixels.shape
    nbytes = height * width * 3
    page, place = np.divmod(np.arange(rows), page_size // nbytes)
    offset = 3 * page_size + page * page_size + place * nbytes
    content = np.full(int(offset[-1]) + nbytes + 100, 0xAA, np.uint8)
    valid = np.ones(rows, bool)
    valid[list(quarantined)] = False
    for row in range(rows):
        content[offset[row] : offset[row] + nbytes] = pixels[row].ravel() if valid[row] else 0
    path.write_bytes(content.tobytes())
    sizes = np.full(rows, nbytes)
    return Split(
        "train", path, height, width, "raw", np.zeros(rows, np.int64), valid, offset, sizes, page_size
    )


def write_jpeg(path: Path, pixels: np.ndarray) -> tuple[Split, np.ndarray]:
    """A compiled file of JPEGs by hand, and what pillow makes of them."""
    files, decoded = [], []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
        decoded.append(np.asarray(Image.open(buffer).convert("RGB")))
    nbytes = np.array([len(file) for file in files])
    offset = 50 + np.concatenate([[0], np.cumsum(nbytes + 7)[:-1]])
    path.write_bytes(b"?" * 50 + b"".join(file + b"?" * 7 for file in files))
    rows, height, width, _ = pixels.shape
    label, valid = np.zeros(rows, np.int64), np.ones(rows, bool)
    return Split("train", path, height, width, "jpeg", label, valid, offset, nbytes, 1 << 21), np.stack(
        decoded
    )


@pytest.fixture(params=["raw 20x20", "raw 32x32", "raw 5x7", "jpeg 24x16"])
def stored(request, tmp_path) -> tuple[Split, np.ndarray]:
    store, shape = request.param.split()
    pixels = pictures(*(int(side) for side in shape.split("x")))
    if store == "raw":
        return write_raw(tmp_path / "train.beton", pixels, 8192), pixels
    return write_jpeg(tmp_path / "train.beton", pixels)


@pytest.fixture
def raw(tmp_path) -> tuple[Split, np.ndarray]:
    pixels = pictures(20, 20)
    return write_raw(tmp_path / "train.beton", pixels, 8192), pixels


@pytest.fixture
def jpeg(tmp_path) -> tuple[Split, np.ndarray]:
    return write_jpeg(tmp_path / "train.beton", pictures(24, 16))


def every_loader(split: Split, source_row: np.ndarray) -> list:
    makers = (ResidentLoader, lambda *a: WorkerLoader(*a, workers=0), lambda *a: WorkerLoader(*a, workers=2))
    return [make(split, source_row, "cpu") for make in makers]


def children() -> list:
    return multiprocessing.active_children()


def wait_for_no_children() -> None:
    """A process that was told to end needs a moment to do so."""
    end = time.perf_counter() + 20
    while children():
        assert time.perf_counter() < end, f"still there: {children()}"
        time.sleep(0.02)


def test_all_loaders_give_the_same_batches(stored):
    split, pixels = stored
    source_row = np.random.default_rng(0).permutation(ROWS)[:50]
    source_row[7] = source_row[8]  # two samples may show one image
    for order in (
        Order(np.arange(50), 8, PASS, True),
        Order(np.array([4, 49, 0, 7, 8, 33]), 4, PASS, False),
        Order(np.arange(50), 16, PASS, True, rank=1, world=3),
    ):
        for loader in every_loader(split, source_row):
            batches = list(loader.epoch(order))
            assert len(batches) == len(order)
            for step, batch in enumerate(batches):
                assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape[1:] == pixels.shape[1:]
                assert batch.rows.dtype == batch.index.dtype == torch.int64
                assert np.array_equal(batch.index.numpy(), order[step])
                shown = batch.pixels[batch.rows].numpy()
                assert np.array_equal(shown, pixels[source_row[order[step]]])
            loader.close()
    wait_for_no_children()


def test_augmented_batches_do_not_depend_on_the_loader(raw):
    split, _ = raw
    order = Order(np.arange(ROWS), 32, PASS, True)
    results = []
    for loader in every_loader(split, np.arange(ROWS)):
        crops = [
            augment_uint8(*batch, PASS.stream, pad=2, size=20, flip=True) for batch in loader.epoch(order)
        ]
        results.append(torch.cat(crops))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_later_start_gives_the_rest_of_the_epoch(stored):
    split, _ = stored
    order = Order(np.arange(ROWS), 16, PASS, True)
    for loader in every_loader(split, np.arange(ROWS)):
        whole = list(loader.epoch(order))
        for start in (0, 3, len(order) - 1, len(order)):
            rest = list(loader.epoch(order, start_step=start))
            assert len(rest) == len(order) - start
            for one, other in zip(whole[start:], rest, strict=True):
                assert torch.equal(one.index, other.index)
                assert torch.equal(one.pixels[one.rows], other.pixels[other.rows])


def test_two_epochs_at_once(raw):
    split, pixels = raw
    labelled = Order(np.arange(0, ROWS, 2), 8, PASS, True)
    unlabelled = Order(np.arange(1, ROWS, 2), 8, PASS, True)
    for loader in every_loader(split, np.arange(ROWS)):
        seen = []
        for pair in zip(loader.epoch(labelled), loader.epoch(unlabelled), strict=True):
            for batch in pair:
                seen += batch.index.tolist()
                assert np.array_equal(batch.pixels[batch.rows].numpy(), pixels[batch.index.numpy()])
        assert sorted(seen) == list(range(ROWS))


def test_a_batch_has_no_label():
    assert Batch._fields == ("pixels", "rows", "index")


def test_raw_pixels_are_mapped_and_never_copied(raw):
    split, _ = raw
    loader = ResidentLoader(split, np.arange(ROWS))
    batches = list(loader.epoch(Order(np.arange(ROWS), 8, PASS, True)))
    assert len({batch.pixels.data_ptr() for batch in batches}) == 1
    # Not a byte beyond the pages from the first image to the last, although the view has far more images.
    region = int(split.offset.max() - split.offset.min()) + 1200
    assert batches[0].pixels.untyped_storage().nbytes() == region
    assert batches[0].pixels.nbytes > 10 * region
    address = batches[0].pixels.data_ptr()
    mapped = [
        line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(split.path) in line
    ]
    assert any(int(span[0].split("-")[0], 16) <= address < int(span[0].split("-")[1], 16) for span in mapped)


def test_quarantined_rows_are_black(tmp_path):
    pixels = pictures(20, 20)
    split = write_raw(tmp_path / "x.beton", pixels, 8192, quarantined=(3, 90))
    for loader in every_loader(split, np.array([3, 4, 90])):
        batch = next(iter(loader.epoch(Order(np.arange(3), 3, PASS, False))))
        assert not batch.pixels[batch.rows[[0, 2]]].any() and batch.pixels[batch.rows[1]].any()


def test_an_empty_order_and_an_empty_view(stored):
    split, _ = stored
    nothing = Order(np.empty(0, np.int64), 8, PASS, True)
    for source_row in (np.arange(ROWS), np.empty(0, np.int64)):
        for loader in every_loader(split, source_row):
            assert list(loader.epoch(nothing)) == []


def test_no_global_random_state_is_touched(raw):
    split, _ = raw
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for loader in every_loader(split, np.arange(ROWS)):
        list(loader.epoch(Order(np.arange(ROWS), 32, PASS, True)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_an_early_stop_leaves_no_process(raw):
    split, _ = raw
    order = Order(np.arange(ROWS), 8, PASS, True)
    loader = WorkerLoader(split, np.arange(ROWS), workers=2)
    for _ in loader.epoch(order):
        assert len(children()) == 2
        break
    wait_for_no_children()
    first, second = loader.epoch(order), loader.epoch(order)
    next(first), next(second)
    assert len(children()) == 4
    loader.close()
    wait_for_no_children()
    with pytest.raises(StopIteration):
        next(first)


def break_row(split: Split, row: int) -> None:
    content = bytearray(split.path.read_bytes())
    start, stop = split.offset[row] + 2, split.offset[row] + split.nbytes[row]
    content[start:stop] = bytes(stop - start)
    split.path.write_bytes(content)


def test_an_image_that_does_not_decode_is_named(jpeg):
    split, _ = jpeg
    break_row(split, 33)
    order = Order(np.arange(ROWS), 8, PASS, True)
    failures = []
    for workers in (0, 2):
        with pytest.raises(DataError) as failure:
            list(WorkerLoader(split, np.arange(ROWS), workers=workers).epoch(order))
        failures.append(failure.value)
    with pytest.raises(DataError) as failure:
        ResidentLoader(split, np.arange(ROWS))
    for error in (*failures, failure.value):
        assert "row 33" in error.what and str(split.path) in error.where and error.exit_code == 3
    wait_for_no_children()
    # Who does not use the row is not stopped by it.
    others = np.delete(np.arange(ROWS), 33)
    for loader in every_loader(split, others):
        assert len(list(loader.epoch(Order(np.arange(ROWS - 1), 8, PASS, True)))) == 15


def test_a_jpeg_of_another_size_is_named(jpeg):
    split, _ = jpeg
    with pytest.raises(DataError, match=r"24 x 16"):
        ResidentLoader(replace(split, height=16), np.arange(ROWS))


def test_a_killed_process_is_reported(raw, monkeypatch):
    """R18."""
    split, _ = raw
    decode = worker.decode_row

    def die(split: Split, file: np.ndarray, row: int) -> np.ndarray:
        if row == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(split, file, row)

    monkeypatch.setattr(worker, "decode_row", die)
    start = time.perf_counter()
    with pytest.raises(
        UserError, match=r"(?s)loader process died: it was killed \(signal 9\).*memory.*fewer loader"
    ):
        list(WorkerLoader(split, np.arange(ROWS), workers=2).epoch(Order(np.arange(ROWS), 8, PASS, False)))
    assert time.perf_counter() - start < 20  # 2 s on a quiet machine
    wait_for_no_children()


def test_a_process_that_ends_by_itself_is_reported(raw, monkeypatch):
    split, _ = raw
    monkeypatch.setattr(worker, "decode_row", lambda *_: os._exit(7))
    with pytest.raises(UserError, match=r"loader process died \(exit code 7\)"):
        list(WorkerLoader(split, np.arange(ROWS), workers=2).epoch(Order(np.arange(ROWS), 8, PASS, False)))
    wait_for_no_children()


def test_slow_processes_are_waited_for(raw, monkeypatch):
    """Looking whether they live, several times in one wait, loses and repeats nothing."""
    split, _ = raw
    decode = worker.decode_row
    monkeypatch.setattr(worker, "CHECK", 0.05)

    def slowly(split: Split, file: np.ndarray, row: int) -> np.ndarray:
        time.sleep(0.4 if row % 24 == 0 else 0)
        return decode(split, file, row)

    monkeypatch.setattr(worker, "decode_row", slowly)
    order = Order(np.arange(ROWS), 8, PASS, False)
    batches = list(WorkerLoader(split, np.arange(ROWS), workers=2).epoch(order))
    assert np.concatenate([batch.index.numpy() for batch in batches]).tolist() == list(range(ROWS))
    wait_for_no_children()


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_shared_memory_without_room_is_named_at_once(raw, monkeypatch, kind):
    split, _ = raw

    def full(self):
        raise kind(
            "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    start = time.perf_counter()
    with pytest.raises(
        UserError, match=r"no room in the shared memory \(/dev/shm has .* MB(.|\n)*--shm-size"
    ) as caught:
        list(WorkerLoader(split, np.arange(ROWS), workers=2).epoch(Order(np.arange(ROWS), 8, PASS, False)))
    assert time.perf_counter() - start < 20 and "engine.workers 0" in str(caught.value.fix)
    wait_for_no_children()


def test_a_process_that_is_killed_by_a_full_shared_memory(raw, monkeypatch):
    """As it ends where room is promised first and missing when it is used."""
    split, _ = raw
    monkeypatch.setattr(worker, "decode_row", lambda *_: os.kill(os.getpid(), signal.SIGBUS))
    with pytest.raises(UserError, match="no room in the shared memory"):
        list(WorkerLoader(split, np.arange(ROWS), workers=2).epoch(Order(np.arange(ROWS), 8, PASS, False)))
    wait_for_no_children()


def test_a_hanging_process_is_reported(raw, monkeypatch):
    """R18."""
    split, _ = raw
    monkeypatch.setattr(worker, "PATIENCE", 1)
    monkeypatch.setattr(worker, "decode_row", lambda *_: time.sleep(1000))
    with pytest.raises(UserError, match="gave nothing for 1 s"):
        list(WorkerLoader(split, np.arange(ROWS), workers=1).epoch(Order(np.arange(ROWS), 8, PASS, False)))
    wait_for_no_children()
    assert worker.PATIENCE == 1
