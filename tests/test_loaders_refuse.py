"""What loaders refuse, and what they say while they open."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loaders import PASS, ROWS, jpeg, raw, stored  # noqa: F401 - fixtures

from fastdrpl.loaders import resident, worker
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.loaders.worker import WorkerLoader


def test_patience_ends_within_a_minute():
    """R18."""
    assert 0 < worker.PATIENCE < 60


LOADERS = [ResidentLoader, WorkerLoader]


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize(
    ("source_row", "text"),
    [(np.array([0, ROWS]), "want 0..119"), (np.array([-1]), "want 0..119"), (np.arange(3.0), "want int64")],
)
def test_rows_that_are_not_there_are_refused(raw, make, source_row, text):
    with pytest.raises(UserError, match=text):
        make(raw[0], source_row)


@pytest.mark.parametrize("make", LOADERS)
def test_a_file_cut_short_is_refused(stored, make):
    split, _ = stored
    content = split.path.read_bytes()
    end = int(split.offset[-1] + split.nbytes[-1])
    split.path.write_bytes(content[: end - 1])
    with pytest.raises(DataError, match=r"row 119 ends at byte"):
        make(split, np.arange(ROWS))
    split.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"row 0 ends at byte"):
        make(split, np.arange(ROWS))
    split.path.unlink()
    with pytest.raises(DataError, match="missing"):
        make(split, np.arange(ROWS))


@pytest.mark.parametrize("change", ["offset", "nbytes"])
def test_an_image_off_the_grid_is_refused(raw, change):
    split, _ = raw
    values = getattr(split, change).copy()
    values[5] -= 1
    with pytest.raises(DataError, match="row 5"):
        ResidentLoader(replace(split, **{change: values}), np.arange(ROWS))


def test_too_little_memory_is_said_before_decoding(jpeg, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda: 1000)
    monkeypatch.setattr(resident, "decode_row", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="GB free"):
        ResidentLoader(jpeg[0], np.arange(ROWS))


def test_free_memory_is_a_plausible_number():
    assert 50e6 < resident.free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_decoding_tells_its_progress(jpeg, monkeypatch):
    monkeypatch.setattr(resident, "DECODE_CHUNK", 50)
    told: list[tuple[int, int]] = []
    ResidentLoader(jpeg[0], np.arange(ROWS), progress=lambda done, total: told.append((done, total)))
    assert [total for _, total in told] == [ROWS] * 3
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == ROWS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_holds_the_same_pixels(stored):
    split, pixels = stored
    order = Order(np.arange(ROWS), 16, PASS, True)
    for loader in (
        ResidentLoader(split, np.arange(ROWS), "cuda"),
        WorkerLoader(split, np.arange(ROWS), "cuda", 2),
    ):
        for step, batch in enumerate(loader.epoch(order)):
            assert batch.pixels.is_cuda and batch.rows.is_cuda and batch.index.is_cuda
            assert np.array_equal(batch.pixels[batch.rows].cpu().numpy(), pixels[order[step]])
