"""What augmentation cannot take: TypeError or ValueError that says what was seen and what is wanted."""

import math

import torch
from torch import Tensor

from fastdrpl.kernels.crop import KINDS, Crop
from fastdrpl.kernels.dispatch import check_range
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.resized_crop import LARGEST_RESIZED, TRY_SHIFT
from fastdrpl.kernels.streams import check_stream

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_augment(
    pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, crop: Crop
) -> Stream | Tensor:
    """The stream as the device of the pixels takes it (`check_stream`), if `augment` can take the arguments."""
    if crop.kind not in KINDS:
        raise ValueError(f"kind of a crop: got {crop.kind!r}, want 'pad' or 'resized'")
    if crop.kind == "resized":
        stream = _check_resized(pixels, rows, index, stream, crop)
    else:
        stream = check_padded(pixels, rows, index, stream, crop.pad, crop.size)
    _check_output(pixels, crop)
    return stream


def check_padded(
    pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, pad: int, size: int
) -> Stream | Tensor:
    """As `check_augment`, of a padded crop before its normalisation."""
    _check_images(pixels, rows)
    _check_size(pixels, pad, size)
    return _check_draw(rows, index, stream)


def check_centre(pixels: Tensor, rows: Tensor, crop: Crop) -> None:
    """Whether `centre` can take the arguments; kind, padding and flip of the crop play no part."""
    _check_images(pixels, rows)
    _check_size(pixels, 0, crop.size)
    _check_output(pixels, crop)


def _check_resized(
    pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream | Tensor, crop: Crop
) -> Stream | Tensor:
    _check_images(pixels, rows)
    if crop.pad:
        raise ValueError(f"pad: got {crop.pad} for a resized crop, which has no padding")
    sides = pixels.shape[1:3]
    if not 1 <= crop.size <= LARGEST_RESIZED or max(sides) > LARGEST_RESIZED or 0 in sides:
        raise ValueError(
            f"size: got {crop.size} from images of {tuple(sides)}, want 1..{LARGEST_RESIZED} for both"
        )
    stream = _check_draw(rows, index, stream)
    if isinstance(stream, Tensor):
        check_range("purpose_view", stream[4:], 1 << TRY_SHIFT)
    elif stream.purpose_view >> TRY_SHIFT:
        raise ValueError(f"purpose_view: got {stream.purpose_view}, want less than 2**{TRY_SHIFT}")
    return stream


def _check_images(pixels: Tensor, rows: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise TypeError(f"pixels: got {pixels.dtype} {tuple(pixels.shape)}, want uint8 (M, H, W, 3)")
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise TypeError(f"rows: got {rows.dtype} {tuple(rows.shape)}, want int64 (B,)")
    if rows.device != pixels.device:
        raise ValueError(f"rows are on {rows.device}, pixels on {pixels.device}: want one device")
    if len(rows) and not len(pixels):
        raise ValueError(f"rows: got {len(rows)} of them into pixels without images")
    if 32 * pixels.stride(1) >= 1 << 31:  # offsets within an image have 32 bits
        raise ValueError(
            f"pixels: got {pixels.stride(1)} bytes from row to row of an image, want less than 2**26"
        )
    check_range("rows", rows, len(pixels))


def _check_size(pixels: Tensor, pad: int, size: int) -> None:
    if pad < 0:
        raise ValueError(f"pad: got {pad}, want at least 0")
    side = min(pixels.shape[1:3]) + 2 * pad
    if not 1 <= size <= side:
        raise ValueError(
            f"size: got {size}, want 1..{side} for images of {tuple(pixels.shape[1:3])} padded by {pad}"
        )


def _check_draw(rows: Tensor, index: Tensor, stream: Stream | Tensor) -> Stream | Tensor:
    if index.dtype != torch.int64 or index.shape != rows.shape:
        raise TypeError(f"index: got {index.dtype} {tuple(index.shape)}, want int64 {tuple(rows.shape)}")
    if index.device != rows.device:
        raise ValueError(f"index is on {index.device}, rows on {rows.device}: want one device")
    check_range("index", index, 1 << 32)
    return check_stream(stream, rows.device)


def _check_output(pixels: Tensor, crop: Crop) -> None:
    if len(crop.mean) != 3 or not all(math.isfinite(value) for value in crop.mean):
        raise ValueError(f"mean: got {crop.mean}, want three finite numbers")
    if len(crop.std) != 3 or not all(math.isfinite(value) and value > 0 for value in crop.std):
        raise ValueError(f"std: got {crop.std}, want three finite numbers above 0")
    if crop.dtype not in FLOATS:
        raise TypeError(f"dtype: got {crop.dtype}, want one of {', '.join(map(str, FLOATS))}")
    if crop.memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format: got {crop.memory_format}, want contiguous_format or channels_last")
    if crop.channels_last and pixels.device.type != "cuda":
        raise ValueError(f"memory_format: channels_last is for CUDA, and the pixels are on {pixels.device}")
