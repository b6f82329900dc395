"""Staging hands on what it was given, in order, and never writes to memory that somebody still reads."""

import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdrpl.loaders import staging
from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.staging import CudaSide, HostBatch, stage, through_ring

SIZES = [7, 7, 3, 7, 0, 9, 1, 12, 7, 7, 7, 2]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Source:
    """Batches in one buffer that is written anew for each, as the contract allows; and what they were."""

    def __init__(self, sizes: Sequence[int] = SIZES, side: int = 2) -> None:
        generator = torch.Generator().manual_seed(5)
        shape = (side, side, 3)
        self.pixels = [
            torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator) for n in sizes
        ]
        self.index = [torch.randint(0, 1000, (n,), generator=generator) for n in sizes]
        self.asked, self.closed = 0, False

    def batches(self) -> Generator[HostBatch, None, None]:
        buffer = torch.empty((max(len(p) for p in self.pixels), *self.pixels[0].shape[1:]), dtype=torch.uint8)
        try:
            for pixels, index in zip(self.pixels, self.index, strict=True):
                self.asked += 1
                buffer[:] = 255
                buffer[: len(pixels)] = pixels
                yield HostBatch(buffer[: len(pixels)], index)
        finally:
            self.closed = True


class Event:
    def __init__(self) -> None:
        self.come = False


class LateSide:
    """A device whose two streams do their work as late, or in as odd an order, as a real one may.

    Work is a function that returns False while it has to wait. `hurry` breaks one rule of the ring on purpose.
    """

    def __init__(self, seed: int, hurry: str = "") -> None:
        self.random, self.hurry = random.Random(seed), hurry
        self.streams: dict[str, deque[Callable[[], bool]]] = {"copy": deque(), "consumer": deque()}
        self.allocated = 0

    def queue(self, stream: str, work: Callable[[], Any]) -> None:
        self.streams[stream].append(lambda: work() is not False)

    def mark_on(self, stream: str) -> Event:
        event = Event()
        self.queue(stream, lambda: setattr(event, "come", True))
        return event

    def wait_on(self, stream: str, event: Event) -> None:
        self.queue(stream, lambda: event.come)

    def run(self, done: Callable[[], bool]) -> None:
        """Do work of either stream, drawn by chance, until `done` says so."""
        while not done():
            ready = [name for name, works in self.streams.items() if works]
            self.random.shuffle(ready)
            for name in ready:
                if self.streams[name][0]():
                    self.streams[name].popleft()
                    break
            else:
                raise AssertionError("each stream waits for the other for ever")

    def finish(self) -> None:
        self.run(lambda: not any(self.streams.values()))

    def new_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.allocated += 1
        return torch.zeros(tuple(shape), dtype=dtype)

    def new_device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def new_rows(self, count: int) -> Tensor:
        return torch.arange(count)

    def mark(self) -> Event:
        return self.mark_on("consumer")

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]], after: Event) -> Event:
        if self.hurry != "device":
            self.wait_on("copy", after)
        for target, source in pairs:
            self.queue("copy", lambda target=target, source=source: target.copy_(source) is target)
        return self.mark_on("copy")

    def let_consumer_wait(self, event: Event, tensors: Sequence[Tensor]) -> None:
        if self.hurry != "consumer":
            self.wait_on("consumer", event)

    def wait(self, event: Event) -> None:
        if self.hurry != "host":
            self.run(lambda: event.come)


def consume(side: LateSide, source: Source, depth: int) -> bool:
    """Read every batch on the consumer's stream; whether all were what the source gave."""
    seen: list[tuple[Tensor, Tensor]] = []
    for batch in through_ring(source.batches(), side, depth):
        side.queue(
            "consumer", lambda b=batch: seen.append((b.pixels[b.rows].clone(), b.index.clone())) is None
        )
        for _ in range(side.random.randrange(4)):  # a device that is now fast, now slow
            side.streams["consumer"].append(lambda: True)
    side.finish()
    pixels, index = zip(*seen, strict=True)
    return len(seen) == len(source.index) and all(
        torch.equal(a, b) for a, b in zip((*pixels, *index), (*source.pixels, *source.index), strict=True)
    )


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_ring_gives_what_it_was_given(depth: int) -> None:
    for seed in range(30):
        side, source = LateSide(seed), Source()
        assert consume(side, source, depth)
        assert source.closed


@pytest.mark.parametrize("hurry", ["host", "device", "consumer"])
def test_each_of_the_three_waits_is_needed(hurry: str) -> None:
    """Without any one of them some order of work corrupts a batch: the test above can fail."""
    assert not all(consume(LateSide(seed, hurry), Source(), 2) for seed in range(30))


