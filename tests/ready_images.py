"""Images of a step that are augmented already."""

from dataclasses import dataclass

from torch import Tensor

from fastdrpl.kernels.mixup import mix


@dataclass(frozen=True)
class ReadyImages:
    """Network inputs (b, 3, H, W) as `fastdrpl.stages.Images`."""

    inputs: Tensor

    def plain(self) -> Tensor:
        return self.inputs

    def pair(self, partner: Tensor, coefficient: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs, mix(self.inputs, partner, coefficient)
