"""The Triton twin of `fastdrpl.kernels.philox`: the same bits, as device functions for other kernels.

`tl.philox` is the same generator; `tl.rand` is not used, as it maps words to numbers in another way. A stream comes
as a tensor on the device (`stream_tensor`), so that a captured CUDA graph can be replayed for another epoch.
"""

import triton
import triton.language as tl

from fastdrpl.kernels.gpu.integers import to_int64
from fastdrpl.kernels.streams import stream_tensor

__all__ = ["below", "draw_words", "sort_key", "stream_tensor", "unit"]


@triton.jit
def draw_words(stream, index, extra=0):
    """Four uint32 words for each of a block of int64 sample indices; `stream`: pointer to a `stream_tensor`.

    `extra` is added to the stream's purpose_view.
    """
    low, high = tl.load(stream).to(tl.uint64), tl.load(stream + 1).to(tl.uint64)
    counter = index.to(tl.uint32)
    nothing = counter * 0
    epoch = nothing + tl.load(stream + 2).to(tl.uint32)
    stage = nothing + tl.load(stream + 3).to(tl.uint32)
    purpose_view = nothing + (tl.load(stream + 4) + extra).to(tl.uint32)
    return tl.philox(low | (high << 32), counter, epoch, stage, purpose_view)


@triton.jit
def below(word, n):
    """A uint32 word as an integer in [0, n), int32, as `philox.integers`; n is a constant or an integer below 2**31."""
    return ((word.to(tl.uint64) * to_int64(n).to(tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def unit(word):
    """A uint32 word as a uniform number in [0, 1), float32, as `philox.uniform`."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2**-24


@triton.jit
def sort_key(word0, word1):
    """Two uint32 words as a 63-bit key, int64, as `philox.shuffle_keys`."""
    return (word0.to(tl.int64) << 31) | (word1 >> 1).to(tl.int64)
