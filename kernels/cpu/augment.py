"""The numba twin of `fastdrpl.kernels.augment`: one pass from stored bytes to crops, random draws included.

Arguments are those of the public operations, which have checked them; here only what needs a look at the values
is checked. Compiled loops count in uint64: signed indices would cost a test for "from the end" at each pixel.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fastdrpl.kernels.cpu.jit import PARALLEL_LOCK, jit
from fastdrpl.kernels.cpu.philox import philox_words, stream_words
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import stream_of

# Output in bytes from which threads are worth it: on cores that others use as well, waiting for a thread that is not
# running costs a time slice (8 ms with OpenMP), against 0.1 ms for a whole batch of 128 small images.
PARALLEL_BYTES = 8 << 20
U0, U1, U2, U3 = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
CHANNEL = np.uint64(256)  # entries of the lookup table per channel
HALF, LAST_BIT = np.uint64(32), np.uint64(31)

Geometry = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]  # stride, height, width, pad, size
Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]  # of a stream, see `stream_words`
Window = tuple[np.uint64, np.uint64, bool]  # top, left, flipped


@jit()
def draw_window(index: np.int64, stream: Words, geometry: Geometry, centred: bool, flip: bool) -> Window:
    """`crop_window` of one sample, or the centre."""
    _, height, width, pad, size = geometry
    if centred:
        return (height - size) // U2, (width - size) // U2, False
    w0, w1, w2, _ = philox_words(np.uint64(index), stream[0], stream[1], stream[2], stream[3], stream[4])
    top = (w0 * (height + U2 * pad - size + U1)) >> HALF
    left = (w1 * (width + U2 * pad - size + U1)) >> HALF
    return top, left, flip and (w2 >> LAST_BIT) == U1


@jit()
def inner_part(geometry: Geometry, window: Window) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """The part of a crop that lies in the image and not in the padding: y0, y1, x0, x1 before the flip."""
    _, height, width, pad, size = geometry
    top, left, _ = window
    y0 = min(pad - top if pad > top else U0, size)
    x0 = min(pad - left if pad > left else U0, size)
    y1 = max(min(size, height + pad - top if height + pad > top else U0), y0)
    x1 = max(min(size, width + pad - left if width + pad > left else U0), x0)
    return y0, y1, x0, x1


@jit()
def crop_uint8(
    flat: np.ndarray, row: np.int64, geometry: Geometry, window: Window, out: np.ndarray, target: np.uint64
) -> None:
    """One crop, (size, size, 3) uint8 from `out[target]` on."""
    stride, _, width, pad, size = geometry
    top, left, flipped = window
    y0, y1, x0, x1 = inner_part(geometry, window)
    if (y1 - y0) * (x1 - x0) < size * size:
        for k in range(size * size * U3):
            out[target + k] = 0
    n = x1 - x0
    for y in range(y0, y1):
        s = np.uint64(row) * stride + ((top + y - pad) * width + left + x0 - pad) * U3
        if flipped:
            t = target + (y * size + size - x1) * U3
            for k in range(n):
                a, b = t + k * U3, s + (n - U1 - k) * U3
                out[a], out[a + U1], out[a + U2] = flat[b], flat[b + U1], flat[b + U2]
        else:
            t = target + (y * size + x0) * U3
            for k in range(n * U3):
                out[t + k] = flat[s + k]


@jit()
def crop_float32(
    flat: np.ndarray,
    row: np.int64,
    geometry: Geometry,
    window: Window,
    table: np.ndarray,
    out: np.ndarray,
    target: np.uint64,
) -> None:
    """One crop, normalised by the lookup table (768,): (3, size, size) float32 from `out[target]` on."""
    stride, _, width, pad, size = geometry
    top, left, flipped = window
    y0, y1, x0, x1 = inner_part(geometry, window)
    plane = size * size
    if (y1 - y0) * (x1 - x0) < plane:
        for c in range(U3):
            for k in range(plane):
                out[target + c * plane + k] = table[c * CHANNEL]
    n = x1 - x0
    for y in range(y0, y1):
        s = np.uint64(row) * stride + ((top + y - pad) * width + left + x0 - pad) * U3
        for c in range(U3):
            if flipped:
                t = target + c * plane + y * size + size - U1 - x0
                for k in range(n):
                    out[t - k] = table[c * CHANNEL + np.uint64(flat[s + k * U3 + c])]
            else:
                t = target + c * plane + y * size + x0
                for k in range(n):
                    out[t + k] = table[c * CHANNEL + np.uint64(flat[s + k * U3 + c])]


# Serial and parallel twice over: one function compiled both ways would share a single entry of numba's cache.


@jit()
def fill_uint8_serial(
    flat: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    stream: Words,
    geometry: Geometry,
    flip: bool,
    out: np.ndarray,
) -> None:
    """Every crop of a batch, uint8, on one thread."""
    image = geometry[4] * geometry[4] * U3
    for b in range(len(rows)):
        window = draw_window(index[b], stream, geometry, False, flip)
        crop_uint8(flat, rows[b], geometry, window, out, np.uint64(b) * image)


@jit(parallel=True)
def fill_uint8_parallel(
    flat: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    stream: Words,
    geometry: Geometry,
    flip: bool,
    out: np.ndarray,
) -> None:
    """Every crop of a batch, uint8, on all threads."""
    image = geometry[4] * geometry[4] * U3
    for b in numba.prange(len(rows)):
        window = draw_window(index[b], stream, geometry, False, flip)
        crop_uint8(flat, rows[b], geometry, window, out, np.uint64(b) * image)


@jit()
def fill_float32_serial(
    flat: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    stream: Words,
    geometry: Geometry,
    centred: bool,
    flip: bool,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    """Every crop of a batch, normalised, on one thread."""
    image = geometry[4] * geometry[4] * U3
    for b in range(len(rows)):
        window = draw_window(index[b], stream, geometry, centred, flip)
        crop_float32(flat, rows[b], geometry, window, table, out, np.uint64(b) * image)


@jit(parallel=True)
def fill_float32_parallel(
    flat: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    stream: Words,
    geometry: Geometry,
    centred: bool,
    flip: bool,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    """Every crop of a batch, normalised, on all threads."""
    image = geometry[4] * geometry[4] * U3
    for b in numba.prange(len(rows)):
        window = draw_window(index[b], stream, geometry, centred, flip)
        crop_float32(flat, rows[b], geometry, window, table, out, np.uint64(b) * image)


@jit()
def find_outside(values: np.ndarray, limit: int) -> int:
    """Position of the first value outside [0, limit), or -1."""
    for i in range(len(values)):
        if values[i] < 0 or values[i] >= limit:
            return i
    return -1


def augment(pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, crop: Crop) -> Tensor:
    """As `fastdrpl.kernels.augment.augment`, of a padded crop: (B, 3, size, size), contiguous."""
    _check_range("index", index, 1 << 32)
    flat, places, geometry = _flatten(pixels, rows, crop.pad, crop.size)
    return _fill_float32(flat, places, index, stream_of(stream), geometry, False, crop)


def centre(pixels: Tensor, rows: Tensor, crop: Crop) -> Tensor:
    """As `fastdrpl.kernels.augment.centre`: (B, 3, size, size), contiguous."""
    flat, places, geometry = _flatten(pixels, rows, 0, crop.size)
    return _fill_float32(flat, places, rows, Stream(0), geometry, True, crop)


def augment_uint8(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream | Tensor,
    *,
    pad: int,
    size: int,
    flip: bool,
    out: Tensor,
) -> Tensor:
    """As `fastdrpl.kernels.augment.augment_uint8`; fills and returns `out`."""
    _check_range("index", index, 1 << 32)
    flat, places, geometry = _flatten(pixels, rows, pad, size)
    fill = _choose(fill_uint8_serial, fill_uint8_parallel, out)
    words, target = stream_words(stream_of(stream)), out.view(-1).numpy()
    fill(flat, places, index.contiguous().numpy(), words, geometry, flip, target)
    return out


@functools.lru_cache(maxsize=16)
def normalisation_table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(value / 255 - mean) / std for every value of every channel: float32 (768,), channel by channel."""
    value = np.arange(256) / 255
    table = (value - np.array(mean)[:, None]) / np.array(std)[:, None]
    return table.astype(np.float32).reshape(-1)


