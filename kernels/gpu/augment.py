"""The Triton twin of `fastdrpl.kernels.augment`: gather, crop, flip, normalise and convert in one pass.

A program makes a few rows of one crop: it draws the window of its sample, then walks along the rows in blocks. What
depends on the row or on the column alone (edges of the image, channel, scale) is computed once for either, so that
little but the load, one multiplication and the store remains for each number.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels import augment as reference
from fastdrpl.kernels import resized_crop
from fastdrpl.kernels.crop import Crop, pack_crop
from fastdrpl.kernels.gpu.integers import to_int32, to_int64
from fastdrpl.kernels.gpu.launch import register, wrap_triton
from fastdrpl.kernels.gpu.philox import below, draw_words

CENTRE, PADDED, RESIZED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
CROPS = {"centre": 0, "pad": 1, "resized": 2}
WARP = 32
# That a thread holds at a time; more need more registers than it has.
NUMBERS = {"centre": 32, "pad": 32, "resized": 8}
FEW_PROGRAMS = 2048  # with fewer a GPU is not full
NO_MEAN, NO_STD = [0.0] * 3, [1.0] * 3  # of crops that stay bytes

# The constants of a random resized crop, which are explained beside the reference.
TRIES, TRY_SHIFT = tl.constexpr(resized_crop.TRIES), tl.constexpr(resized_crop.TRY_SHIFT)
AREA_LOWEST, AREA_RANGE = tl.constexpr(resized_crop.AREA_LOWEST), tl.constexpr(resized_crop.AREA_RANGE)
HALF_LOG_RATIO, SIDE_UNIT = tl.constexpr(resized_crop.HALF_LOG_RATIO), tl.constexpr(resized_crop.SIDE_UNIT)
SERIES_0, SERIES_1, SERIES_2, SERIES_3, SERIES_4, SERIES_5, SERIES_6 = map(tl.constexpr, resized_crop.SERIES)


@triton.jit
def exponential(x):
    """exp(x / 2**32) * 2**32, int64; as the reference's."""
    value = SERIES_5 + ((x * SERIES_6) >> 32)
    value = SERIES_4 + ((x * value) >> 32)
    value = SERIES_3 + ((x * value) >> 32)
    value = SERIES_2 + ((x * value) >> 32)
    value = SERIES_1 + ((x * value) >> 32)
    return SERIES_0 + ((x * value) >> 32)


