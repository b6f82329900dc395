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
    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
    return moved.copy_(tensor)
