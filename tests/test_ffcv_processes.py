"""The FFCV loader in fresh processes and beside the library's own loader, and on a GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from need import need

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.ffcv_backend import FFCVLoader
from fastdrpl.loaders.order import Order

need("ffcv")


from ffcv_cases import PASS, ROWS, check_nothing_is_left, check_pixels, choose_split, write_jpeg, write_raw


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_raw(tmp_path_factory)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_jpeg(tmp_path_factory)


@pytest.fixture(params=["raw", "jpeg"])
def split(request: Any, raw: Split, jpeg: Split) -> Split:
    return choose_split(request, raw, jpeg)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield from check_nothing_is_left()


ROOT = Path(__file__).resolve().parent.parent


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
