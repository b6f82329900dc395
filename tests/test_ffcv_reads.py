"""The real `ffcv` library reads our files in every mode and gives the same pixels, labels and ids."""

import importlib.metadata
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from need import need
from PIL import Image

from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare

THREADS = torch.get_num_threads()
need("ffcv")
from ffcv.loader import Loader, OrderOption

# What numba says when the library's loaders are thrown away while their threads still compile
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
torch.set_num_threads(THREADS)  # importing the library has set one


@pytest.fixture(autouse=True)
def restore_threads() -> Any:
    """Every loader of the library sets torch to one thread."""
    yield
    torch.set_num_threads(THREADS)


def read_all(path: Path, *, os_cache: bool, order: Any) -> dict[int, tuple[np.ndarray, int]]:
    """Everything the library reads: id -> (pixels, label)."""
    loader = Loader(
        str(path), batch_size=97, num_workers=1, os_cache=os_cache, order=order, drop_last=False, seed=3
    )
    rows: dict[int, tuple[np.ndarray, int]] = {}
    for images, labels, indices in loader:
        for image, label, index in zip(images, labels.reshape(-1), indices.reshape(-1), strict=True):
            rows[int(index)] = (image.numpy().copy(), int(label))
    return rows


def read_image(split: Split, row: int) -> np.ndarray:
    data = np.memmap(split.path, np.uint8, "r")[split.offset[row] :][: split.nbytes[row]]
    if split.store == "raw":
        return np.asarray(data).reshape(split.height, split.width, 3)
    return np.asarray(Image.open(io.BytesIO(data.tobytes())))


@pytest.mark.parametrize("os_cache", [True, False])
def test_raw_cifar_is_bit_equal(real_cifar: Path, tmp_path_factory: Any, os_cache: bool) -> None:
    out = tmp_path_factory.getbasetemp() / "ffcv_cifar10"
    dataset = prepare(PrepareConfig(kind="cifar10", source=real_cifar, out=out), quiet=True)
    split = dataset.split("test")
    rows = read_all(split.path, os_cache=os_cache, order=OrderOption.SEQUENTIAL)
    assert sorted(rows) == list(range(10_000))
    assert [rows[row][1] for row in range(10_000)] == split.label.tolist()
    assert all(np.array_equal(rows[row][0], read_image(split, row)) for row in range(10_000))


@pytest.mark.parametrize("store", ["raw", "jpeg"])
@pytest.mark.parametrize("os_cache", [True, False])
def test_photos_of_several_pages_with_a_bad_one(tmp_path: Path, store: Any, os_cache: bool) -> None:
    random = np.random.default_rng(1)
    for number in range(24):
        folder = tmp_path / "source" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((300, 280), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    (tmp_path / "source" / "class1" / "07.png").write_bytes(b"no image")
    config = PrepareConfig(
        kind="folder", source=tmp_path / "source", out=tmp_path / "out", store=store, size=256, workers=1
    )
    prepare(config, quiet=True)
    split = open_dataset(tmp_path / "out", verify=True).split("train")
    order = OrderOption.SEQUENTIAL if os_cache else OrderOption.RANDOM
    rows = read_all(split.path, os_cache=os_cache, order=order)
    assert [rows[row][1] for row in range(24)] == split.label.tolist()
    for row in range(24):
        difference = np.abs(rows[row][0].astype(int) - read_image(split, row).astype(int))
        assert difference.max() <= (0 if store == "raw" else 8)
        assert difference.mean() <= 1.25
        assert bool(split.valid[row]) == bool(rows[row][0].any())  # the bad one is black
    assert split.valid.sum() == 23


def test_the_version_we_tested() -> None:
    assert importlib.metadata.version("ffcv") == "1.0.2"
