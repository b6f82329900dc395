"""Augmentation: gather rows, pad with black, crop, flip, normalise; uint8 images in, network input out.

It comes after every loader, so that the batch does not depend on which loader is used, and draws from
Philox, so that it does not depend on the batch a sample is in either. A 32 x 32 image costs 3 KB read and
3 KB (uint8), 6 KB (bfloat16) or 12 KB (float32) written, next to no arithmetic: all implementations are bound
by memory. Photos may instead be cut at random size and ratio and resized (`augment_resized`): four reads
of a byte and ten operations for each number, the bytes of an image read once from memory.

The reference stands first and runs on every device. The CPU uses the twin `fastdrpl.kernels.cpu.augment`, a GPU
`fastdrpl.kernels.gpu.augment`, with the same crops bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdrpl.kernels import philox
from fastdrpl.kernels.dispatch import check_range, choose
from fastdrpl.kernels.philox import Stream

# Random resized crop: area 8 to 100 % of the image, ratio 3/4 to 4/3, as torchvision's. All that decides a window is
# integer arithmetic and one square root, which every processor rounds alike: a logarithm or a power would not be equal.
TRIES = 10
TRY_SHIFT = (
    28  # where the number of a try (1 to 10) stands in the word purpose_view; purposes stay below 2**12
)
AREA_LOWEST, AREA_RANGE = 8 << 24, 92  # share of the area in units of 2**-24 percent
ONE = 1 << 32
HALF_LOG_RATIO = round(math.log(4 / 3) / 2 * ONE)
SERIES = tuple(
    round(ONE / math.factorial(k)) for k in range(7)
)  # exp(x) to 3e-10 for |x| <= HALF_LOG_RATIO / ONE
SIDE_UNIT = 10 * ONE << 12  # of root * exponential: the root of (percent * 2**24) is 10 * 2**12
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_RESIZED = 1 << 14  # pixels a side: products of a side, an area and a share stay in 64 bits


def crop_window(
    stream: Stream | Tensor, index: Tensor, *, height: int, width: int, pad: int, size: int, flip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each sample is cropped: (top, left, flipped), int64, int64 and bool (B,), in padded coordinates.

    `index`: int64 (B,) sample index. Word 0 draws top, word 1 left, word 2 the flip, each uniformly. The stream may be
    a tensor (5,) int64 as kernels take it (`fastdrpl.kernels.gpu.philox.stream_tensor`).
    """
    w0, w1, w2, _ = _words(stream, index)
    top = philox.integers(w0, height + 2 * pad - size + 1)
    left = philox.integers(w1, width + 2 * pad - size + 1)
    return top, left, _flipped(w2, flip)


def _flipped(word: Tensor, flip: bool) -> Tensor:
    return philox.integers(word, 2) == 1 if flip else torch.zeros_like(word, dtype=torch.bool)


def _words(stream: Stream | Tensor, index: Tensor, extra: Tensor | int = 0) -> tuple[Tensor, ...]:
    """`philox.words`, also of a stream on the device; `extra` is added to its purpose_view and broadcasts."""
    words: Sequence[Any] = (
        stream.unbind() if isinstance(stream, Tensor) else (*stream.check().key, *stream[1:])
    )
    return philox.philox((index, words[2], words[3], words[4] + extra), (words[0], words[1]))


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


def exponential(x: Tensor) -> Tensor:
    """exp(x / 2**32) * 2**32 for |x| < 2**30 in integers: int64 -> int64, relative error below 1e-9."""
    value = torch.full_like(x, SERIES[6])
    for coefficient in SERIES[5::-1]:
        value = coefficient + ((value * x) >> 32)
    return value


