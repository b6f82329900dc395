"""Every back end gives the same batches: same index, same pixels, for every rank, from any step on.

The reference is made here, from the stored bytes with numpy and pillow; none of the loaders takes part in it.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from need import need
from PIL import Image
from sklearn.datasets import load_sample_images

from fastdrpl.kernels.augment import augment_uint8
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.prepare import PrepareConfig, prepare

IMAGES, SIDE, BATCH = 91, 48, 16
PASS = Pass(seed=7, stage=1, epoch=3, purpose=Purpose.train)
STORES = ("raw", "jpeg")
BACK_ENDS = ("resident", "worker", "ffcv", "dali")
# (largest difference, mean difference) from pillow that a store and library may have, at prepare's default quality
EXACT, CLOSE, FAST_DCT = (0, 0.0), (4, 0.5), (8, 1.25)


def allowed(back_end: str, store: str) -> tuple[int, float]:
    if store == "raw":
        return EXACT
    return {"resident": EXACT, "worker": EXACT, "dali": CLOSE, "ffcv": FAST_DCT}[back_end]


def open_back_end(name: str, split: Split, source_row: np.ndarray) -> Loader:
    library = {"ffcv": "ffcv", "dali": "nvidia.dali"}.get(name)
    if library:
        need(library)
    if name == "resident":
        from fastdrpl.loaders.resident import ResidentLoader

        return ResidentLoader(split, source_row)
    if name == "worker":
        from fastdrpl.loaders.worker import WorkerLoader

        return WorkerLoader(split, source_row, workers=1)
    if name == "ffcv":
        from fastdrpl.loaders.ffcv_backend import FFCVLoader

        return FFCVLoader(split, source_row, workers=2)
    from fastdrpl.loaders.dali_backend import DALILoader

    return DALILoader(split, source_row, workers=2)


@pytest.fixture(scope="module", params=STORES)
def split(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The training images of a prepared folder of photos, in several shards."""
    base = tmp_path_factory.mktemp(request.param)
    random, photos = np.random.default_rng(5), load_sample_images().images
    for number in range(IMAGES):
        folder = base / "photos" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        top, left = random.integers(0, 200, 2)
        crop = photos[number % 2][top : top + 200, left : left + 230]
        Image.fromarray(crop).save(folder / f"{number:03}.png")
    config = PrepareConfig(
        kind="folder",
        source=base / "photos",
        out=base / "out",
        size=SIDE,
        store=request.param,
        format="shards",
        workers=1,
    )
    prepare(config, quiet=True)
    return open_dataset(base / "out", verify=True).split("train")


@pytest.fixture(scope="module")
def source_row() -> np.ndarray:
    """Samples show rows in no order; some rows are shown twice, some never."""
    return np.random.default_rng(2).integers(0, IMAGES, 83)


@pytest.fixture(scope="module", params=BACK_ENDS)
def back_end(request: Any, split: Split, source_row: np.ndarray) -> Iterator[tuple[str, Loader]]:
    loader = open_back_end(request.param, split, source_row)
    yield request.param, loader
    loader.close()


def reference(split: Split, row: int) -> np.ndarray:
    data = split.path.read_bytes()[split.offset[row] :][: split.nbytes[row]]
    if split.store == "raw":
        return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3)
    return np.asarray(Image.open(io.BytesIO(data)))


def walk(loader: Loader, order: Order, start_step: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(index, pixels) of each batch; copied, because a staging buffer is filled again."""
    return [
        (batch.index.numpy().copy(), batch.pixels[batch.rows].numpy().copy())
        for batch in loader.epoch(order, start_step=start_step)
    ]


def check(
    split: Split, source_row: np.ndarray, order: Order, start_step: int, seen: Any, limits: tuple[int, float]
) -> None:
    assert len(seen) == len(order) - start_step
    for step, (index, pixels) in enumerate(seen, start_step):
        assert index.tolist() == order[step].tolist()
        assert pixels.dtype == np.uint8 and pixels.shape == (len(index), SIDE, SIDE, 3)
        for sample, image in zip(index, pixels, strict=True):
            difference = np.abs(image.astype(int) - reference(split, source_row[sample]).astype(int))
            assert difference.max() <= limits[0] and difference.mean() <= limits[1]


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("start_step", [0, 2])
def test_same_index_and_pixels(
    split: Split, source_row: np.ndarray, back_end: tuple[str, Loader], rank: int, world: int, start_step: int
) -> None:
    """R11."""
    name, loader = back_end
    order = Order(np.arange(len(source_row)), BATCH, PASS, True, rank, world)  # 5 steps: the tail of 3 joins
    seen = walk(loader, order, start_step)
    check(split, source_row, order, start_step, seen, allowed(name, split.store))


def test_a_subset_in_its_own_order(
    split: Split, source_row: np.ndarray, back_end: tuple[str, Loader]
) -> None:
    name, loader = back_end
    order = Order(np.array([80, 3, 4, 4, 0, 17, 9], dtype=np.int64), 7, PASS, shuffle=False)
    check(split, source_row, order, 0, walk(loader, order, 0), allowed(name, split.store))


def test_the_network_sees_the_same(
    split: Split, source_row: np.ndarray, back_end: tuple[str, Loader]
) -> None:
    """R11: after augmentation as well: crops and flips are keyed by the sample, not by who delivers it."""
    name, loader = back_end
    order = Order(np.arange(len(source_row)), BATCH, PASS, shuffle=True)
    images = torch.from_numpy(np.stack([reference(split, row) for row in source_row]))
    crop: Any = {"pad": 4, "size": SIDE, "flip": True}
    for step, batch in enumerate(loader.epoch(order)):
        index = torch.from_numpy(order[step].copy())
        wanted = augment_uint8(images, index, index, PASS.stream, **crop)
        seen = augment_uint8(*batch, PASS.stream, **crop)
        assert (seen.int() - wanted.int()).abs().max() <= allowed(name, split.store)[0]


@pytest.fixture(scope="module", params=("resident", "worker", "ffcv", "dali"))
def shard_back_end(request: Any, split: Split) -> Iterator[tuple[str, Loader]]:
    loader = open_back_end(request.param, split, np.arange(IMAGES))
    yield request.param, loader
    loader.close()


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("start_step", [0, 2])
def test_same_in_the_order_of_shards(
    split: Split, shard_back_end: tuple[str, Loader], rank: int, world: int, start_step: int
) -> None:
    from fastdrpl.loaders.shard_order import ShardWalk

    name, loader = shard_back_end
    rows = np.arange(IMAGES)
    order = ShardWalk(split, rows)(rows[rows % 5 != 0], BATCH, PASS, True, rank, world)
    assert len(split.shards) > 1
    check(split, rows, order, start_step, walk(loader, order, start_step), allowed(name, split.store))
