"""Which implementation of each kernel runs: the one place that chooses, and can say what it chose.

The reference (torch or numpy, on any device) stands in each kernel's own module. On the CPU some have a numba
twin, on a GPU all have a Triton twin. `FASTDRPL_KERNELS=reference` turns the twins off, to compare or to look for
a fault; the results are the same up to rounding, the draws to the bit. `FASTDRPL_KERNELS_DEBUG=1` looks at indices
before a kernel on a GPU uses them, and waits for the GPU to do so.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Implementation = Literal["reference", "numba", "triton"]
Function = TypeVar("Function", bound=Callable[..., Any])

VARIABLE, DEBUG_VARIABLE = "FASTDRPL_KERNELS", "FASTDRPL_KERNELS_DEBUG"
OPERATIONS = ("augment", "mixup", "loss_head", "pseudo_label", "beta_mixture")
ON_CPU = ("augment", "beta_mixture")  # what has a numba twin
OLDEST_GPU = (7, 0)  # compute capability that Triton compiles for


def constant_when_compiled(function: Function) -> Function:
    """Have torch.compile take what the function returns as it stands, instead of tracing how it asks the driver.

    The mark that `torch.compiler.assume_constant_result` sets; that one imports torch's compiler, which takes seconds
    and loads triton, in every process that has a kernel.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def choose(operation: str, device_type: str) -> Implementation:
    """The implementation of an operation for tensors of a kind of device ("cpu", "cuda", ...).

    Looked up once per process, so that a run does not change its numbers on the way. Raises ValueError for an
    operation that is not in `OPERATIONS`, and for another value of the environment variable than
    "auto" and "reference".
    """
    return _chosen(operation, device_type)


@functools.cache
def _chosen(operation: str, device_type: str) -> Implementation:
    if operation not in OPERATIONS:
        raise ValueError(f"kernel {operation!r}; there are {', '.join(OPERATIONS)}")
    if _read(VARIABLE, ("auto", "reference")) == "reference":
        return "reference"
    if device_type == "cpu" and operation in ON_CPU:
        return "numba"
    if device_type == "cuda" and not missing_triton():
        return "triton"
    return "reference"


@functools.cache
def missing_triton() -> str:
    """Why Triton's kernels cannot run on this machine's GPUs; empty where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (the CUDA build of torch brings it)"
    for device in range(torch.cuda.device_count()):
        if torch.cuda.get_device_capability(device) < OLDEST_GPU:
            return f"{torch.cuda.get_device_name(device)} is older than Triton compiles for"
    return ""


@constant_when_compiled
def debugging() -> bool:
    """Whether what only the device knows (rows, partners, labels in range) is looked at before a kernel starts.

    Looked up once per process. Raises ValueError for another value of the environment variable than "0" and "1".
    """
    return _debugging()


@functools.cache
def _debugging() -> bool:
    return _read(DEBUG_VARIABLE, ("0", "1")) == "1"


def forget() -> None:
    """Look everything up again at the next call: for tests, since a run must not change its numbers on the way."""
    for remembered in (_chosen, missing_triton, _debugging):
        remembered.cache_clear()


def check_range(name: str, values: Tensor, limit: int) -> None:
    """When debugging, ValueError for the first of `values` (n,) that is not in [0, limit).

    Waits for the device, so a step cannot be captured in a CUDA graph while debugging.
    """
    if not debugging():
        return
    outside = ((values < 0) | (values >= limit)).nonzero()
    if len(outside):
        position = int(outside[0])
        raise ValueError(f"{name}[{position}] is {int(values[position])}, want 0 <= {name} < {limit}")


def describe(device: torch.device) -> dict[str, str]:
    """What was chosen for each operation on a device, with the reason where a GPU has no twin: for a run's manifest."""
    chosen: dict[str, str] = {operation: choose(operation, device.type) for operation in OPERATIONS}
    if device.type == "cuda" and (reason := missing_triton()):
        chosen["reason"] = reason
    return chosen


def _read(variable: str, values: tuple[str, ...]) -> str:
    """The environment variable, by default the first of the values it may have."""
    value = os.environ.get(variable, values[0])
    if value not in values:
        raise ValueError(f"{variable}={value}; wanted {' or '.join(values)}")
    return value
