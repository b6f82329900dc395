"""A prepared dataset, opened: the manifest `dataset.json` and one compiled file per split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Split:
    """One compiled file: where the bytes of each row are, and what the file says of them.

    A row is a position in the file; rows never shift. `label` is the label as downloaded.
    """

    name: str  # "train" or "test"
    path: Path  # the .beton file
    height: int  # pixels
    width: int
    store: Literal["raw", "jpeg"]  # raw: height*width*3 bytes, row-major RGB; jpeg: one JPEG file
    label: np.ndarray  # (rows,) int64
    valid: np.ndarray  # (rows,) bool: False for quarantined rows, which hold zeros
    offset: np.ndarray  # (rows,) int64: first byte of the image in the file
    nbytes: np.ndarray  # (rows,) int64
    page_size: int  # bytes, a power of two; no image crosses a page

    def __len__(self) -> int:
        return len(self.label)
