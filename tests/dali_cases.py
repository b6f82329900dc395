"""Splits for the DALI loader, its walks, and what must be left when it ends."""

import gc
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdrpl.loaders.dali_backend import DALILoader
from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.prepare import PrepareConfig, prepare

IMAGES, BAD, SIDE = 101, 40, 24
PASS = Pass(seed=3, stage=0, epoch=1, purpose=Purpose.train)
PATIENCE = 60.0  # seconds in which an error must come


def write_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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


def choose_split(request: Any, folders: dict[str, Path]) -> Split:
    return open_dataset(folders[request.param]).split("train")


def copy_own(request: Any, folders: dict[str, Path], tmp_path: Path) -> Split:
    """A copy that a test may damage: JPEG, unless parametrized."""
    store = getattr(request, "param", "jpeg")
    return open_dataset(Path(shutil.copytree(folders[store], tmp_path / store))).split("train")


def use_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def check_nothing_left(own_temporary_folder: None) -> Iterator[None]:
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
