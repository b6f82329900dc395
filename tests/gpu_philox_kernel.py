"""A kernel that writes what the device functions of `fastdrpl.kernels.gpu.philox` make of a block of samples."""

import triton
import triton.language as tl

from fastdrpl.kernels.gpu.philox import below, draw_words, sort_key, unit


@triton.jit
def draw_kernel(stream, index, out, units, count, n, BLOCK: tl.constexpr):
    """`out` (6, count): four words, the first as an integer below n, the first two as a key; `units` (count,)."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    w0, w1, w2, w3 = draw_words(stream, tl.load(index + place, mask=mask, other=0))
    tl.store(out + place, w0.to(tl.int64), mask=mask)
    tl.store(out + count + place, w1.to(tl.int64), mask=mask)
    tl.store(out + 2 * count + place, w2.to(tl.int64), mask=mask)
    tl.store(out + 3 * count + place, w3.to(tl.int64), mask=mask)
    tl.store(out + 4 * count + place, below(w0, n).to(tl.int64), mask=mask)
    tl.store(out + 5 * count + place, sort_key(w0, w1), mask=mask)
    tl.store(units + place, unit(w0), mask=mask)
