"""What a network has inside, whichever it is: the maps after its stages, and the linear layer over the last."""

from typing import cast

import torch
from torch import Tensor, nn

from fastdrpl.models.preact_resnet import PreActResNet
from fastdrpl.models.resnet import ResNet18


def stage_maps(network: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """The maps (B, width, h, w) after each stage: four of the ResNets, only the last of Inception-ResNet."""
    if isinstance(network, PreActResNet | ResNet18):
        return network.stage_maps(inputs)
    return (network.forward_features(inputs),)  # type: ignore[operator]  # timm's


def classifier(network: nn.Module) -> nn.Linear:
    """The layer that turns the mean of the last map over its pixels into logits."""
    if isinstance(network, PreActResNet):
        return network.linear
    if isinstance(network, ResNet18):
        return network.fc
    return cast(nn.Linear, network.get_classifier())  # type: ignore[operator]  # timm's


@torch.no_grad()
def class_maps(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Class activation maps (Zhou et al., arXiv 1512.04150): (B, C, h, w), and the logits (B, C).

    The last map weighted by the classifier's weights: the mean of a class's map over its pixels, plus the bias, is the
    logit. For a network in evaluation mode.
    """
    last, head = stage_maps(network, inputs)[-1], classifier(network)
    maps = torch.einsum("ck,bkhw->bchw", head.weight, last)
    return maps, maps.mean((2, 3)) + head.bias
