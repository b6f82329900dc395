"""Steps made by hand: an objective is given tensors and a network, and nothing trains."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdrpl.kernels.loss_head import Share
from fastdrpl.kernels.mixup import mix
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.stages import Minibatch, Step
from fastdrpl.store import LabelStore

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ReadyImages:
    """Inputs (b, ...) as `fastdrpl.stages.Images`; another view is the same images plus the view's number."""

    inputs: Tensor

    def __call__(self, view: int = 0) -> Tensor:
        return self.inputs + view

    def pair(self, partner: Tensor, coefficient: Tensor, view: int = 0) -> tuple[Tensor, Tensor]:
        inputs = self(view)
        return inputs, mix(inputs, partner, coefficient)

    def plain(self) -> Tensor:
        return self.inputs


@dataclass
class ToyNetwork:
    """A function of the inputs as `fastdrpl.stages.Network`; `calls` tells in which mode it was asked."""

    function: Callable[[Tensor], Tensor]
    calls: list[str] = field(default_factory=list)

    def __call__(self, inputs: Tensor) -> Tensor:
        self.calls.append("train")
        return self.function(inputs)

    def frozen(self, inputs: Tensor) -> Tensor:
        self.calls.append("frozen")
        return self.function(inputs)

    def both(self, free: Tensor, live: Tensor, *, freeze: bool = False) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            first = self.frozen(free) if freeze else self(free)
        return first, self(live)

    def evaluated(self, inputs: Tensor) -> Tensor:
        self.calls.append("evaluated")
        with torch.no_grad():
            return self.function(inputs)


def new_store(samples: int, classes: int, seed: int = 0, **columns: Tensor) -> LabelStore:
    """A store with random given labels, and with other columns."""
    store = LabelStore(samples, CPU)
    store.put("given", torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(seed)))
    for name, values in columns.items():
        store.put(name, values)
    return store


def pass_(epoch: int, stage: int = 1) -> Pass:
    return Pass(7, stage, epoch, Purpose.train)


def minibatch(inputs: Tensor, index: Tensor, share: Share | None = None) -> Minibatch:
    return Minibatch(ReadyImages(inputs), index, Share(len(index)) if share is None else share)


def step_of(
    store: LabelStore,
    function: Callable[[Tensor], Tensor] | ToyNetwork,
    inputs: Tensor,
    index: Tensor,
    *,
    draws: Any = None,
    number: int = 0,
    epoch: int = 1,
    share: Share | None = None,
) -> Step:
    """A step of one network on one walk."""
    network = function if isinstance(function, ToyNetwork) else ToyNetwork(function)
    batches = (minibatch(inputs, index, share),)
    return Step((network,), batches, store, torch.tensor(number), torch.tensor(epoch), draws)


def on_ranks(count: int, function: Callable[[int, Share], Any], world: int = 2) -> list[Any]:
    """`function(rank, share)` in a thread for each rank, whose `share` reduces over all of them; what each returned."""
    barrier, parts, results = threading.Barrier(world, timeout=60), {}, {}

    def reduce(rank: int, value: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        parts[rank] = value.detach().clone()
        barrier.wait()
        result = how(torch.stack([parts[k] for k in range(world)]))
        barrier.wait()
        return result

    def run(rank: int) -> None:
        total = lambda value: reduce(rank, value, lambda all_: all_.sum(0))  # noqa: E731
        maximum = lambda value: reduce(rank, value, lambda all_: all_.amax(0))  # noqa: E731
        try:
            results[rank] = function(rank, Share(count, world, total, maximum))
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return [results[rank] for rank in range(world)]
