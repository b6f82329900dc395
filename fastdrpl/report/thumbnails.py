"""Images small enough to stand inside a page."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row, map_file

PREFIX = "data:image/webp;base64,"
LOSSLESS = 16  # pixels: sides of images whose every pixel counts
SMALL = 32  # pixels: sides of images that a page enlarges pixel by pixel
_TRIED = 48  # images that tell how large all will be


@dataclass(frozen=True)
class Size:
    """The longest side of a thumbnail in pixels (smaller images stay as they are), and WebP's quality."""

    side: int
    quality: int


SIZES = (Size(128, 80), Size(96, 76), Size(80, 70), Size(64, 62))  # the best first


def thumbnail(pixels: npt.NDArray[np.uint8], size: Size) -> str:
    """(H, W, 3) -> a data URI; shrunk where it is larger, never enlarged."""
    image = Image.fromarray(pixels)
    image.thumbnail((size.side, size.side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=size.quality, method=4, lossless=max(image.size) <= LOSSLESS)
    return PREFIX + base64.b64encode(file.getvalue()).decode("ascii")


def choose_size(split: Split, rows: npt.NDArray[np.int64], budget: int, beside: int) -> Size:
    """The best size at which thumbnails of all rows fit into `budget` bytes, or the smallest.

    `beside`: bytes of what stands beside each thumbnail.
    """
    tried = rows[np.linspace(0, len(rows) - 1, min(_TRIED, len(rows))).astype(np.int64)]
    for size in SIZES:
        mean = sum(len(each) for each in thumbnails(split, tried, size)) / max(1, len(tried))
        if (mean + beside) * len(rows) <= budget:
            return size
    return SIZES[-1]


def thumbnails(split: Split, rows: npt.NDArray[np.int64], size: Size) -> Iterator[str]:
    """A thumbnail of each row. Raises `DataError` for images that do not decode."""
    file = map_file(split)
    for row in rows.tolist():
        yield thumbnail(decode_row(split, file, row), size)


def picture_of(split: Split, row: int) -> str:
    """The thumbnail of one image. Raises `DataError` where it does not decode."""
    return next(thumbnails(split, np.array([row]), SIZES[1]))
