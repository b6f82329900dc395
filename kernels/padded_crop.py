"""Where a crop of the padded image lies, and how it is gathered: the reference of the crops of kind "pad"."""

import torch
from torch import Tensor

from fastdrpl.kernels import philox
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import draw_words


def crop_window(
    stream: Stream | Tensor, index: Tensor, *, height: int, width: int, pad: int, size: int, flip: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each sample is cropped: (top, left, flipped), int64, int64 and bool (B,), in padded coordinates.

    `index`: int64 (B,) sample index. Word 0 draws top, word 1 left, word 2 the flip, each uniformly. The stream may be
    a tensor (5,) int64 as kernels take it (`fastdrpl.kernels.streams.stream_tensor`).
    """
    w0, w1, w2, _ = draw_words(stream, index)
    top = philox.integers(w0, height + 2 * pad - size + 1)
    left = philox.integers(w1, width + 2 * pad - size + 1)
    return top, left, draw_flip(w2, flip)


def draw_flip(word: Tensor, flip: bool) -> Tensor:
    """Whether a sample is mirrored, from its third word: (B,) int64 -> (B,) bool; nothing is where `flip` is off."""
    return philox.integers(word, 2) == 1 if flip else torch.zeros_like(word, dtype=torch.bool)


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
