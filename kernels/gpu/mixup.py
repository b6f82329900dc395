"""The Triton twin of `fastdrpl.kernels.mixup.augment_pair`: every sample beside its mixture with another, in one pass.

A program makes the same rows of two crops, its own and the partner's, each drawn by its own sample: so the partner's
crop is never read back from memory, and no program waits for another.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels import mixup as reference
from fastdrpl.kernels.crop import pack_crop
from fastdrpl.kernels.gpu.augment import (
    CROPS,
    NUMBERS,
    blocks_of,
    draw_window,
    empty_output,
    of_channel,
    place_columns,
    read_tile,
    scale_and_shift,
    write_tile,
)
from fastdrpl.kernels.gpu.launch import register, wrap_triton


@triton.jit
def augment_pair_kernel(
    pixels,
    rows,
    index,
    stream,
    partner,
    coefficient,
    plain,
    mixed,
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
    CHANNELS_LAST: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """BLOCK_Y rows of one crop and of its mixture with the partner's; mixed in float32, then converted."""
    blocks: tl.constexpr = (SIZE + BLOCK_Y - 1) // BLOCK_Y
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK_Y
    other = tl.load(partner + sample)
    image = pixels + tl.load(rows + sample) * stride_image
    other_image = pixels + tl.load(rows + other) * stride_image
    window = draw_window(stream, tl.load(index + sample), height, width, pad, SIZE, CROP, FLIP)
    other_window = draw_window(stream, tl.load(index + other), height, width, pad, SIZE, CROP, FLIP)
    own_part = tl.load(coefficient)
    start = sample * (3 * SIZE * SIZE)
    for column in range(0, 3 * SIZE, BLOCK_COLUMNS):
        x, c = place_columns(column, BLOCK_COLUMNS)
        scale, shift = of_channel(c, scale0, scale1, scale2), of_channel(c, shift0, shift1, shift2)
        own = read_tile(
            image, window, height, width, stride_x, stride_c, first, x, c, SIZE, CROP, FLIP, STRIDE_Y, BLOCK_Y
        )
        others = read_tile(
            other_image,
            other_window,
            height,
            width,
            stride_x,
            stride_c,
            first,
            x,
            c,
            SIZE,
            CROP,
            FLIP,
            STRIDE_Y,
            BLOCK_Y,
        )
        own = own.to(tl.float32) * scale + shift
        others = others.to(tl.float32) * scale + shift
        write_tile(plain + start, own, first, x, c, SIZE, CHANNELS_LAST, BLOCK_Y)
        mixture = others + own_part * (own - others)
        write_tile(mixed + start, mixture, first, x, c, SIZE, CHANNELS_LAST, BLOCK_Y)


def launch_augment_pair(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Tensor,
    partner: Tensor,
    coefficient: Tensor,
    kind: str,
    pad: int,
    size: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """`augment_pair` of a crop as `Crop.unpacked` gives it; `stream` as `stream_tensor` does."""
    crop = pack_crop(kind, pad, size, flip, mean, std, dtype, channels_last)
    batch = rows.shape[0]
    plain, mixed = empty_output(pixels, rows, crop), empty_output(pixels, rows, crop)
    if batch == 0:
        return plain, mixed
    blocks = blocks_of(size, batch, NUMBERS[kind] // 2)
    wrap_triton(augment_pair_kernel)[(batch * blocks.programs,)](
        pixels,
        rows.contiguous(),
        index.contiguous(),
        stream,
        partner.contiguous(),
        coefficient,
        plain,
        mixed,
        pixels.stride(0),
        pixels.stride(2),
        pixels.stride(3),
        pixels.shape[1],
        pixels.shape[2],
        pad,
        *scale_and_shift(crop),
        SIZE=size,
        CROP=CROPS[kind],
        FLIP=flip,
        CHANNELS_LAST=channels_last,
        STRIDE_Y=pixels.stride(1),
        BLOCK_Y=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        num_warps=1,
    )
    return plain, mixed


def _augment_pair(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Tensor,
    partner: Tensor,
    coefficient: Tensor,
    kind: str,
    pad: int,
    size: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    crop = pack_crop(kind, pad, size, flip, mean, std, dtype, channels_last)
    return reference.augment_pair_reference(pixels, rows, index, stream, partner, coefficient, crop)


augment_pair = register("augment_pair", _augment_pair)(launch_augment_pair)
