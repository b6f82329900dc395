"""What is cut out of a stored image and how it goes to the network: the one value that augmentation takes.

Operations of torch take simple types only: `Crop.unpacked` is what crosses that border, `pack_crop` its way back.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch

Kind = Literal["pad", "resized"]
Colour = tuple[float, float, float]  # a number for each of red, green and blue
Simple = tuple[str, int, int, bool, list[float], list[float], torch.dtype, bool]

KINDS = ("pad", "resized")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A crop, its normalisation and the form of the result (B, 3, size, size); the operations check it.

    `kind`: "pad" is a random place in the image padded with black, `pad` pixels on each side; "resized" a cut of random
    area and ratio, which has no padding. `size`: pixels a side of the result. `flip`: mirror every second one. `mean`
    and `std`: of three channels in 0..1 units. `memory_format`: contiguous, or channels_last on CUDA.
    """

    size: int
    mean: Colour
    std: Colour
    kind: Kind = "pad"
    pad: int = 0
    flip: bool = False
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a pixel lie side by side in the result."""
        return self.memory_format == torch.channels_last

    def unpacked(self) -> Simple:
        """Kind, pad, size, flip, mean, std, dtype and whether channels come last, as operations of torch take them."""
        mean, std = list(self.mean), list(self.std)
        return self.kind, self.pad, self.size, self.flip, mean, std, self.dtype, self.channels_last


def pack_crop(
    kind: str,
    pad: int,
    size: int,
    flip: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Crop:
    """The crop of which these are the numbers that `Crop.unpacked` gives."""
    return Crop(
        kind=cast(Kind, kind),
        pad=pad,
        size=size,
        flip=flip,
        mean=cast(Colour, tuple(mean)),
        std=cast(Colour, tuple(std)),
        dtype=dtype,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
