"""What the launchers of this folder share: how a kernel is started, and how an operation is registered."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from triton.runtime.jit import JITFunction

Function = TypeVar("Function", bound=Callable[..., Any])

NAMESPACE = "fastdrpl"


def wrap_triton(kernel: Any) -> Any:
    """The kernel as torch.compile sees it, `wrap_triton(kernel)[grid](...)`; interpreted kernels stay as they are.

    Named like torch's own, which does not take interpreted kernels in every version: torch finds the kernels of an
    operation by this name in the launcher's source, and keys by them what torch.compile keeps on disk.
    """
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def register(
    name: str, reference: Callable[..., Any], *, mutates: tuple[str, ...] = ()
) -> Callable[[Function], Any]:
    """Register a launcher as `torch.ops.fastdrpl.NAME`, with `reference` of the same signature for CPU tensors.

    torch.compile sees through the operation on either kind of device, to the kernels or to the reference. The
    decorated name is the operation; the launcher itself stays what it was (use it as `register(...)(launcher)`).
    """

    def decorate(launcher: Function) -> Any:
        @functools.wraps(launcher)
        def run(*arguments: Any, **keywords: Any) -> Any:
            first = next(value for value in arguments if isinstance(value, torch.Tensor))
            return (reference if first.device.type == "cpu" else launcher)(*arguments, **keywords)

        operation: Any = torch.library.triton_op(f"{NAMESPACE}::{name}", run, mutates_args=mutates)
        operation.register_kernel("cpu")(reference)
        return operation

    return decorate