def test_the_ring_takes_one_batch_ahead_and_not_two() -> None:
    side, source = LateSide(0), Source()
    ring = through_ring(source.batches(), side, 3)
    for step in range(len(SIZES)):
        next(ring)
        assert source.asked == min(step + 2, len(SIZES))


def test_buffers_are_used_again() -> None:
    side = LateSide(0)
    assert consume(side, Source([5] * 50), 3)
    assert side.allocated == 2 * 3  # pixels and index of each place
    side = LateSide(0)
    assert consume(side, Source([5] * 49 + [9]), 3)
    assert side.allocated == 2 * 4  # and one place grew


def test_a_ring_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        next(through_ring(Source().batches(), LateSide(0), 1))


def test_on_the_cpu_nothing_is_copied_or_asked_for_ahead() -> None:
    source = Source()
    buffers = set()
    for step, batch in enumerate(stage(source.batches(), "cpu")):
        assert source.asked == step + 1
        buffers.add(batch.pixels.untyped_storage().data_ptr())
        assert torch.equal(batch.pixels[batch.rows], source.pixels[step])
        assert torch.equal(batch.index, source.index[step])
        assert batch.rows.dtype == torch.int64 and batch.rows.is_contiguous()
    assert step == len(SIZES) - 1 and len(buffers) == 1


def test_closing_it_closes_the_source() -> None:
    source = Source()
    batches = stage(source.batches(), "cpu")
    next(batches)
    batches.close()
    assert source.closed
    source = Source()
    for _ in stage(source.batches(), "cpu"):
        break
    assert source.closed


def test_closing_the_ring_closes_the_source_too(monkeypatch: pytest.MonkeyPatch) -> None:
    side, source = LateSide(1), Source()
    monkeypatch.setattr(staging, "CudaSide", lambda device: side)
    ring = stage(source.batches(), "cuda")
    next(ring)
    ring.close()
    assert source.closed and source.asked == 2
    side.finish()  # what was on its way may end in peace


def test_an_error_of_the_source_is_passed_on() -> None:
    def broken() -> Generator[HostBatch, None, None]:
        yield HostBatch(torch.zeros(2, 1, 1, 3, dtype=torch.uint8), torch.arange(2))
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(stage(broken(), "cpu"))
    with pytest.raises(OSError, match="no more"):
        list(through_ring(broken(), LateSide(0), 3))


def test_other_devices_are_refused() -> None:
    source = Source()
    with pytest.raises(UserError, match="meta"):
        next(stage(source.batches(), "meta"))


@NEEDS_GPU
@pytest.mark.parametrize("depth", [2, 3])
def test_a_slow_network_on_the_gpu_sees_each_batch_whole(depth: int) -> None:
    source = Source([64, 64, 64, 3, 80, 0, 64] * 8, side=64)
    seen = []
    for batch in stage(source.batches(), "cuda", depth):
        assert batch.pixels.is_cuda and batch.rows.is_cuda and batch.index.is_cuda
        torch.cuda._sleep(2_000_000)  # about a millisecond: copies overtake the network if anything lets them
        seen.append((batch.pixels[batch.rows], batch.index.clone()))
    assert len(seen) == len(source.index)
    for (pixels, index), p, i in zip(seen, source.pixels, source.index, strict=True):
        assert torch.equal(pixels.cpu(), p) and torch.equal(index.cpu(), i)


@NEEDS_GPU
def test_a_ring_that_ends_early_does_not_lose_its_memory_to_others_too_soon() -> None:
    for _ in range(20):
        source = Source([256] * 4, side=64)
        batches = stage(source.batches(), "cuda")
        batch = next(batches)
        torch.cuda._sleep(5_000_000)
        kept = batch.pixels[batch.rows]
        del batch
        batches.close()
        del batches
        others = [torch.full((256, 64, 64, 3), 7, dtype=torch.uint8, device="cuda") for _ in range(8)]
        assert torch.equal(kept.cpu(), source.pixels[0])
        assert all(bool((other == 7).all()) for other in others)


@NEEDS_GPU
def test_the_consumer_may_work_on_a_stream_of_its_own() -> None:
    source = Source([64] * 20, side=64)
    seen = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for batch in stage(source.batches(), "cuda"):
            torch.cuda._sleep(1_000_000)
            seen.append(batch.pixels[batch.rows])
        torch.cuda.current_stream().synchronize()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(seen, source.pixels, strict=True))


@NEEDS_GPU
def test_host_memory_is_pinned_on_the_gpu() -> None:
    assert CudaSide(torch.device("cuda")).new_host((3,), torch.uint8).is_pinned()
