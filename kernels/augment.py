"""Augmentation: gather rows, pad with black, crop, flip, normalise; uint8 images in, network input out.

It comes after every loader, so that the batch does not depend on which loader is used, and draws from
Philox, so that it does not depend on the batch a sample is in either. A 32 x 32 image costs 3 KB read and
3 KB (uint8) or 12 KB (float32) written, next to no arithmetic: all implementations are bound by memory.

The reference stands first and runs on every device. The CPU uses the twin `fastdrpl.kernels.cpu.augment`,
with the same crops bit for bit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdrpl.kernels import philox
from fastdrpl.kernels.philox import Stream


def crop_window(
    stream: Stream, index: Tensor, *, height: int, width: int, pad: int, size: int, flip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each sample is cropped: (top, left, flipped), int64, int64 and bool (B,), in padded coordinates.

    `index`: int64 (B,) sample index. Word 0 draws top, word 1 left, word 2 the flip, each uniformly.
    """
    w0, w1, w2, _ = philox.words(stream, index)
    top = philox.integers(w0, height + 2 * pad - size + 1)
    left = philox.integers(w1, width + 2 * pad - size + 1)
    flipped = philox.integers(w2, 2) == 1 if flip else torch.zeros_like(w2, dtype=torch.bool)
    return top, left, flipped


def centre_window(rows: Tensor, *, height: int, width: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The window of a centre crop of each row, as `crop_window` gives it with `pad` 0."""
    top = torch.full_like(rows, (height - size) // 2)
    left = torch.full_like(rows, (width - size) // 2)
    return top, left, torch.zeros_like(rows, dtype=torch.bool)


def gather_crops(
    pixels: Tensor, rows: Tensor, window: tuple[Tensor, Tensor, Tensor], *, pad: int, size: int
) -> Tensor:
    """The crops as uint8 (B, size, size, 3); `window` as `crop_window` gives it."""
    top, left, flipped = window
    _, height, width, _ = pixels.shape
    along = torch.arange(size, device=rows.device)
    y = top[:, None] + along - pad  # (B, size), rows of the stored image
    x = left[:, None] + torch.where(flipped[:, None], size - 1 - along, along) - pad
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    return pixels[rows[:, None, None], y[:, :, None], x[:, None, :]] * inside[..., None]


def normalise(
    crops: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """(pixel / 255 - mean) / std per channel: uint8 (B, H, W, 3) -> (B, 3, H, W); the arithmetic is in float32."""
    # One channel at a time: a tensor of means would be a copy to the device, which waits for it.
    channels = [(crops[..., c].to(torch.float32) / 255 - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, 1).to(dtype).contiguous(memory_format=memory_format)


def augment(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream,
    *,
    pad: int,
    size: int,
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Random crop of the black-padded image, random horizontal flip, normalisation: (B, 3, size, size).

    `pixels` uint8 (M, H, W, 3), maybe a strided view; `rows` int64 (B,) into it, repeats allowed; `index` int64
    (B,) sample index, which with `stream` keys the draw; `pad` pixels on each side; `mean` and `std` of three
    channels in 0..1 units. All tensors on one device. `memory_format` may be channels_last on CUDA.

    Raises TypeError or ValueError for what does not fit; rows out of range are found on the CPU only, as
    looking would halt a GPU.
    """
    _check_images(pixels, rows, pad, size)
    _check_index(rows, index, stream)
    _check_output(pixels, mean, std, memory_format)
    if _has_twin(pixels):
        from fastdrpl.kernels.cpu import augment as twin  # compiles: only where it is used

        return twin.augment(
            pixels, rows, index, stream, pad=pad, size=size, flip=flip, mean=mean, std=std
        ).to(dtype)
    _, height, width, _ = pixels.shape
    window = crop_window(stream, index, height=height, width=width, pad=pad, size=size, flip=flip)
    crops = gather_crops(pixels, rows, window, pad=pad, size=size)
    return normalise(crops, mean=mean, std=std, dtype=dtype, memory_format=memory_format)


def augment_uint8(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream,
    *,
    pad: int,
    size: int,
    flip: bool,
    out: Tensor | None = None,
) -> Tensor:
    """The crops of `augment` before normalisation: uint8 (B, size, size, 3), written to `out` if given."""
    _check_images(pixels, rows, pad, size)
    _check_index(rows, index, stream)
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
    if _has_twin(pixels):
        from fastdrpl.kernels.cpu import augment as twin

        return twin.augment_uint8(pixels, rows, index, stream, pad=pad, size=size, flip=flip, out=out)
    _, height, width, _ = pixels.shape
    window = crop_window(stream, index, height=height, width=width, pad=pad, size=size, flip=flip)
    return out.copy_(gather_crops(pixels, rows, window, pad=pad, size=size))


def centre(
    pixels: Tensor,
    rows: Tensor,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Centre crop and normalisation, nothing random: (B, 3, size, size). Arguments as `augment`."""
    _check_images(pixels, rows, 0, size)
    _check_output(pixels, mean, std, memory_format)
    if _has_twin(pixels):
        from fastdrpl.kernels.cpu import augment as twin

        return twin.centre(pixels, rows, size=size, mean=mean, std=std).to(dtype)
    _, height, width, _ = pixels.shape
    window = centre_window(rows, height=height, width=width, size=size)
    crops = gather_crops(pixels, rows, window, pad=0, size=size)
    return normalise(crops, mean=mean, std=std, dtype=dtype, memory_format=memory_format)


def _has_twin(pixels: Tensor) -> bool:
    """The one place that chooses: the numba twin on the CPU, the reference elsewhere."""
    return pixels.device.type == "cpu"


def _check_images(pixels: Tensor, rows: Tensor, pad: int, size: int) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise TypeError(f"pixels: got {pixels.dtype} {tuple(pixels.shape)}, want uint8 (M, H, W, 3)")
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise TypeError(f"rows: got {rows.dtype} {tuple(rows.shape)}, want int64 (B,)")
    if rows.device != pixels.device:
        raise ValueError(f"rows are on {rows.device}, pixels on {pixels.device}: want one device")
    if pad < 0:
        raise ValueError(f"pad: got {pad}, want at least 0")
    side = min(pixels.shape[1:3]) + 2 * pad
    if not 1 <= size <= side:
        raise ValueError(
            f"size: got {size}, want 1..{side} for images of {tuple(pixels.shape[1:3])} padded by {pad}"
        )


def _check_index(rows: Tensor, index: Tensor, stream: Stream) -> None:
    if index.dtype != torch.int64 or index.shape != rows.shape:
        raise TypeError(f"index: got {index.dtype} {tuple(index.shape)}, want int64 {tuple(rows.shape)}")
    if index.device != rows.device:
        raise ValueError(f"index is on {index.device}, rows on {rows.device}: want one device")
    stream.check()


def _check_output(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], memory_format: torch.memory_format
) -> None:
    if len(mean) != 3 or not all(math.isfinite(value) for value in mean):
        raise ValueError(f"mean: got {mean}, want three finite numbers")
    if len(std) != 3 or not all(math.isfinite(value) and value > 0 for value in std):
        raise ValueError(f"std: got {std}, want three finite numbers above 0")
    if memory_format == torch.channels_last and pixels.device.type != "cuda":
        # torch's channels_last convolutions with few channels corrupt memory on the CPU (torch 2.13, 2.15).
        raise ValueError(f"memory_format: channels_last is for CUDA, and the pixels are on {pixels.device}")
