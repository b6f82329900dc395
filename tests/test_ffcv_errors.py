"""What the FFCV loader says of damaged files, hanging threads and wrong arguments."""

import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from need import need
from PIL import Image

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.ffcv_backend import FFCVLoader
from fastdrpl.loaders.order import Order

need("ffcv")


from ffcv_cases import (
    PASS,
    ROWS,
    SIDE,
    check_nothing_is_left,
    check_pixels,
    choose_split,
    choose_workers,
    make_small_chunks,
    reading_threads,
    smooth_pictures,
    write_jpeg,
    write_raw,
    write_split,
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


def copy_split(split: Split, tmp_path: Path) -> Split:
    """The same in a file that may be damaged."""
    return replace(split, path=Path(shutil.copy(split.path, tmp_path)))


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
    """R18."""
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