def resized_window(
    stream: Stream | Tensor, index: Tensor, *, height: int, width: int, flip: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A random resized crop of each sample: (top, left, h, w, flipped), int64 and bool (B,), in the stored image.

    As torchvision's RandomResizedCrop: an area of 8 to 100 % of the image, uniform, at a ratio w / h of 3/4 to 4/3,
    log-uniform; the first of ten tries that fits, at a uniform place; else the largest central cut whose ratio is
    allowed. Try t (1 to 10) draws area, ratio, top and left from the four words at purpose_view + (t << 28), the
    flip comes from word 2 of the stream itself, as in `crop_window`.
    """
    tries = torch.arange(1, TRIES + 1, device=index.device)[:, None] << TRY_SHIFT
    w0, w1, w2, w3 = _words(stream, index[None], tries)  # (10, B)
    root = (height * width * (AREA_LOWEST + (w0 >> 8) * AREA_RANGE)).double().sqrt().long()
    x = (((w1 >> 8) * 2 - (1 << 24)) * HALF_LOG_RATIO) >> 24
    w = (root * exponential(x) + SIDE_UNIT // 2) // SIDE_UNIT
    h = (root * exponential(-x) + SIDE_UNIT // 2) // SIDE_UNIT
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top, left = (w2 * (height - h + 1)) >> 32, (w3 * (width - w + 1)) >> 32
    first = fits & (fits.cumsum(0) == 1)
    central_h, central_w = _central_cut(height, width)
    central = ((height - central_h) // 2, (width - central_w) // 2, central_h, central_w)
    chosen = (
        torch.where(first.any(0), (first * drawn).sum(0), otherwise)
        for drawn, otherwise in zip((top, left, h, w), central, strict=True)
    )
    return (*chosen, _flipped(_words(stream, index)[2], flip))  # type: ignore[return-value]  # five, as listed


def _central_cut(height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest cut with a ratio of 3/4 to 4/3."""
    if 4 * width < 3 * height:
        return (8 * width + 3) // 6, width
    if 3 * width > 4 * height:
        return height, (8 * height + 3) // 6
    return height, width


def source_place(length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where cuts of `length` (B,) are read for `size` pixels: lower and upper place, and how far between; (B, size).

    Pixel centres lie at halves, edges are clamped: `torch.nn.functional.interpolate(align_corners=False)`. In integers,
    since the place itself in float32 would be 1e-5 off in the middle of a large cut.
    """
    target = torch.arange(size, device=length.device)
    numerator = ((2 * target + 1) * length[:, None] - size).clamp_min(0)
    lower, rest = numerator // (2 * size), numerator % (2 * size)
    upper = torch.minimum(lower + 1, length[:, None] - 1)
    return lower, upper, rest.float() * (1.0 / (2 * size))


def gather_resized(pixels: Tensor, rows: Tensor, window: tuple[Tensor, ...], *, size: int) -> Tensor:
    """The cuts of `resized_window`, bilinear without antialias: float32 (B, size, size, 3) in 0..255."""
    top, left, h, w, flipped = window
    y0, y1, down = source_place(h, size)
    x0, x1, right = source_place(w, size)
    x0, x1, right = (torch.where(flipped[:, None], places.flip(1), places) for places in (x0, x1, right))

    def row(y: Tensor) -> Tensor:
        here, y = rows[:, None, None], (top[:, None] + y)[:, :, None]
        near = pixels[here, y, (left[:, None] + x0)[:, None]].float()
        far = pixels[here, y, (left[:, None] + x1)[:, None]].float()
        share = right[:, None, :, None]
        return near * (1.0 - share) + far * share

    share = down[:, :, None, None]
    return row(y0) * (1.0 - share) + row(y1) * share


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
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream | Tensor,
    crop: str,
    pad: int,
    size: int,
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`augment` (crop "pad") or `augment_resized` ("resized") in plain torch, on any device, nothing checked."""
    _, height, width, _ = pixels.shape
    if crop == "resized":
        cut = resized_window(stream, index, height=height, width=width, flip=flip)
        crops = gather_resized(pixels, rows, cut, size=size)
    else:
        window = crop_window(stream, index, height=height, width=width, pad=pad, size=size, flip=flip)
        crops = gather_crops(pixels, rows, window, pad=pad, size=size)
    return normalise(crops, mean=mean, std=std, dtype=dtype, memory_format=_layout(channels_last))


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


def centre_reference(
    pixels: Tensor,
    rows: Tensor,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`centre` in plain torch, on any device, nothing checked."""
    _, height, width, _ = pixels.shape
    window = centre_window(rows, height=height, width=width, size=size)
    crops = gather_crops(pixels, rows, window, pad=0, size=size)
    return normalise(crops, mean=mean, std=std, dtype=dtype, memory_format=_layout(channels_last))


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
    looking would halt a GPU (or when debugging, see `fastdrpl.kernels.dispatch`).
    """
    check_draw(pixels, rows, index, stream, pad, size)
    check_output(pixels, mean, std, dtype, memory_format)
    if choose("augment", pixels.device.type) == "numba":
        from fastdrpl.kernels.cpu import augment as twin  # compiles: only where it is used

        return twin.augment(
            pixels, rows, index, stream, pad=pad, size=size, flip=flip, mean=mean, std=std
        ).to(dtype)
    return _augment(pixels, rows, index, stream, "pad", pad, size, flip, mean, std, dtype, memory_format)


def augment_resized(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream,
    *,
    size: int,
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Cut of random area and ratio, resized, random horizontal flip, normalisation: (B, 3, size, size).

    The cut is that of `resized_window`, the pixels those of `gather_resized`, not rounded to whole levels between
    resizing and normalisation. Arguments and errors as `augment`; `size` may exceed the image's.
    """
    check_resized(pixels, rows, index, stream, size)
    check_output(pixels, mean, std, dtype, memory_format)
    return _augment(pixels, rows, index, stream, "resized", 0, size, flip, mean, std, dtype, memory_format)


def _augment(
    pixels: Tensor,
    rows: Tensor,
    index: Tensor,
    stream: Stream,
    crop: str,
    pad: int,
    size: int,
    flip: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    channels_last = memory_format == torch.channels_last
    if choose("augment", pixels.device.type) == "triton":
        from fastdrpl.kernels.gpu import augment as twin
        from fastdrpl.kernels.gpu.philox import stream_tensor

        words, mean, std = stream_tensor(stream, pixels.device), list(mean), list(std)
        return twin.augment(
            pixels, rows, index, words, crop, pad, size, flip, mean, std, dtype, channels_last
        )
    return augment_reference(
        pixels, rows, index, stream, crop, pad, size, flip, mean, std, dtype, channels_last
    )


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
    check_draw(pixels, rows, index, stream, pad, size)
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
    if implementation == "numba":
        from fastdrpl.kernels.cpu import augment as on_cpu

        return on_cpu.augment_uint8(pixels, rows, index, stream, pad=pad, size=size, flip=flip, out=out)
    if implementation == "triton":
        from fastdrpl.kernels.gpu import augment as on_gpu
        from fastdrpl.kernels.gpu.philox import stream_tensor

        on_gpu.augment_uint8(pixels, rows, index, stream_tensor(stream, pixels.device), pad, size, flip, out)
    else:
        augment_uint8_reference(pixels, rows, index, stream, pad, size, flip, out)
    return out


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
    _check_images(pixels, rows)
    _check_crop(pixels, 0, size)
    check_output(pixels, mean, std, dtype, memory_format)
    implementation = choose("augment", pixels.device.type)
    if implementation == "numba":
        from fastdrpl.kernels.cpu import augment as on_cpu

        return on_cpu.centre(pixels, rows, size=size, mean=mean, std=std).to(dtype)
    channels_last = memory_format == torch.channels_last
    if implementation == "triton":
        from fastdrpl.kernels.gpu import augment as on_gpu

        return on_gpu.centre(pixels, rows, size, list(mean), list(std), dtype, channels_last)
    return centre_reference(pixels, rows, size, mean, std, dtype, channels_last)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def check_draw(pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream, pad: int, size: int) -> None:
    """TypeError or ValueError for what `augment` cannot take: says what was seen and what is wanted."""
    _check_images(pixels, rows)
    _check_crop(pixels, pad, size)
    _check_index(rows, index, stream)


def check_resized(pixels: Tensor, rows: Tensor, index: Tensor, stream: Stream, size: int) -> None:
    """As `check_draw`, for `augment_resized`."""
    _check_images(pixels, rows)
    if not 1 <= size <= LARGEST_RESIZED or max(pixels.shape[1:3]) > LARGEST_RESIZED or 0 in pixels.shape[1:3]:
        raise ValueError(
            f"size: got {size} from images of {tuple(pixels.shape[1:3])}, want 1..{LARGEST_RESIZED} for both"
        )
    _check_index(rows, index, stream)
    if stream.purpose_view >> TRY_SHIFT:
        raise ValueError(f"purpose_view: got {stream.purpose_view}, want less than 2**{TRY_SHIFT}")


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


def _check_crop(pixels: Tensor, pad: int, size: int) -> None:
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
    check_range("index", index, 1 << 32)


def check_output(
    pixels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    """TypeError or ValueError for numbers, a type or a layout that no augmentation can give."""
    if len(mean) != 3 or not all(math.isfinite(value) for value in mean):
        raise ValueError(f"mean: got {mean}, want three finite numbers")
    if len(std) != 3 or not all(math.isfinite(value) and value > 0 for value in std):
        raise ValueError(f"std: got {std}, want three finite numbers above 0")
    if dtype not in FLOATS:
        raise TypeError(f"dtype: got {dtype}, want one of {', '.join(map(str, FLOATS))}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format: got {memory_format}, want contiguous_format or channels_last")
    if memory_format == torch.channels_last and pixels.device.type != "cuda":
        # torch's channels_last convolutions with few channels corrupt memory on the CPU (torch 2.13, 2.15).
        raise ValueError(f"memory_format: channels_last is for CUDA, and the pixels are on {pixels.device}")
