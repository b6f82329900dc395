"""Augmentation: gather rows, pad with black, crop, flip, normalise; uint8 images in, network input out.

It comes after every loader, so that the batch does not depend on which loader is used, and draws from
Philox, so that it does not depend on the batch a sample is in either. A 32 x 32 image costs 3 KB read and
3 KB (uint8), 6 KB (bfloat16) or 12 KB (float32) written, next to no arithmetic: all implementations are bound
by memory. Photos may instead be cut at random size and ratio and resized (kind "resized" of a `Crop`): four reads
of a byte and ten operations for each number, the bytes of an image read once from memory.

The reference stands first and runs on every device; its windows are in `padded_crop` and `resized_crop`. The CPU uses
the twin `fastdrpl.kernels.cpu.augment`, a GPU `fastdrpl.kernels.gpu.augment`, with the same crops bit for bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdrpl.kernels.augment_checks import FLOATS, check_augment, check_centre, check_padded
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.dispatch import choose
from fastdrpl.kernels.padded_crop import centre_window, crop_window, gather_crops
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.resized_crop import (
    AREA_LOWEST,
    AREA_RANGE,
    HALF_LOG_RATIO,
    LARGEST_RESIZED,
    ONE,
    SERIES,
    SIDE_UNIT,
    TRIES,
    TRY_SHIFT,
    exponential,
    gather_resized,
    resized_window,
    source_place,
)
from fastdrpl.kernels.streams import words_on

__all__ = [
    "AREA_LOWEST",
    "AREA_RANGE",
    "FLOATS",
    "HALF_LOG_RATIO",
    "LARGEST_RESIZED",
    "ONE",
    "SERIES",
    "SIDE_UNIT",
    "TRIES",
    "TRY_SHIFT",
    "Crop",
    "augment",
    "augment_reference",
    "augment_resized",
    "augment_uint8",
    "augment_uint8_reference",
    "centre",
    "centre_reference",
    "centre_window",
    "crop_window",
    "exponential",
    "gather_crops",
    "gather_resized",
    "normalise",
    "resized_window",
    "source_place",
]

# --- the reference ---


def normalise(
    crops: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """(pixel / 255 - mean) / std per channel: (B, H, W, 3) in 0..255 -> (B, 3, H, W); the arithmetic is in float32."""
    # One channel at a time: a tensor of means would be a copy to the device, which waits for it.
    channels = [(crops[..., c].to(torch.float32) / 255 - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, 1).to(dtype).contiguous(memory_format=memory_format)


def augment_reference(
    pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, crop: Crop
) -> Tensor:
    """`augment` in plain torch, on any device, nothing checked."""
    _, height, width, _ = pixels.shape
    if crop.kind == "resized":
        cut = resized_window(stream, index, height=height, width=width, flip=crop.flip)
        return _normalised(gather_resized(pixels, rows, cut, size=crop.size), crop)
    window = crop_window(
        stream, index, height=height, width=width, pad=crop.pad, size=crop.size, flip=crop.flip
    )
    return _normalised(gather_crops(pixels, rows, window, pad=crop.pad, size=crop.size), crop)


def augment_uint8_reference(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream | Tensor,
    pad: int,
    size: int,
    flip: bool,
    out: Tensor,
) -> None:
    """`augment_uint8` in plain torch, on any device, nothing checked; fills `out`."""
    _, height, width, _ = pixels.shape
    window = crop_window(stream, index, height=height, width=width, pad=pad, size=size, flip=flip)
    out.copy_(gather_crops(pixels, rows, window, pad=pad, size=size))


def centre_reference(pixels: Tensor, rows: Tensor, crop: Crop) -> Tensor:
    """`centre` in plain torch, on any device, nothing checked."""
    window = centre_window(rows, height=pixels.shape[1], width=pixels.shape[2], size=crop.size)
    return _normalised(gather_crops(pixels, rows, window, pad=0, size=crop.size), crop)


def _normalised(crops: Tensor, crop: Crop) -> Tensor:
    return normalise(crops, mean=crop.mean, std=crop.std, dtype=crop.dtype, memory_format=crop.memory_format)


# --- the public operations ---


def augment(pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, crop: Crop) -> Tensor:
    """Random crop of each image, random horizontal flip, normalisation: (B, 3, size, size).

    `pixels` uint8 (M, H, W, 3), maybe a strided view; `rows` int64 (B,) into it, repeats allowed; `index` int64
    (B,) sample index, which with `stream` keys the draw; the stream may be a tensor (`streams.stream_tensor`). All
    tensors on one device. A crop of kind "resized" is that of `resized_window`, with the pixels of `gather_resized`,
    not rounded to whole levels between resizing and normalisation; its `size` may exceed the image's.

    Raises TypeError or ValueError for what does not fit; rows out of range are found on the CPU only, as
    looking would halt a GPU (or when debugging, see `fastdrpl.kernels.dispatch`).
    """
    stream = check_augment(pixels, rows, index, stream, crop)
    implementation = choose("augment", pixels.device.type)
    if implementation == "triton":
        from fastdrpl.kernels.gpu import augment as on_gpu

        words = words_on(stream, pixels.device)
        return on_gpu.augment(pixels, rows, index, words, *crop.unpacked())
    if implementation == "numba" and crop.kind == "pad":
        from fastdrpl.kernels.cpu import augment as on_cpu  # compiles: only where it is used

        return on_cpu.augment(pixels, rows, index, stream, crop)
    return augment_reference(pixels, rows, index, stream, crop)


def augment_resized(
    pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, crop: Crop
) -> Tensor:
    """`augment` of a crop of kind "resized"; ValueError for another kind."""
    if crop.kind != "resized":
        raise ValueError(f"kind of a crop: got {crop.kind!r}, want 'resized'")
    return augment(pixels, rows, index, stream, crop)


def augment_uint8(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream | Tensor,
    *,
    pad: int,
    size: int,
    flip: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Padded crops of `augment` before normalisation: uint8 (B, size, size, 3), written to `out` if given."""
    stream = check_padded(pixels, rows, index, stream, pad, size)
    shape = (len(rows), size, size, 3)
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8, device=pixels.device)
    elif (
        out.shape != shape
        or out.dtype != torch.uint8
        or not out.is_contiguous()
        or out.device != pixels.device
    ):
        raise ValueError(
            f"out: got {out.dtype} {tuple(out.shape)} on {out.device}, want contiguous uint8 {shape} on {pixels.device}"
        )
    implementation = choose("augment", pixels.device.type)
    if implementation == "triton":
        from fastdrpl.kernels.gpu import augment as on_gpu

        words = words_on(stream, pixels.device)
        on_gpu.augment_uint8(pixels, rows, index, words, pad, size, flip, out)
    elif implementation == "numba":
        from fastdrpl.kernels.cpu import augment as on_cpu

        on_cpu.augment_uint8(pixels, rows, index, stream, pad=pad, size=size, flip=flip, out=out)
    else:
        augment_uint8_reference(pixels, rows, index, stream, pad, size, flip, out)
    return out


def centre(pixels: Tensor, rows: Tensor, crop: Crop) -> Tensor:
    """Centre crop and normalisation, nothing random: (B, 3, size, size). Arguments and errors as `augment`.

    Kind, padding and flip of the crop play no part, so that tests can take the crop of training.
    """
    check_centre(pixels, rows, crop)
    implementation = choose("augment", pixels.device.type)
    if implementation == "triton":
        from fastdrpl.kernels.gpu import augment as on_gpu

        _, _, size, _, *output = crop.unpacked()
        return on_gpu.centre(pixels, rows, size, *output)
    if implementation == "numba":
        from fastdrpl.kernels.cpu import augment as on_cpu

        return on_cpu.centre(pixels, rows, crop)
    return centre_reference(pixels, rows, crop)
