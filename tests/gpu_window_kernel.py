"""A kernel that writes the windows which `fastdrpl.kernels.gpu.augment` draws."""

import triton
import triton.language as tl

from fastdrpl.kernels.gpu.augment import draw_window


@triton.jit
def window_kernel(
    index,
    stream,
    out,
    height,
    width,
    pad,
    SIZE: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
):
    """`out` (samples, 5) int64: top, left, height, width, flipped."""
    sample = tl.program_id(0)
    top, left, h, w, flipped = draw_window(
        stream, tl.load(index + sample), height, width, pad, SIZE, CROP, FLIP
    )
    out += sample * 5
    tl.store(out, top)
    tl.store(out + 1, left)
    tl.store(out + 2, h)
    tl.store(out + 3, w)
    tl.store(out + 4, flipped)
