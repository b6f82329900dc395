"""Where the kernels for GPUs are tested: on a GPU, or here in Triton's interpreter (see conftest.py)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


def either(launcher: Callable[..., Any], operation: Callable[..., Any]) -> Callable[..., Any]:
    """What a test calls: the registered operation on a GPU, else the launcher, which the interpreter runs.

    The operation itself would run the reference on CPU tensors: a comparison with itself cannot fail.
    """
    return operation if ON_GPU else launcher


def on_device(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors where the kernels run, with their strides."""
    return tuple(_with_strides(tensor) for tensor in tensors)


def _with_strides(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device == DEVICE:
        return tensor
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    span = (
        last + 1 if tensor.numel() else 0
    )  # of the memory that it looks at, which may be some numbers twice
    return tensor.as_strided((span,), (1,)).to(DEVICE).as_strided(tensor.shape, tensor.stride())
