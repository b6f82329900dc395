"""The mark of an image: 64 bits that near copies share, how much it varies, and how large it was.

The 64 bits are the signs of the lowest frequencies of a cosine transform (of the green channel, on a grid of 16 x 16
means): about balanced and independent on photos, and the same after a change of brightness, contrast or size. Computed
while an image is written, so that no image is read twice.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from types import TracebackType

import numpy as np

from fastdrpl.loaders.sources.source import Piece

MARKS_VERSION = 1  # raise it when the same image gets another mark
MARK = np.dtype([("look", "<u8"), ("contrast", "<f2"), ("width", "<u2"), ("height", "<u2")])
# look: the 64 bits. contrast: in levels of 255, at most the standard deviation of the green channel.
# width, height: pixels of the original file; 0 where there was none.

_GRID = 16
_HEIGHT = 15  # of a wave, in whole numbers: 256 means of 0..255 times 15 * 15 add up exactly in float32
_BEHIND = 8  # pieces that may wait for their marks: what is held of them stays bounded


def mark_images(images: np.ndarray, sizes: Sequence[tuple[int, int]] = ()) -> np.ndarray:
    """The marks of (n, height, width, 3) uint8 images: (n,) MARK. `sizes`: (width, height) of each original file."""
    marks = np.zeros(len(images), MARK)
    waves = _grid(images[..., 1]).reshape(len(images), -1) @ _waves()
    bits = np.packbits(waves > 0, axis=1, bitorder="little")
    marks["look"] = np.ascontiguousarray(bits).view("<u8").ravel()
    marks["contrast"] = np.abs(waves, out=waves).max(1) / (_HEIGHT * _HEIGHT * _GRID * _GRID)
    if len(sizes):
        marks["width"], marks["height"] = np.minimum(np.array(sizes), (1 << 16) - 1).T
    return marks


class Marker:
    """Marks pieces of images on a thread of its own, in their order, going on behind `before`."""

    def __init__(self, before: np.ndarray) -> None:
        self._done = [before]
        self._waiting: deque[Future[np.ndarray]] = deque()
        self._thread = ThreadPoolExecutor(1)

    def add(self, piece: Piece) -> None:
        """The next images, which must not change afterwards. Those that come with marks keep them."""
        if piece.marks is not None:
            self._collect()
            self._done.append(piece.marks)
            return
        if isinstance(piece.images, list):
            raise TypeError("JPEG files without marks: they are made of pixels")
        self._waiting.append(self._thread.submit(mark_images, piece.images))
        while len(self._waiting) > _BEHIND:
            self._done.append(self._waiting.popleft().result())

    def marks(self) -> np.ndarray:
        """Of all images so far: (rows,) MARK."""
        self._collect()
        self._done = [np.concatenate(self._done)]
        return self._done[0]

    def _collect(self) -> None:
        while self._waiting:
            self._done.append(self._waiting.popleft().result())

    def __enter__(self) -> "Marker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


@cache
def shrink_weights(size: int, cells: int) -> np.ndarray:
    """(cells, size) float32: row k averages the pixels that lie in the k-th of `cells` equal parts of a side."""
    edges = np.linspace(0, size, cells + 1)
    pixel = np.arange(size)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(inside, 0) * cells / size).astype(np.float32)


def _grid(grey: np.ndarray) -> np.ndarray:
    """(n, height, width) uint8 -> (n, 16, 16) float32 means, rounded to whole numbers."""
    n, height, width = grey.shape
    if width % (2 * _GRID) or height % _GRID:
        down, across = shrink_weights(height, _GRID), shrink_weights(width, _GRID)
        return np.rint(down @ grey.astype(np.float32) @ across.T)
    if grey.strides[-1] != 1:
        grey = np.ascontiguousarray(grey)
    pairs = grey.view("<u2")  # two pixels beside each other
    sums = pairs & np.uint16(255)
    sums += pairs >> np.uint16(8)
    rows, columns = height // _GRID, width // (2 * _GRID)
    sums = sums.reshape(n, _GRID, rows, width // 2)
    total: np.ndarray = sums[:, :, 0].astype(np.uint16 if rows * columns <= 128 else np.uint32)
    for row in range(1, rows):
        total += sums[:, :, row]
    if columns > 1:
        total = total.reshape(n, _GRID, _GRID, columns).sum(3, dtype=total.dtype)
    total += rows * columns
    total //= 2 * rows * columns
    return total.astype(np.float32)


@cache
def _waves() -> np.ndarray:
    """(256, 64) float32 of whole numbers: the lowest frequencies but the mean; each adds up to 0."""
    phase = np.pi * np.outer(np.arange(_GRID), np.arange(_GRID) + 0.5) / _GRID
    wave = np.rint(_HEIGHT * np.cos(phase))
    frequencies = sorted(((i, j) for i in range(9) for j in range(9)), key=lambda f: (f[0] + f[1], f[0]))[
        1:65
    ]
    return np.stack([np.outer(wave[i], wave[j]).ravel() for i, j in frequencies], 1).astype(np.float32)
