"""Prepared datasets of random images, as `fastdrpl prepare` would write them: for timing, where content is no matter.

python bench/synthetic.py data/cifar10                     # 50,000 + 10,000 of 32 pixels
python bench/synthetic.py data/cifar100 --kind cifar100 --train 500 --test 100
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

import numpy as np

from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.dataset import Dataset, open_dataset
from fastdrpl.loaders.manifest import write_manifest
from fastdrpl.loaders.prepare_config import PrepareConfig
from fastdrpl.loaders.sources.source import OpenedSource, Part, Piece
from fastdrpl.loaders.unfinished import Progressed

PIECE = 1_000  # images made at a time
# Non-uniform noise goes by these names; of CIFAR-100 by the superclasses.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Kind = Literal["cifar10", "cifar100"]


def write_dataset(
    out: Path, *, kind: Kind = "cifar10", size: int = 32, train: int, test: int, seed: int = 1
) -> Dataset:
    """A new folder `out` with random pixels and labels; the same arguments give the same bytes."""
    names = CIFAR10 if kind == "cifar10" else tuple(f"class {number}" for number in range(100))
    counts = {"train": train, "test": test}
    source = OpenedSource(
        kind=kind,
        name=f"random images like {kind}",
        fingerprint=hashlib.sha256(repr((kind, size, train, test, seed)).encode()).hexdigest(),
        class_names=names,
        superclass=None if kind == "cifar10" else tuple(number // 5 for number in range(100)),
        superclass_names=None if kind == "cifar10" else tuple(f"group {number}" for number in range(20)),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        flip=True,
        pad=size // 8,
        height=size,
        width=size,
        parts={
            name: _part(count, size, len(names), (seed, n)) for n, (name, count) in enumerate(counts.items())
        },
    )
    out.mkdir(parents=True)
    finished = {}
    for name, part in source.parts.items():
        with closing(
            BetonWriter(out / f"{name}.beton", part.labels, height=size, width=size, store="raw")
        ) as file:
            for piece in part.read(0):
                file.write_raw(np.asarray(piece.images))
            finished[name] = Progressed(len(part.labels), [], [], file.finish())
    write_manifest(PrepareConfig(kind=kind, out=out), source, finished, out, {}, {}, {})
    return open_dataset(out)


def _part(count: int, size: int, classes: int, seed: tuple[int, int]) -> Part:
    def read(row: int) -> Iterator[Piece]:
        draw = np.random.default_rng(seed)
        for start in range(row, count, PIECE):
            shape = (min(PIECE, count - start), size, size, 3)
            yield Piece(draw.integers(0, 256, shape, dtype=np.uint8), [])

    labels = np.random.default_rng((*seed, 1)).permutation(np.arange(count) % classes)
    return Part(labels.astype(np.int64), None, read)


def main() -> None:
    """Write one dataset; one that is there already is checked and left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--size", type=int, default=32, help="pixels on a side")
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    words = parser.parse_args()
    if words.out.exists():
        open_dataset(words.out)
        return
    data = write_dataset(words.out, kind=words.kind, size=words.size, train=words.train, test=words.test)
    print(f"{data.name}: {words.train:,} + {words.test:,} of {words.size} pixels in {words.out}")


if __name__ == "__main__":
    main()
