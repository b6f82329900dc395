"""torchvision's ResNet-18 for large photos, from fresh weights."""

from torch import Tensor, flatten
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock


class ResNet18(ResNet):
    """ResNet-18 (7x7 stem, max-pool) that also gives its features; nothing is downloaded."""

    def __init__(self, num_classes: int):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)

    def stage_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The map after each of the four stages, for (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def stage_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The average-pooled map after each of the four stages, (B, stage width)."""
        return tuple(flatten(self.avgpool(stage_map), 1) for stage_map in self.stage_maps(x))

    def features(self, x: Tensor) -> Tensor:
        """(B, 512): what the linear layer sees."""
        return self.stage_features(x)[-1]


def resnet18(num_classes: int) -> ResNet18:
    """The network of the paper's WebVision runs."""
    return ResNet18(num_classes)