def _fill_float32(
    flat: np.ndarray,
    places: np.ndarray,
    index: Tensor,
    stream: Stream,
    geometry: Geometry,
    centred: bool,
    crop: Crop,
) -> Tensor:
    """Filled in float32 by the table, then converted to the type of the crop."""
    out = torch.empty((len(places), 3, crop.size, crop.size), dtype=torch.float32)
    fill = _choose(fill_float32_serial, fill_float32_parallel, out)
    words, table = stream_words(stream), normalisation_table(tuple(crop.mean), tuple(crop.std))
    target, flip = out.view(-1).numpy(), crop.flip and not centred
    fill(flat, places, index.contiguous().numpy(), words, geometry, centred, flip, table, target)
    return out.to(crop.dtype)


def _flatten(pixels: Tensor, rows: Tensor, pad: int, size: int) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """The pixels as plain bytes, each image's place among them in units of the stride, and the geometry."""
    count, height, width, _ = pixels.shape
    _check_range("rows", rows, count)
    if pixels.stride()[1:] != (width * 3, 3, 1):  # an odd layout: make the images of this batch plain
        pixels, rows = pixels[rows].contiguous(), torch.arange(len(rows))
        count = len(rows)
    stride = pixels.stride(0)
    length = (count - 1) * stride + height * width * 3 if count else 0
    flat = pixels.as_strided((length,), (1,)).numpy()
    geometry = tuple(np.uint64(number) for number in (stride, height, width, pad, size))
    return flat, rows.contiguous().numpy(), geometry  # type: ignore[return-value]  # five, as listed


def _choose(serial: Callable[..., Any], parallel: Callable[..., Any], out: Tensor) -> Callable[..., Any]:
    if out.nbytes < PARALLEL_BYTES or numba.get_num_threads() == 1:
        return serial

    def locked(*arguments: Any) -> None:
        with PARALLEL_LOCK:
            parallel(*arguments)

    return locked


def _check_range(name: str, values: Tensor, limit: int) -> None:
    position = find_outside(values.contiguous().numpy(), limit)
    if position >= 0:
        raise ValueError(f"{name}[{position}] is {int(values[position])}, want 0 <= {name} < {limit}")
