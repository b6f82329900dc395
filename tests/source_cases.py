"""What the tests of sources read and write."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdrpl.loaders.dataset import Split


def read_image(split: Split, row: int) -> np.ndarray:
    nbytes = split.height * split.width * 3
    data = np.fromfile(split.path, np.uint8, nbytes, offset=int(split.offset[row]))
    return data.reshape(split.height, split.width, 3)


def small_batch(rows: int = 6, **changes: Any) -> bytes:
    random = np.random.default_rng(rows)
    content = {
        b"data": random.integers(0, 256, (rows, 3072), dtype=np.uint8),
        b"labels": [row % 10 for row in range(rows)],
    }
    return pickle.dumps(content | {key.encode(): value for key, value in changes.items()}, protocol=3)


# --- folders -------------------------------------------------------------------------------------------------------

RED = (200, 30, 40)


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
