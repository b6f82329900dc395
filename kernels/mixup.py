"""Mixing of images and soft targets (mixup; Zhang et al. 2018, used in section III-C of the DRPL paper)."""

import torch
from torch import Tensor


def partners(keys: Tensor) -> Tensor:
    """A permutation of a batch from one key a sample: (b,) int64 -> (b,) int64, the stable order of the keys."""
    return torch.argsort(keys, stable=True)


def mix(values: Tensor, partner: Tensor, coefficient: Tensor) -> Tensor:
    """coefficient * x + (1 - coefficient) * x[partner]: (b, ...), (b,), () -> (b, ...).

    The coefficient is a tensor on the device of the values, so that no step waits for the host.
    """
    return torch.lerp(values.index_select(0, partner), values, coefficient.to(values.dtype))
