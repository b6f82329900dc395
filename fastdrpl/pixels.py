"""From a batch of stored pixels to the network's input: the augmentation of a pass, after any loader."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastdrpl.config import AugmentConfig
from fastdrpl.errors import UserError
from fastdrpl.kernels.augment import LARGEST_RESIZED, augment, centre
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.mixup import augment_pair
from fastdrpl.kernels.philox import Stream
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.stages import VIEWS


@dataclass(frozen=True)
class Transform:
    """Crop, flip and normalisation of a data set, resolved."""

    size: int
    pad: int
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: Literal["pad", "resized"] = "pad"

    def train(self, batch: Batch, stream: Stream | Tensor) -> Tensor:
        """Randomly cropped and flipped as the stream keys it: -> (B, 3, size, size) float32."""
        return augment(*batch, stream, self._crop(batch))

    def pair(
        self, batch: Batch, stream: Stream | Tensor, partner: Tensor, coefficient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`train`, and the same mixed: coefficient () * image + (1 - coefficient) * that of `partner` (B,)."""
        return augment_pair(*batch, stream, partner, coefficient, self._crop(batch))

    def plain(self, batch: Batch) -> Tensor:
        """Centre crop: -> (B, 3, size, size) float32."""
        return centre(batch.pixels, batch.rows, self._crop(batch))

    def _crop(self, batch: Batch) -> Crop:
        return Crop(
            kind=self.crop,
            pad=self.pad if self.crop == "pad" else 0,
            size=self.size,
            flip=self.flip,
            mean=self.mean,
            std=self.std,
            # A CPU's kernels write the one order only (`learners.Trainee.lay`).
            memory_format=torch.channels_last if batch.pixels.is_cuda else torch.contiguous_format,
        )


@dataclass(frozen=True)
class Augmented:
    """The images of a batch as a pass augments them, made when they are asked for (`stages.Images`)."""

    transform: Transform
    batch: Batch
    words: Tensor  # (5,) int64, the key words of the pass (`kernels.streams`)

    def __call__(self, view: int = 0) -> Tensor:
        """Augmented: (B, 3, size, size)."""
        return self.transform.train(self.batch, self._stream(view))

    def pair(self, partner: Tensor, coefficient: Tensor, view: int = 0) -> tuple[Tensor, Tensor]:
        """The same and its mixture, see `Transform.pair`."""
        return self.transform.pair(self.batch, self._stream(view), partner, coefficient)

    def plain(self) -> Tensor:
        """The centre crop."""
        return self.transform.plain(self.batch)

    def _stream(self, view: int) -> Tensor:
        if not 0 <= view < VIEWS:
            raise ValueError(f"view of a minibatch: got {view}, want 0 <= view < {VIEWS}")
        if view == 0:
            return self.words
        words = self.words.clone()
        words[-1] += view
        return words


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
    if config.crop == "resized" and config.pad > 0:
        raise UserError(
            f"--augment.pad {config.pad} with --augment.crop resized, which does not pad",
            fix="leave out one of the two",
        )
    if config.crop == "resized" and max(train.height, train.width) > LARGEST_RESIZED:
        raise UserError(
            f"--augment.crop resized, but the images are stored at {train.height}x{train.width}",
            where=str(dataset.path),
            fix=f"prepare again with --size {LARGEST_RESIZED} or less",
        )
    flip = dataset.flip if config.flip == "auto" else config.flip == "yes"
    return Transform(size, pad, flip, dataset.mean, dataset.std, config.crop)
