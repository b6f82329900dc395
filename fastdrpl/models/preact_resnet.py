"""PreAct ResNet-18 for small images (He et al. 2016, in the variant of the published DRPL code)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch normalisation and ReLU.

    The shortcut starts from h = relu(bn1(x)), also where it is the identity: He et al. take x there.
    """

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        changes = stride != 1 or width_in != width_out
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width_out, H/stride, W/stride)."""
        h = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + self.shortcut(h)


class PreActResNet(nn.Module):
    """Stem, four stages of blocks, global average pool, linear. No max-pool; nothing after the last block."""

    def __init__(self, num_classes: int, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        width_in = width
        for number, depth in enumerate(blocks):
            width_out = width << number
            strides = [1 if number == 0 else 2] + [1] * (depth - 1)
            stage = nn.Sequential()
            for stride in strides:
                stage.append(PreActBlock(width_in, width_out, stride))
                width_in = width_out
            self.stages.append(stage)
        self.linear = nn.Linear(width_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The map after each stage, for (B, 3, H, W): 32x32 images end in 4x4, 64x64 in 8x8."""
        x = F.relu(self.stem_bn(self.stem(x)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)

    def stage_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The average-pooled map after each stage, (B, stage width): what linear probes look at."""
        return tuple(_pool(stage_map) for stage_map in self.stage_maps(x))

    def features(self, x: Tensor) -> Tensor:
        """(B, 8 * width): what the linear layer sees; may be negative."""
        return _pool(self.stage_maps(x)[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C)."""
        return self.linear(self.features(x))


def preact_resnet18(num_classes: int, width: int = 64) -> PreActResNet:
    """The paper's network: widths w, 2w, 4w, 8w; 11,171,274 parameters for 10 classes at width 64."""
    return PreActResNet(num_classes, width)


def _pool(stage_map: Tensor) -> Tensor:
    return torch.flatten(F.adaptive_avg_pool2d(stage_map, 1), 1)
