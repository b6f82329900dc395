"""The stored images of a run as image files, one by one: memory does not grow with the data."""

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row, map_file


@dataclass(frozen=True)
class ImageFiles:
    """The images of a split by row. Raw pixels become PNG; a JPEG is the one that is stored: no pixel changes."""

    split: Split

    @property
    def ending(self) -> str:
        return ".jpg" if self.split.store == "jpeg" else ".png"

    @property
    def bytes_each(self) -> int:
        """At most about so many bytes is one image."""
        return self.split.height * self.split.width * 3

    def __getitem__(self, row: int) -> bytes:
        """Raises `DataError` for a row that does not decode."""
        pixels = decode_row(self.split, self._bytes, row)
        if self.split.store == "jpeg" and self.split.valid[row]:
            start = int(self.split.offset[row])
            return self._bytes[start : start + int(self.split.nbytes[row])].tobytes()
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", compress_level=1)
        return out.getvalue()

    @cached_property
    def _bytes(self) -> np.ndarray:
        return map_file(self.split)
