"""Makes a source in the published layout of ImageNet32 or ImageNet64, with pixels like those of photos.

    python bench/generate_imagenet.py OUT --images 1281167 --val 50000 --size 64 --layout pickle

Each image is a smooth field of colours with edges and noise, drawn once into a pool and then shifted, mirrored
and brightened, so that 15.7 GB take a minute or two. The same arguments give the same files.
"""

import argparse
import pickle
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

Layout = Literal["pickle", "npz", "zip", "npz-zip"]
CLASSES, BATCHES, POOL = 1000, 10, 512
IMAGES = (1_281_167, 50_000)


@cache
def draw_pool(size: int) -> np.ndarray:
    """`POOL` images as colour planes: (POOL, 3 * size * size) uint8."""
    random = np.random.default_rng(size)
    line = np.linspace(0, 1, size, dtype=np.float32)
    pool = np.empty((POOL, 3, size, size), np.uint8)
    for image in pool:
        waves = random.normal(size=(6, 5)).astype(np.float32)
        field = sum(
            height * np.cos(4 * (along * line[:, None] + across * line[None]) + phase)
            for along, across, phase, height, _ in waves
        )
        edge = (np.hypot(*np.meshgrid(line - 0.5, line - 0.5)) < random.uniform(0.1, 0.4)) * random.normal()
        colour = (
            128
            + 40 * (field + edge)[None] * random.uniform(0.3, 1, (3, 1, 1))
            + random.normal(0, 25, (3, 1, 1))
        )
        image[...] = np.clip(colour + random.normal(0, 8, (3, size, size)), 0, 249)
    return pool.reshape(POOL, -1)


def walk_pixels(rows: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Pieces (k, 3 * size * size) uint8 of `rows` images, all different, and others for another seed 0..10.

    A piece is valid until the next is asked for.
    """
    pool, done = draw_pool(size), 0
    piece = np.empty_like(pool)
    while done < rows:
        shift = done // POOL + 251 * seed  # a published file has 251 of these steps
        np.add(np.roll(pool, shift * 3 % pool.shape[1], axis=1), np.uint8(shift % 7), out=piece)
        yield piece[: rows - done]
        done += len(piece)


def draw_labels(first: int, rows: int, seed: int) -> np.ndarray:
    """Labels 1..1000 in mixed order, as if they were dealt out from image `first` of all on: (rows,) int64."""
    labels = np.arange(first, first + rows) % CLASSES + 1
    np.random.default_rng(seed).shuffle(labels)
    return labels


def write_pickle(path: Path, labels: np.ndarray, size: int, seed: int) -> None:
    """One batch file as the published ones: protocol 3; the pixels go to the disk piece by piece."""
    content = {"data": b"", "labels": labels.tolist(), "mean": np.zeros(3 * size * size)}
    small = np.zeros((1, 3 * size * size), np.uint8)
    head, tail = pickle.dumps(content | {"data": small}, protocol=3).split(
        b"B" + _length(small) + bytes(small)
    )
    rows = len(labels)
    old, new = (pickle.dumps((n, 3 * size * size), protocol=3)[2:-4] for n in (1, rows))
    head = new.join(head.rsplit(old, 1))  # the shape
    with open(path, "wb") as file:
        file.write(head + b"B" + (rows * small.nbytes).to_bytes(4, "little"))
        for piece in walk_pixels(rows, size, seed):
            file.write(piece)
        file.write(tail)


def _length(array: np.ndarray) -> bytes:
    return array.nbytes.to_bytes(4, "little")


def write_npz(path: Path, labels: np.ndarray, size: int, seed: int) -> None:
    """One batch file as `numpy.savez` writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("data.npy", "w", force_zip64=True) as file:
            about = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), 3 * size * size)}
            np.lib.format.write_array_header_1_0(file, about)
            for piece in walk_pixels(len(labels), size, seed):
                file.write(piece)
        for name, array in (("labels", labels), ("mean", np.zeros(3 * size * size))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)


def generate(
    out: Path, *, images: int = IMAGES[0], val: int = IMAGES[1], size: int = 64, layout: Layout = "pickle"
) -> Path:
    """Write ten training batches and the validation batch below `out`, in folders (or zips) as published."""
    out.mkdir(parents=True, exist_ok=True)
    npz = layout.startswith("npz")
    write, suffix = (write_npz, ".npz") if npz else (write_pickle, "")
    halves = [f"Imagenet{size}_train_part{half}" for half in (1, 2)] if size == 64 else ["Imagenet32_train"]
    stops = [images * number // BATCHES for number in range(BATCHES + 1)]
    for number in range(BATCHES + 1):
        half = f"Imagenet{size}_val" if number == BATCHES else halves[number * len(halves) // BATCHES]
        half += "_npz" if npz else ""
        rows = val if number == BATCHES else stops[number + 1] - stops[number]
        name = "val_data" if number == BATCHES else f"train_data_batch_{number + 1}"
        folder = out / half
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}{suffix}"
        write(path, draw_labels(stops[number] if number < BATCHES else 0, rows, number), size, number)
        if layout.endswith("zip"):
            with zipfile.ZipFile(out / f"{half}.zip", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.write(path, path.name)
            path.unlink()
            folder.rmdir()
    return out


def main() -> None:
    """Generate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES[0])
    parser.add_argument("--val", type=int, default=IMAGES[1])
    parser.add_argument("--size", type=int, choices=(32, 64), default=64)
    parser.add_argument("--layout", choices=("pickle", "npz", "zip", "npz-zip"), default="pickle")
    generate(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
