"""Pixels for figures and probes: rows of a prepared split, without a loader."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import check_source_rows, decode_row, map_file

Pixels = npt.NDArray[np.uint8]


def pixels_of(split: Split, rows: npt.NDArray[np.int64], batch: int = 256) -> Iterator[Pixels]:
    """The images of rows (n,) as stored, batch after batch: (b, H, W, 3). Raises DataError for a damaged file."""
    check_source_rows(split, rows)
    file = map_file(split)
    for start in range(0, len(rows), batch):
        yield np.stack([decode_row(split, file, int(row)) for row in rows[start : start + batch]])


def show_picture(place: object, pixels: Pixels) -> None:
    """Draw an image (H, W, 3) without axes around it."""
    place.imshow(pixels)  # type: ignore[attr-defined]
    place.set_xticks([])  # type: ignore[attr-defined]
    place.set_yticks([])  # type: ignore[attr-defined]
