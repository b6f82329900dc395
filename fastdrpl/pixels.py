"""From a batch of stored pixels to the network's input: the augmentation of a pass, after any loader."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdrpl.config import AugmentConfig
from fastdrpl.errors import UserError
from fastdrpl.kernels.augment import augment, centre
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.order import Pass


@dataclass(frozen=True)
class Transform:
    """Crop, flip and normalisation of a data set, resolved."""

    size: int
    pad: int
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def train(self, batch: Batch, pass_: Pass) -> Tensor:
        """Randomly cropped and flipped as the pass keys it: -> (B, 3, size, size) float32."""
        return augment(
            batch.pixels,
            batch.rows,
            batch.index,
            pass_.stream,
            pad=self.pad,
            size=self.size,
            flip=self.flip,
            mean=self.mean,
            std=self.std,
            memory_format=_layout(batch.pixels),
        )

    def plain(self, batch: Batch) -> Tensor:
        """Centre crop: -> (B, 3, size, size) float32."""
        return centre(
            batch.pixels,
            batch.rows,
            size=self.size,
            mean=self.mean,
            std=self.std,
            memory_format=_layout(batch.pixels),
        )


def _layout(pixels: Tensor) -> torch.memory_format:
    # On CPUs torch's channels_last convolutions with few channels corrupt memory (torch 2.13, 2.15).
    return torch.channels_last if pixels.is_cuda else torch.contiguous_format


def resolve_transform(config: AugmentConfig, dataset: Dataset) -> Transform:
    """What a configuration means for a data set. Raises `UserError` for a crop larger than the stored image."""
    pad = dataset.pad if config.pad < 0 else config.pad
    train = dataset.split("train")
    smallest = min(train.height, train.width)
    size = config.size or smallest
    if size > smallest:
        raise UserError(
            f"--augment.size {size}, but the images are stored at {train.height}x{train.width}",
            where=str(dataset.path),
            fix=f"prepare again with a larger --size, or give --augment.size {smallest}",
        )
    flip = dataset.flip if config.flip == "auto" else config.flip == "yes"
    return Transform(size, pad, flip, dataset.mean, dataset.std)