@triton.jit
def resized_window(stream, index, height, width):
    """Top, left, height and width of a random resized crop, int32; as the reference's."""
    h, w = to_int32(height), to_int32(width)
    if 4 * width < 3 * height:
        h = (8 * width + 3) // 6
    if 3 * width > 4 * height:
        w = (8 * height + 3) // 6
    top, left = (height - h) // 2, (width - w) // 2
    area = to_int64(height) * width
    number = index * 0
    while number < TRIES:
        number += 1
        w0, w1, w2, w3 = draw_words(stream, index, number << TRY_SHIFT)
        share = (w0 >> 8).to(tl.int64) * AREA_RANGE + AREA_LOWEST
        root = tl.sqrt((area * share).to(tl.float64)).to(tl.int64)
        x = (((w1 >> 8).to(tl.int64) * 2 - (1 << 24)) * HALF_LOG_RATIO) >> 24
        wide = (root * exponential(x) + SIDE_UNIT // 2) // SIDE_UNIT
        high = (root * exponential(-x) + SIDE_UNIT // 2) // SIDE_UNIT
        if (wide > 0) & (wide <= width) & (high > 0) & (high <= height):
            h, w = high.to(tl.int32), wide.to(tl.int32)
            top, left = below(w2, height - h + 1), below(w3, width - w + 1)
            number += TRIES
    return top, left, h, w


@triton.jit
def draw_window(
    stream, index, height, width, pad, SIZE: tl.constexpr, CROP: tl.constexpr, FLIP: tl.constexpr
):
    """Where a sample is cut: top, left, height and width in the stored image (int32), and whether it is mirrored."""
    h, w, flipped = height, width, False
    if CROP == CENTRE:
        top, left = (height - SIZE) // 2, (width - SIZE) // 2
    else:
        w0, w1, w2, _ = draw_words(stream, index)
        if FLIP:
            flipped = w2 >> 31 == 1
        if CROP == PADDED:
            top = below(w0, height + 2 * pad - SIZE + 1) - pad
            left = below(w1, width + 2 * pad - SIZE + 1) - pad
        else:
            top, left, h, w = resized_window(stream, index, height, width)
    return top, left, h, w, flipped


@triton.jit
def source_place(target, length, SIZE: tl.constexpr):
    """Where a cut of some length is read for pixels of the output; as the reference's."""
    numerator = tl.maximum((2 * target + 1) * length - SIZE, 0)
    lower = numerator // (2 * SIZE)
    between = (numerator % (2 * SIZE)).to(tl.float32) * (1.0 / (2 * SIZE))
    return lower, tl.minimum(lower + 1, length - 1), between


@triton.jit
def read_tile(
    image,
    window,
    height,
    width,
    stride_x,
    stride_c,
    first,
    x,
    c,
    SIZE: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    BLOCK_Y: tl.constexpr,
):
    """A crop from row `first` on, at columns (`x`, channel `c`), in 0..255: uint8, or float32 where it is resized."""
    top, left, h, w, flipped = window
    x_read = tl.where(flipped, SIZE - 1 - x, x) if FLIP else x
    channel = c.to(tl.int64) * stride_c
    if CROP == RESIZED:
        y = first + tl.arange(0, BLOCK_Y)
        y0, y1, down = source_place(y, h, SIZE)
        x0, x1, right = source_place(x_read, w, SIZE)
        row0 = image + (top + y0).to(tl.int64)[:, None] * STRIDE_Y
        row1 = image + (top + y1).to(tl.int64)[:, None] * STRIDE_Y
        column0 = ((left + x0).to(tl.int64) * stride_x + channel)[None, :]
        column1 = ((left + x1).to(tl.int64) * stride_x + channel)[None, :]
        mask = (y < SIZE)[:, None] & (x < SIZE)[None, :]
        near = tl.load(row0 + column0, mask=mask, other=0).to(tl.float32)
        far = tl.load(row0 + column1, mask=mask, other=0).to(tl.float32)
        above = near * (1.0 - right)[None, :] + far * right[None, :]
        near = tl.load(row1 + column0, mask=mask, other=0).to(tl.float32)
        far = tl.load(row1 + column1, mask=mask, other=0).to(tl.float32)
        beneath = near * (1.0 - right)[None, :] + far * right[None, :]
        return above * (1.0 - down)[:, None] + beneath * down[:, None]
    else:
        x_read += left
        # Written so that for each number one comparison and no address remains: rows are constants apart, and a
        # column outside the image has no rows. Below 0 is beyond any limit when the sign is not looked at. What lies
        # in the image but beyond the crop is read and not written.
        limit = tl.where((x_read >= 0) & (x_read < width), height, 0).to(tl.uint32)
        y_read = (top + first + tl.arange(0, BLOCK_Y)).to(tl.uint32)
        origin = image + (top + first).to(tl.int64) * STRIDE_Y
        columns = (origin + (x_read.to(tl.int64) * stride_x + channel))[None, :]
        rows = tl.arange(0, BLOCK_Y)[:, None] * STRIDE_Y
        return tl.load(columns + rows, mask=y_read[:, None] < limit[None, :], other=0)


@triton.jit
def place_columns(column, BLOCK_COLUMNS: tl.constexpr):
    """Which pixel of a row, and which channel, the numbers from `column` on are."""
    columns = column + tl.arange(0, BLOCK_COLUMNS)
    return columns // 3, columns % 3


@triton.jit
def of_channel(c, first, second, third):
    """For each column the number of its channel, as a row (1, columns)."""
    return tl.where(c == 0, first, tl.where(c == 1, second, third))[None, :]


@triton.jit
def write_tile(
    start,
    tile,
    first,
    x,
    c,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_Y: tl.constexpr,
):
    """Write what `read_tile` gave for the same rows and columns to the image that begins at pointer `start`."""
    STRIDE_Y: tl.constexpr = 3 * SIZE if CHANNELS_LAST else SIZE
    columns = x * 3 + c if CHANNELS_LAST else c.to(tl.int64) * (SIZE * SIZE) + x
    y = tl.arange(0, BLOCK_Y)
    places = (start + to_int64(first) * STRIDE_Y + columns)[None, :] + y[:, None] * STRIDE_Y
    mask = (y < SIZE - first)[:, None] & (x < SIZE)[None, :]
    tl.store(places, tile.to(start.dtype.element_ty), mask=mask)


@triton.jit
def augment_kernel(
    pixels,
    rows,
    index,
    stream,
    out,
    stride_image,
    stride_x,
    stride_c,
    height,
    width,
    pad,
    scale0,
    scale1,
    scale2,
    shift0,
    shift1,
    shift2,
    SIZE: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    NORMALISE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """BLOCK_Y rows of one crop: uint8, or pixel * scale + shift by channel in the type of `out`."""
    blocks: tl.constexpr = (SIZE + BLOCK_Y - 1) // BLOCK_Y
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK_Y
    image = pixels + tl.load(rows + sample) * stride_image
    window = draw_window(stream, tl.load(index + sample), height, width, pad, SIZE, CROP, FLIP)
    start = out + sample * (3 * SIZE * SIZE)
    for column in range(0, 3 * SIZE, BLOCK_COLUMNS):
        x, c = place_columns(column, BLOCK_COLUMNS)
        tile = read_tile(
            image, window, height, width, stride_x, stride_c, first, x, c, SIZE, CROP, FLIP, STRIDE_Y, BLOCK_Y
        )
        if NORMALISE:
            scale, shift = of_channel(c, scale0, scale1, scale2), of_channel(c, shift0, shift1, shift2)
            tile = tile.to(tl.float32) * scale + shift
        write_tile(start, tile, first, x, c, SIZE, CHANNELS_LAST, BLOCK_Y)


class Blocks(NamedTuple):
    """How crops are dealt to programs."""

    rows: int  # of a crop, a program
    columns: int  # numbers along a row at a time
    programs: int  # a crop


def blocks_of(size: int, batch: int, numbers: int) -> Blocks:
    """A warp makes `numbers` rows of a crop, so that the draw and the edges cost little beside the pixels.

    Where that would leave a GPU half empty, more programs with fewer rows and more of a row at a time: they end sooner.
    """
    rows, columns = min(numbers, triton.next_power_of_2(size)), WARP
    if batch * triton.cdiv(size, rows) < FEW_PROGRAMS:
        rows = min(8, rows)
        columns = min(4 * WARP, WARP * numbers // rows)
    return Blocks(rows, columns, triton.cdiv(size, rows))


def scale_and_shift(crop: Crop) -> list[float]:
    """(pixel / 255 - mean) / std as pixel * scale + shift: three scales, then three shifts."""
    mean, std = crop.mean, crop.std
    return [1 / (255 * s) for s in std] + [-m / s for m, s in zip(mean, std, strict=True)]


def empty_output(pixels: Tensor, rows: Tensor, crop: Crop) -> Tensor:
    """Memory for the crops of the rows: (B, 3, size, size)."""
    shape = (rows.shape[0], 3, crop.size, crop.size)
    return torch.empty(shape, dtype=crop.dtype, device=pixels.device, memory_format=crop.memory_format)


def launch_augment(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Tensor,
    kind: str,
    pad: int,
    size: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`augment` of a crop as `Crop.unpacked` gives it; `stream` as `stream_tensor` does."""
    crop = pack_crop(kind, pad, size, flip, mean, std, dtype, channels_last)
    out = empty_output(pixels, rows, crop)
    _start(pixels, rows, index, stream, out, crop, crop.kind, scale_and_shift(crop))
    return out


def launch_augment_uint8(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Tensor,
    pad: int,
    size: int,
    flip: bool,
    out: Tensor,
) -> None:
    """`augment_uint8`: fills `out`."""
    crop = pack_crop("pad", pad, size, flip, NO_MEAN, NO_STD, torch.uint8, True)
    _start(pixels, rows, index, stream, out, crop, "pad", None)


def launch_centre(
    pixels: Tensor,
    rows: Tensor,
    size: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`centre` of a crop's numbers."""
    crop = pack_crop("pad", 0, size, False, mean, std, dtype, channels_last)
    out = empty_output(pixels, rows, crop)
    _start(pixels, rows, rows, rows, out, crop, "centre", scale_and_shift(crop))
    return out


def _start(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Tensor,
    out: Tensor,
    crop: Crop,
    place: str,
    colours: list[float] | None,
) -> None:
    """Launch for a crop that lies where `place` (of `CROPS`) says; without colours the pixels stay bytes."""
    batch = rows.shape[0]
    if batch == 0:
        return
    blocks = blocks_of(crop.size, batch, NUMBERS[place])
    wrap_triton(augment_kernel)[(batch * blocks.programs,)](
        pixels,
        rows.contiguous(),
        index.contiguous(),
        stream,
        out,
        pixels.stride(0),
        pixels.stride(2),
        pixels.stride(3),
        pixels.shape[1],
        pixels.shape[2],
        crop.pad,
        *(colours or [1.0] * 6),
        SIZE=crop.size,
        CROP=CROPS[place],
        FLIP=crop.flip,
        NORMALISE=colours is not None,
        CHANNELS_LAST=crop.channels_last,
        STRIDE_Y=pixels.stride(1),
        BLOCK_Y=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        num_warps=1,
    )


# --- the operations, with their references on the CPU ---


def _augment(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Tensor,
    kind: str,
    pad: int,
    size: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    crop = pack_crop(kind, pad, size, flip, mean, std, dtype, channels_last)
    return reference.augment_reference(pixels, rows, index, stream, crop)


def _centre(
    pixels: Tensor,
    rows: Tensor,
    size: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    crop = pack_crop("pad", 0, size, False, mean, std, dtype, channels_last)
    return reference.centre_reference(pixels, rows, crop)


augment = register("augment", _augment)(launch_augment)
augment_uint8 = register("augment_uint8", reference.augment_uint8_reference, mutates=("out",))(
    launch_augment_uint8
)
centre = register("centre", _centre)(launch_centre)
