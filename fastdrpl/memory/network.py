"""What a network leaves in memory for its backward pass, found out by two images that go through one."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdrpl.models import build_model

_IMAGES = 2  # one would be too few for batch normalisation of a map of one pixel


@dataclass(frozen=True)
class NetworkSize:
    """Of one network and one image in fp32."""

    parameters: int  # numbers, those of batch normalisation's statistics included
    saved: int  # bytes that wait for the backward pass
    largest: int  # bytes of the largest tensor among them


@functools.cache
def network_size(name: str, classes: int, width: int, side: int) -> NetworkSize:
    """Of a network of this name for images of `side` pixels. Raises `UserError` as `build_model` does."""
    network = build_model(name, classes, width, seed=0)
    held: dict[int, Tensor] = {}  # by storage: what two operations keep is there once

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(_IMAGES, 3, side, side))
    own = [*network.parameters(), *network.buffers()]
    for tensor in own:
        held.pop(tensor.untyped_storage()._cdata, None)
    sizes = [tensor.untyped_storage().nbytes() for tensor in held.values()]
    return NetworkSize(
        parameters=sum(tensor.numel() for tensor in own),
        saved=sum(sizes) // _IMAGES,
        largest=max(sizes, default=0) // _IMAGES,
    )
