"""From host memory to the device: what every loader shares whose batches are made in host memory.

On the CPU batches pass straight through. On a GPU each batch is copied into pinned memory and from there, on a
stream of its own, to one of a few device buffers that are used in turn. One batch is always on its way while the
network works on the one before it, so the copy costs nothing as long as it takes less time than a step.

Two rules keep the buffers right; both are events, so that nobody waits who need not:
a pinned buffer is not written before its last copy has left it; a device buffer is not written before the work
that was queued on it when the next batch was asked for is done.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.errors import UserError

DEPTH = 3  # buffers: one with the network, one on its way, one whose last step may still be running


class HostBatch(NamedTuple):
    """One step's images in host memory; B may be 0. The pixels hold until the next batch is asked for."""

    pixels: Tensor  # uint8 (B, H, W, 3)
    # (B,) int64, sample index. It hides tuple.index.
    index: Tensor  # type: ignore[assignment]


def stage(
    batches: Generator[HostBatch, None, None], device: torch.device | str, depth: int = DEPTH
) -> Generator[Batch, None, None]:
    """The same batches on the device, with rows 0..B-1; closing it closes `batches`.

    CPU: nothing is copied, and nothing is asked for ahead. CUDA: a batch is for the stream that is current when
    it is asked for; `depth` (2 or more) buffers of the largest batch's size are used in turn. Raises UserError
    for a device of another kind.
    """
    device = torch.device(device)
    with contextlib.closing(batches):
        if device.type == "cpu":
            yield from _pass_on(batches)
        elif device.type == "cuda":
            yield from through_ring(batches, CudaSide(device), depth)
        else:
            raise UserError(f"no loader copies batches to a device of the kind {device.type}")


def _pass_on(batches: Generator[HostBatch, None, None]) -> Generator[Batch, None, None]:
    rows = torch.arange(0)
    for pixels, index in batches:
        if len(index) > len(rows):
            rows = torch.arange(len(index))
        yield Batch(pixels, rows[: len(index)], index)


class Side(Protocol):
    """The device as the ring sees it: buffers, events, and copies that take their time."""

    def new_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory that copies to the device may read."""
        ...

    def new_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        ...

    def new_rows(self, count: int) -> Tensor:
        """0..count-1 on the device, int64."""
        ...

    def mark(self) -> Any:
        """An event: all that the consumer has queued so far is done."""
        ...

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Any) -> Any:
        """Queue copies (target, source), which begin after an event; returns the event of their end."""
        ...

    def let_consumer_wait(self, event: Any, tensors: Sequence[Tensor]) -> None:
        """What the consumer queues from now on, on these tensors too, begins after an event."""
        ...

    def wait(self, event: Any) -> None:
        """Return when an event has come."""
        ...


@dataclass
class _Slot:
    """One place of the ring, for up to `len(rows)` images."""

    host: HostBatch
    device: HostBatch
    rows: Tensor
    free: Any  # event: the consumer's work on the device buffers is done
    copied: Any = None  # event: the last copy is done
    count: int = 0


def through_ring(
    batches: Generator[HostBatch, None, None], side: Side, depth: int
) -> Generator[Batch, None, None]:
    """The ring's logic, whatever the device (see `stage`). Raises ValueError for a depth below 2."""
    if depth < 2:  # the batch in use and the one on its way
        raise ValueError(f"depth of the ring: got {depth}, want at least 2")
    slots: list[_Slot | None] = [None] * depth
    ahead: _Slot | None = None
    for step, batch in enumerate(batches):
        slot = slots[step % depth]
        if slot is None or len(slot.rows) < len(batch.index):
            slot = slots[step % depth] = _new_slot(side, batch)
        _fill(slot, side, batch)
        if ahead is not None:
            yield _hand_out(ahead, side)
            ahead.free = side.mark()
        ahead = slot
    if ahead is not None:
        yield _hand_out(ahead, side)


def _new_slot(side: Side, batch: HostBatch) -> _Slot:
    rows = side.new_rows(max(1, len(batch.index)))
    shape = (len(rows), *batch.pixels.shape[1:])
    host = HostBatch(side.new_host(shape, torch.uint8), side.new_host(shape[:1], torch.int64))
    device = HostBatch(side.new_device(shape, torch.uint8), side.new_device(shape[:1], torch.int64))
    # Work that was queued on this memory before it was given back may still run: the first copy waits for it too.
    return _Slot(host, device, rows, free=side.mark())


def _fill(slot: _Slot, side: Side, batch: HostBatch) -> None:
    if slot.copied is not None:
        side.wait(slot.copied)
    slot.count = count = len(batch.index)
    pairs = []
    for source, host, device in zip(batch, slot.host, slot.device, strict=True):
        host[:count].copy_(source)
        pairs.append((device[:count], host[:count]))
    slot.copied = side.copy(pairs, after=slot.free)


def _hand_out(slot: _Slot, side: Side) -> Batch:
    side.let_consumer_wait(slot.copied, (slot.device.pixels, slot.device.index, slot.rows))
    count = slot.count
    return Batch(slot.device.pixels[:count], slot.rows[:count], slot.device.index[:count])


class CudaSide:
    """A CUDA device: copies run on a stream of their own.

    Memory is allocated on the consumer's stream and marked as used by the others, so that it is not given to
    somebody else before their work is done, however early the ring ends.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.stream = torch.cuda.Stream(self.device)

    def new_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def new_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        tensor.record_stream(self.stream)
        return tensor

    def new_rows(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: torch.cuda.Event) -> torch.cuda.Event:
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            # Blocking: a host that has to wait for it sleeps and leaves the core to who makes the batches.
            return self.stream.record_event(torch.cuda.Event(blocking=True))

    def let_consumer_wait(self, event: torch.cuda.Event, tensors: Sequence[Tensor]) -> None:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(stream)

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()
