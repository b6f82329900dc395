"""Splits for the FFCV loader, and what must be left when it ends."""

import gc
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from PIL import Image

from fastdrpl.loaders import ffcv_backend, ffcv_pipeline
from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.order import Pass, Purpose

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


def write_raw(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_split(tmp_path_factory.mktemp("raw") / "train.beton", "raw", smooth_pictures(ROWS, SIDE))


def write_jpeg(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_split(tmp_path_factory.mktemp("jpeg") / "train.beton", "jpeg", smooth_pictures(ROWS, SIDE))


def choose_split(request: Any, raw: Split, jpeg: Split) -> Split:
    return {"raw": raw, "jpeg": jpeg}[request.param]


def choose_workers(request: Any) -> int:
    return request.param


def make_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk for each step."""
    monkeypatch.setattr(ffcv_backend, "CHUNK_BYTES", 1)


def check_nothing_is_left() -> Iterator[None]:
    """No test leaves a thread, or another number of torch's and numba's threads."""
    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    if reading_threads():  # a failed test's frames may hold an epoch
        gc.collect()
    assert reading_threads() == []
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, ffcv_pipeline.Chunks)]


def check_pixels(split: Split, seen: np.ndarray, rows: np.ndarray) -> None:
    file = map_file(split)
    wanted = np.stack([decode_row(split, file, int(row)) for row in rows])
    difference = np.abs(seen.astype(int) - wanted.astype(int))
    assert difference.max() <= (0 if split.store == "raw" else 8)
    assert difference.mean() <= (0 if split.store == "raw" else 1.25)
