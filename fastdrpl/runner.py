"""Who carries out the steps of an epoch: `body` as it is, with compiled networks, or recorded once and replayed.

Modes differ only here. What is regular about a step decides, not how often a step like it came before, so that a run
that goes on takes the same path as one that nobody stopped: tail batches (and whole steps beside one) are carried out
eagerly, since their sizes may differ from epoch to epoch and each would be compiled and captured anew.
"""

import collections
import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from fastdrpl.kernels.loss_head import Share
from fastdrpl.learners import Learners
from fastdrpl.loaders.batch import Batch
from fastdrpl.machine import Machine
from fastdrpl.modes import first_line
from fastdrpl.pixels import Transform
from fastdrpl.stages import Objective
from fastdrpl.steps import StepInputs, body
from fastdrpl.store import LabelStore

WARM_UP = (
    3  # real steps before one is captured: libraries load, choose their algorithms and reserve their memory
)

Work = Callable[[], None]


class Graphs(Protocol):
    """What records the work of a device."""

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where all work is queued, also what is not recorded."""

    def record(self, work: Work) -> Work:
        """What does `work` again, in the same memory; recording does not do it. Raises RuntimeError if it cannot."""


class CudaGraphs:
    """CUDA graphs that share their memory, recorded on a stream of their own.

    Steps that are not recorded run on that stream too: autograd remembers on which one a parameter was first used, and
    another than that of the recording would break it.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """The block's work is queued after what was queued before it, and before what follows it."""
        around = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(around)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            around.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Other threads, such as those of a loader, may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        with _no_collection(), recording:  # a graph that is let go of during a recording breaks it
            work()
        return graph.replay


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class StepRunner:
    """Carries out the steps of a run in its mode (`modes.Ladder`)."""

    def __init__(self, machine: Machine, graphs: Graphs | None = None):
        self._ladder = machine.ladder
        if graphs is None and self._ladder.mode == "captured":
            graphs = CudaGraphs(machine.device)
        self._graphs = graphs
        self._owners: tuple[Any, ...] = ()
        self._places: tuple[int, ...] = ()
        self._warm: collections.Counter[Any] = collections.Counter()
        self._plans: dict[Any, Work] = {}
        self.captures = self.replays = 0

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """What a run does belongs in such a block: training, and what lies between two steps."""
        return contextlib.nullcontext() if self._graphs is None else self._graphs.stream()

    def forget(self) -> None:
        """Let go of what was recorded, and of the networks that it used."""
        self._plans.clear()
        self._warm.clear()
        self._owners = self._places = ()

    def __call__(
        self,
        learners: Learners,
        objective: Objective,
        store: LabelStore,
        transform: Transform,
        inputs: StepInputs,
        batches: tuple[Batch, ...],
        shares: tuple[Share, ...],
        round_number: int,
        *,
        regular: bool,
    ) -> None:
        """One step. `regular`: each of its batches has the size that was asked for."""
        owners = (learners, objective, store, transform, inputs)
        work = functools.partial(body, *owners, batches, shares, round_number)
        with learners.compiled(regular):
            if not regular or self._ladder.mode != "captured" or self._graphs is None:
                work()
                return
            self._drop_what_moved(owners, (store.placed, inputs.placed, learners.meter.placed))
            key = (
                round_number,
                *((len(b.index), share.count) for b, share in zip(batches, shares, strict=True)),
            )
            if key not in self._plans and self._warm[key] < WARM_UP:
                work()
                self._warm[key] += 1
                return
            replay = self._plans.get(key) or self._capture(self._graphs, key, work, learners)
            replay()
            self.replays += replay is not work

    def _drop_what_moved(self, owners: tuple[Any, ...], places: tuple[int, ...]) -> None:
        """A plan reads and writes where it was recorded: it is of no use for other networks or in other memory."""
        if len(owners) != len(self._owners) or any(
            a is not b for a, b in zip(owners, self._owners, strict=True)
        ):
            self.forget()
        elif places != self._places:
            self._plans.clear()
            for key in self._warm:  # what is new in memory is used once before it is recorded
                self._warm[key] = min(self._warm[key], WARM_UP - 1)
        self._owners, self._places = owners, places

    def _capture(self, graphs: Graphs, key: Any, work: Work, learners: Learners) -> Work:
        """The step's plan; the step itself where it cannot be recorded, and the run steps down."""
        try:
            self._plans[key] = graphs.record(work)
        except RuntimeError as error:
            learners.forget_gradients()
            self.forget()
            self._ladder.step_down("compiled", f"a step cannot be recorded: {first_line(error)}")
            return work
        self.captures += 1
        return self._plans[key]
