"""From a prepared file to augmented images, beside pillow: `python bench/throughput_loaders.py`.

Claim: the resident loader with the numba augmentation gives, on two CPU cores, 32 x 32 images with padding 4, random
crop and flip as uint8 at 0.5 M images/s in batches of 128 and 0.8 M in batches of 4,096, and at least 100 times what
a torch DataLoader with pillow, torchvision transforms and two processes gives in the same run. There are two such
peers: one stops at uint8 as ours does, the other goes on to normalised float32, as training scripts do.

A turn is a shuffled epoch of each side; ours includes the shuffle. Rows go to bench/results/throughput_loaders.jsonl.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

import numba
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.rows import RESULTS, measure_in_turns, write_row
from fastdrpl.kernels.augment import augment, augment_uint8, crop_window, gather_crops
from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.resident import ResidentLoader

IMAGES, SIDE, PAD = 50_000, 32, 4
PILLOW_IMAGES = 10_000  # of a turn on the slow side, which needs about a second for them
WORKERS, TURNS, WARMUP = 2, 9, 1
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CROP: dict[str, Any] = {"pad": PAD, "size": SIDE, "flip": True}


class PillowImages(Dataset[torch.Tensor]):
    """The usual way: an array of pixels, a pillow image of each, torchvision's transforms."""

    def __init__(self, pixels: np.ndarray, *, normalised: bool) -> None:
        self.pixels = pixels
        last = (
            [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
            if normalised
            else [transforms.PILToTensor()]
        )
        self.transform = transforms.Compose(
            [transforms.RandomCrop(SIDE, PAD), transforms.RandomHorizontalFlip(), *last]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.pixels[index]))


def write_split(path: Path, pixels: np.ndarray) -> Split:
    """A compiled file as `fastdrpl prepare` writes it."""
    label = np.zeros(len(pixels), np.int64)
    writer = BetonWriter(path, label, height=SIDE, width=SIDE)
    try:
        writer.write_raw(pixels)
        writer.finish()
    finally:
        writer.close()
    tables = read_tables(path)
    valid = np.ones(len(pixels), bool)
    return Split(
        "train", path, SIDE, SIDE, "raw", label, valid, tables.offset, tables.nbytes, tables.page_size
    )


def walk_ours(loader: ResidentLoader, batch_size: int, *, normalised: bool) -> Callable[[], None]:
    """A function that walks one epoch, another at each call."""
    buffer = torch.empty((batch_size + 5, SIDE, SIDE, 3), dtype=torch.uint8)
    epoch = 0

    def walk() -> None:
        nonlocal epoch
        pass_ = Pass(seed=1, stage=0, epoch=epoch, purpose=Purpose.train)
        epoch += 1
        for batch in loader.epoch(Order(np.arange(IMAGES), batch_size, pass_, shuffle=True)):
            if normalised:
                augment(*batch, pass_.stream, **CROP, mean=MEAN, std=STD)
            else:
                augment_uint8(*batch, pass_.stream, **CROP, out=buffer[: len(batch.rows)])

    return walk


def walk_pillow(pixels: np.ndarray, batch_size: int, *, normalised: bool) -> Callable[[], None]:
    """A function that walks one epoch; its processes start at the first call, which is the warm-up."""
    images = PillowImages(pixels[:PILLOW_IMAGES], normalised=normalised)
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True)

    def walk() -> None:
        for _ in loader:
            pass

    return walk


def check_ours(loader: ResidentLoader, pixels: np.ndarray) -> None:
    """Raise RuntimeError unless the crops of a batch are those of the reference."""
    pass_ = Pass(seed=1, stage=0, epoch=0, purpose=Purpose.train)
    batch = next(iter(loader.epoch(Order(np.arange(IMAGES), 512, pass_, shuffle=True))))
    window = crop_window(pass_.stream, batch.index, height=SIDE, width=SIDE, **CROP)
    expected = gather_crops(torch.from_numpy(pixels), batch.index, window, pad=PAD, size=SIDE)
    if not torch.equal(augment_uint8(*batch, pass_.stream, **CROP), expected):
        raise RuntimeError("the crops are not those of the reference")


def compare(loader: ResidentLoader, pixels: np.ndarray, batch_size: int, *, normalised: bool) -> None:
    """Measure both sides in turns, print and store."""
    sides = {
        "resident + numba": (IMAGES, walk_ours(loader, batch_size, normalised=normalised)),
        "DataLoader + pillow": (PILLOW_IMAGES, walk_pillow(pixels, batch_size, normalised=normalised)),
    }
    seconds = measure_in_turns(
        {name: walk for name, (_, walk) in sides.items()}, warmup=WARMUP, repeats=TURNS
    )
    rates = {name: images / np.array(seconds[name]) for name, (images, _) in sides.items()}
    ours, theirs = rates.values()
    ratio = float(np.median(ours / theirs))
    dtype = "float32" if normalised else "uint8"
    for name, (images, _) in sides.items():
        write_row(
            RESULTS / "throughput_loaders.jsonl",
            what="one epoch: load, crop, flip",
            shape=(batch_size, SIDE, SIDE, 3),
            dtype=dtype,
            backend=name,
            seconds=seconds[name],
            warmup=WARMUP,
            threads=WORKERS if "pillow" in name else numba.get_num_threads(),
            images=images,
            images_per_second=round(float(np.median(rates[name]))),
            ratio_to_pillow=ratio if name == "resident + numba" else 1.0,
        )
    print(
        f"{batch_size:>6} {dtype:<8} {np.median(ours) / 1e6:>14.3f} {np.median(theirs):>11,.0f} {ratio:>6.0f}x"
    )


def main() -> None:
    """Compare uint8 and float32 output at both batch sizes."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        loader = ResidentLoader(write_split(Path(folder, "train.beton"), pixels), np.arange(IMAGES))
        check_ours(loader, pixels)
        print(
            f"{'batch':>6} {'output':<8} {'ours, M img/s':>14} {'pillow':>11} {'ratio':>7}   medians of {TURNS} turns"
        )
        for normalised in (False, True):
            for batch_size in (128, 4096):
                compare(loader, pixels, batch_size, normalised=normalised)
        loader.close()


if __name__ == "__main__":
    main()
