"""From a prepared file to augmented images: every back end beside its peers. `python bench/throughput_loaders.py`.

Claims, on two CPU cores: the resident loader with the numba augmentation gives 32 x 32 images with padding 4, random
crop and flip as uint8 at 0.5 M images/s in batches of 128 and 0.8 M in batches of 4,096, at twice the speed of FFCV
with its own crop and flip and at 40 times that of a torch DataLoader with pillow and as many processes. The FFCV and
DALI back ends reach 90 % of what their library reaches alone at decoded uint8; DALI's 75 % where a batch is less than
1 MiB.

What a run on a CPU does to its process (`machine.keep_freed_memory`) holds for all sides.

A turn is a shuffled epoch of each side. `--quick` takes a tenth of the images. With a GPU the same is measured there
(`--device cuda`): the batches then end on the device. Rows go to bench/results/throughput_loaders.jsonl.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

import numba
import numpy as np
import torch

from bench.loader_peers import walk_dali, walk_ffcv, walk_pillow
from bench.rows import RESULTS, measure_in_turns, write_row
from fastdrpl.kernels.augment import augment, augment_uint8, crop_window, gather_crops
from fastdrpl.kernels.crop import Crop
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dali_backend import DALILoader
from fastdrpl.loaders.dataset import Split, split_of
from fastdrpl.loaders.ffcv_backend import FFCVLoader
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.loaders.sources.pictures import encode_jpeg
from fastdrpl.loaders.worker import WorkerLoader
from fastdrpl.machine import keep_freed_memory

TURNS, WARMUP = 7, 1
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
SLOW = 8  # times fewer images for the sides that need a second for a few thousand of them
Walk = Callable[[], None]


class Case(NamedTuple):
    """What is stored and what is cut out of it."""

    store: Literal["raw", "jpeg"]
    side: int  # stored
    size: int  # of the crop
    pad: int
    images: int
    batch_size: int
    workers: int


CASES = [
    Case("raw", 32, 32, 4, 50_000, batch, workers) for batch, workers in ((128, 1), (128, 2), (4096, 2))
] + [
    Case(store, side, size, pad, images, 128, workers)
    for store, side, size, pad, images in (
        ("raw", 64, 64, 8, 20_000),
        ("raw", 256, 224, 0, 2_000),
        ("jpeg", 64, 64, 8, 8_000),
        ("jpeg", 256, 224, 0, 1_600),
    )
    for workers in (1, 2)
]


def make_images(images: int, side: int) -> np.ndarray:
    """Smooth pictures with some noise, as photos compress: (images, side, side, 3) uint8."""
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.integers(0, 256, (256, 3, 8, 8)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").permute(0, 2, 3, 1)
    noisy = smooth.numpy() + random.normal(0, 4, smooth.shape)
    pool = np.clip(noisy, 0, 255).astype(np.uint8)
    return pool[random.integers(0, len(pool), images)]


def write_split(path: Path, pixels: np.ndarray, store: Literal["raw", "jpeg"]) -> Split:
    """A compiled file as `fastdrpl prepare` writes it."""
    label, (side, _, _) = np.zeros(len(pixels), np.int64), pixels.shape[1:]
    writer = BetonWriter(path, label, height=side, width=side, store=store)
    try:
        if store == "raw":
            writer.write_raw(pixels)
        else:
            writer.write_jpeg([encode_jpeg(image, 90) for image in pixels])
        writer.finish()
    finally:
        writer.close()
    return split_of("train", path, read_tables(path), np.ones(len(pixels), bool))


def walk_ours(
    loader: Loader,
    case: Case,
    images: int,
    device: torch.device,
    *,
    then: Literal["nothing", "uint8", "float32"],
) -> Walk:
    """A function that walks one epoch, another at each call; `then`: what becomes of the pixels."""
    crop: dict[str, Any] = {"pad": case.pad, "size": case.size, "flip": True}
    buffer = torch.empty((case.batch_size + 5, case.size, case.size, 3), dtype=torch.uint8, device=device)
    epoch = 0

    def walk() -> None:
        nonlocal epoch
        pass_ = Pass(seed=1, stage=0, epoch=epoch, purpose=Purpose.train)
        epoch += 1
        for batch in loader.epoch(Order(np.arange(images), case.batch_size, pass_, shuffle=True)):
            if then == "float32":
                augment(*batch, pass_.stream, Crop(**crop, mean=MEAN, std=STD))
            elif then == "uint8":
                augment_uint8(*batch, pass_.stream, **crop, out=buffer[: len(batch.rows)])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return walk


def check_crops(loader: Loader, pixels: np.ndarray, case: Case, tolerance: int) -> None:
    """Raise RuntimeError unless the crops of a batch are those of the reference."""
    pass_ = Pass(seed=1, stage=0, epoch=0, purpose=Purpose.train)
    batch = next(iter(loader.epoch(Order(np.arange(len(pixels)), 64, pass_, shuffle=True))))
    crop: dict[str, Any] = {"pad": case.pad, "size": case.size, "flip": True}
    index = batch.index.cpu()
    window = crop_window(pass_.stream, index, height=case.side, width=case.side, **crop)
    expected = gather_crops(torch.from_numpy(pixels), index, window, pad=case.pad, size=case.size)
    seen = augment_uint8(*batch, pass_.stream, **crop).cpu()
    if (seen.int() - expected.int()).abs().max() > tolerance:
        raise RuntimeError(f"{type(loader).__name__}: the crops are not those of the reference")


def compare(case: Case, folder: Path, device: torch.device, turns: int) -> None:
    """Measure all sides of a case in turns, print and store."""
    pixels = make_images(case.images, case.side)
    split = write_split(folder / f"{case.store}{case.side}.beton", pixels, case.store)
    rows, few = np.arange(case.images), max(case.images // SLOW, 4 * case.batch_size)
    few = min(few, case.images)
    loaders: dict[str, Loader] = {
        "resident": ResidentLoader(split, rows, device),
        "ffcv": FFCVLoader(split, rows, device, workers=case.workers),
        "dali": DALILoader(split, rows, device, workers=case.workers),
        "worker": WorkerLoader(split, rows, device, workers=case.workers),
    }
    if case.store == "raw":
        for loader in loaders.values():
            check_crops(loader, pixels, case, 0)

    def peer(make: Callable[..., Walk], images: int, **options: Any) -> tuple[int, Walk]:
        walk = make(split, images, case.batch_size, case.workers, size=case.size, pad=case.pad, **options)
        return images, walk

    def ours(name: str, images: int, then: Literal["nothing", "uint8", "float32"]) -> tuple[int, Walk]:
        return images, walk_ours(loaders[name], case, images, device, then=then)

    sides: dict[str, tuple[int, Walk]] = {
        "resident + crop": ours("resident", case.images, "uint8"),
        "resident + crop, float32": ours("resident", case.images, "float32"),
        "ffcv back end": ours("ffcv", case.images, "nothing"),
        "ffcv alone": peer(walk_ffcv, case.images, augment=False),
        "ffcv back end + crop": ours("ffcv", case.images, "uint8"),
        "ffcv alone, its own crop": peer(walk_ffcv, few, augment=True),
        "dali back end": ours("dali", case.images, "nothing"),
        "dali alone": peer(walk_dali, case.images, augment=False),
        "dali back end + crop": ours("dali", case.images, "uint8"),
        "dali alone, its own crop": peer(walk_dali, case.images, augment=True),
        "worker + crop": ours("worker", few, "uint8"),
        "pillow DataLoader": peer(walk_pillow, few, normalised=False),
        "pillow DataLoader, float32": peer(walk_pillow, few, normalised=True),
    }
    seconds: dict[str, list[float]] = {}
    for names in (*ALONE, tuple(name for name in sides if not any(name in pair for pair in ALONE))):
        walks = {name: sides[name][1] for name in names}
        seconds |= measure_in_turns(walks, warmup=WARMUP, repeats=turns)
    for loader in loaders.values():
        loader.close()
    rate = {name: images / np.array(seconds[name]) for name, (images, _) in sides.items()}
    print(
        f"\n{case.side}x{case.side} {case.store} -> {case.size}, batch {case.batch_size}, {case.workers} workers"
    )
    for name, (images, _) in sides.items():
        beside = PEERS.get(name, {})
        ratios = {other: float(np.median(rate[name] / rate[other])) for other in beside}
        write_row(
            RESULTS / "throughput_loaders.jsonl",
            what=f"one epoch: {case.store}, {case.side} to {case.size} pixels",
            shape=(case.batch_size, case.size, case.size, 3),
            dtype="float32" if "float32" in name else "uint8",
            backend=name,
            seconds=seconds[name],
            warmup=WARMUP,
            threads=numba.get_num_threads() if name.startswith("resident") else case.workers,
            device=str(device),
            images=images,
            images_per_second=round(float(np.median(rate[name]))),
            ratio_to=ratios,
        )
        shown = ", ".join(
            f"{value:.2f}x {other}" + (" (SHORT of the goal)" if value < goal(case, name, other) else "")
            for other, value in ratios.items()
        )
        print(f"  {name:<28}{np.median(rate[name]):>12,.0f} images/s   {shown}", flush=True)


def goal(case: Case, name: str, other: str) -> float:
    """The least ratio of a side to a peer that is claimed; 0 = none. bench/README.md has the reasons."""
    small = case.batch_size * case.side**2 * 3 < 1 << 20  # bytes of a batch
    goals = {
        ("resident + crop", "ffcv alone, its own crop"): 2.0,
        ("resident + crop", "pillow DataLoader"): 40.0 if (case.store, case.side) == ("raw", 32) else 0,
        ("ffcv back end", "ffcv alone"): 0.9,
        ("dali back end", "dali alone"): 0.75 if small else 0.9,
    }
    return goals.get((name, other), 0)


# Measured by themselves: what the other sides leave in the caches, and the memory that they give back, made one of two
# that do the same work up to twice as slow as the other.
ALONE = (("dali back end", "dali alone"), ("ffcv back end", "ffcv alone"))
PEERS = {  # whom each side is measured against
    "resident + crop": ("ffcv alone, its own crop", "dali alone, its own crop", "pillow DataLoader"),
    "resident + crop, float32": ("pillow DataLoader, float32",),
    "ffcv back end": ("ffcv alone",),
    "ffcv back end + crop": ("ffcv alone, its own crop",),
    "dali back end": ("dali alone",),
    "dali back end + crop": ("dali alone, its own crop",),
    "worker + crop": ("pillow DataLoader",),
}


def main() -> None:
    """All cases, or those whose text holds a word of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="e.g. raw32 jpeg256: only these cases")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device == "cpu":
        keep_freed_memory()  # as every run there does; for all sides
    for case in CASES:
        if options.words and f"{case.store}{case.side}" not in options.words:
            continue
        if options.quick:
            case = case._replace(images=max(case.images // 10, 8 * case.batch_size))
        with tempfile.TemporaryDirectory() as folder:
            compare(case, Path(folder), torch.device(options.device), 3 if options.quick else TURNS)


if __name__ == "__main__":
    main()
