"""Random resized crop: windows of random area and ratio, and bilinear resizing; the reference of the kind "resized".

Area 8 to 100 % of the image, ratio 3/4 to 4/3, as torchvision's. All that decides a window is integer arithmetic and
one square root, which every processor rounds alike: a logarithm or a power would not be equal.
"""

import math

import torch
from torch import Tensor

from fastdrpl.kernels.padded_crop import draw_flip
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import draw_words

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
LARGEST_RESIZED = 1 << 14  # pixels a side: products of a side, an area and a share stay in 64 bits


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
    w0, w1, w2, w3 = draw_words(stream, index[None], tries)  # (10, B)
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
    return (*chosen, draw_flip(draw_words(stream, index)[2], flip))  # type: ignore[return-value]  # five, as listed


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
