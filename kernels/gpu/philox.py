"""The Triton twin of `fastdrpl.kernels.philox`: the same bits, as device functions for other kernels.

`tl.philox` is the same generator; `tl.rand` is not used, as it maps words to numbers in another way. A stream comes
as a tensor on the device (`stream_tensor`), so that a captured CUDA graph can be replayed for another epoch.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels.gpu.integers import to_int64
from fastdrpl.kernels.philox import Stream


@functools.lru_cache(maxsize=64)
def stream_tensor(stream: Stream, device: torch.device) -> Tensor:
    """A stream as kernels take it: seed low, seed high, epoch, stage, purpose_view; (5,) int64 on the device.

    Kept for the calls that follow: read it, never write to it. Made by the one copy to the device that a pass needs,
    which does not wait for the device. Raises ValueError for a stream out of range, RuntimeError while a CUDA graph is
    captured: the graph would keep this stream's words for ever. Make the tensor before, and give it to the operation.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a random stream in a captured graph: make its `stream_tensor` before the capture")
    low, high = stream.check().key
    words = torch.tensor([low, high, stream.epoch, stream.stage, stream.purpose_view], dtype=torch.int64)
    if device.type != "cuda":
        return words.to(device)
    return words.pin_memory().to(device, non_blocking=True)


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
