"""A CUDA graph's behaviour on the CPU: operations are recorded with the memory they use, and done again there.

What a captured step may not do is refused as CUDA refuses it, and what a replay would not see is not seen here
either: a number that Python read, a tensor that was replaced, a cast that was kept from before.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fastdrpl.pixels import Transform

# What asks the device for numbers; CUDA refuses it in a capture.
WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.bincount.default,
}


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: list[tuple[Any, tuple, dict, list[Tensor]]]):
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in WAITS:
            raise RuntimeError(f"{function} in a recorded step: CUDA would refuse it")
        if function is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            raise RuntimeError("an index of booleans in a recorded step: CUDA would refuse it")
        result = function(*args, **kwargs)
        # Views and what is written in place need no place of their own: the argument's is used again.
        aliases = any(value.alias_info is not None for value in function._schema.returns)
        made = [] if aliases else [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        if made or function._schema.is_mutable:
            self.tape.append((function, args, kwargs, made))
        return result


class CpuGraphs:
    """`fastdrpl.runner.Graphs`: a recording leaves `state` tensors as they were, as a capture does nothing."""

    def __init__(self):
        self.recordings = 0

    def stream(self):
        return contextlib.nullcontext()

    def record(self, work):
        tape: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        learners, _, store = work.args[:3]
        state = [
            *(value for network in learners.networks for value in network.state_dict().values()),
            *(value["momentum_buffer"] for value in learners.sgd.state.values()),
            *store.state().values(),
            *(learners.meter.values, learners.meter.bad, learners.meter._bad_index),
        ]
        kept = [value.detach().clone() for value in state]
        recorder = _Recorder(tape)
        with _images_as_one_operation(recorder), recorder:
            work()
        with torch.no_grad():
            for value, before in zip(state, kept, strict=True):
                value.copy_(before)
        self.recordings += 1

        def replay() -> None:
            with torch.no_grad():
                for function, args, kwargs, made in tape:
                    result = function(*args, **kwargs)
                    found = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
                    for place, value in zip(made, found, strict=False):
                        place.copy_(value)

        return replay


@contextlib.contextmanager
def _images_as_one_operation(recorder: _Recorder):
    """numba's kernels write past torch: what makes the images is recorded as a whole, by the tensors it reads."""
    sound = {name: getattr(Transform, name) for name in ("train", "pair")}

    def recorded(name):
        def make(transform, batch, stream, *mixture):
            def function(*tensors):
                pixels, rows, index, words, *rest = tensors
                return sound[name](transform, type(batch)(pixels, rows, index), words, *rest)

            args = (*batch, stream, *mixture)
            with torch.utils._python_dispatch._disable_current_modes():
                result = function(*args)
            recorder.tape.append((function, args, {}, list(result) if name == "pair" else [result]))
            return result

        return make

    for name in sound:
        setattr(Transform, name, recorded(name))
    try:
        yield
    finally:
        for name, function in sound.items():
            setattr(Transform, name, function)
