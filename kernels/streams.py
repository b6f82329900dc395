"""Random streams on a device: the words of a `Stream` as a tensor, which a captured CUDA graph reads anew each time.

Public operations take either form. On the CPU a tensor is turned back into a `Stream`; on a GPU it is handed to the
kernels as it is, so that one step, captured or compiled once, serves every epoch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdrpl.kernels import philox
from fastdrpl.kernels.dispatch import check_range
from fastdrpl.kernels.philox import Stream

WORDS = 5  # seed low, seed high, epoch, stage, purpose_view
WORD_LIMIT = 1 << 32


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


def stream_of(words: Stream | Tensor) -> Stream:
    """The stream whose `stream_tensor` this is, (5,) int64; a `Stream` comes back as it is. Waits for a GPU.

    Raises TypeError for another kind of tensor, ValueError for a word outside [0, 2**32).
    """
    if isinstance(words, Stream):
        return words
    _check_words(words)
    numbers = words.tolist()
    for position, number in enumerate(numbers):
        if not 0 <= number < WORD_LIMIT:
            raise ValueError(f"stream[{position}] is {number}, want 0 <= stream < {WORD_LIMIT}")
    low, high, epoch, stage, purpose_view = numbers
    return Stream(low | high << 32, epoch, stage, purpose_view)


def check_stream(stream: Stream | Tensor, device: torch.device) -> Stream | Tensor:
    """The stream as what runs on a device takes it: on the CPU always a `Stream`, elsewhere also a tensor as it is.

    Raises TypeError for another kind of tensor, ValueError for one on another device, and for numbers out of range: of
    a tensor on a GPU they are looked at when debugging only, as looking would halt it.
    """
    if isinstance(stream, Stream):
        return stream.check()
    _check_words(stream)
    if stream.device.type != device.type or device.index not in (None, stream.device.index):
        raise ValueError(f"stream is on {stream.device}, its samples on {device}: want one device")
    if device.type == "cpu":
        return stream_of(stream)
    check_range("stream", stream, WORD_LIMIT)
    return stream


def words_on(stream: Stream | Tensor, device: torch.device) -> Tensor:
    """What kernels read on a device: the tensor that was given, or the one made of a `Stream`."""
    return stream if isinstance(stream, Tensor) else stream_tensor(stream, device)


def draw_words(stream: Stream | Tensor, index: Tensor, extra: Tensor | int = 0) -> tuple[Tensor, ...]:
    """`philox.words` of either form of a stream; `extra` is added to its purpose_view and broadcasts."""
    words: Sequence[Any] = (
        stream.unbind() if isinstance(stream, Tensor) else (*stream.check().key, *stream[1:])
    )
    return philox.philox((index, words[2], words[3], words[4] + extra), (words[0], words[1]))


def _check_words(words: Tensor) -> None:
    if words.dtype != torch.int64 or words.shape != (WORDS,):
        raise TypeError(f"stream: got {words.dtype} {tuple(words.shape)}, want a Stream or int64 ({WORDS},)")
