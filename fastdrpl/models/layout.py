"""In which order a network's numbers lie in memory: channels last wherever torch computes that rightly."""

import torch
from torch import nn

FEW_CHANNELS = 16


def choose_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """`channels_last`, which is the faster one, or `contiguous_format` on a CPU where the other is not safe.

    What a network's weights have its maps take on.
    """
    if device.type == "cpu" and any(_corrupts(layer) for layer in network.modules()):
        return torch.contiguous_format
    return torch.channels_last


def _corrupts(layer: nn.Module) -> bool:
    """Whether a CPU's channels_last gradient of this layer's weight writes beyond its memory.

    Seen with torch 2.13 to 2.15 and several threads: 1x1 kernels with a stride, of fewer than 16 input channels.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and set(layer.stride) != {1}
        and layer.in_channels // layer.groups < FEW_CHANNELS
    )
