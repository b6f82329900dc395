"""Images and crops that the tests of augmentation share."""

import numpy as np
import torch

from fastdrpl.kernels.philox import Stream

MEAN, STD = (0.49, 0.48, 0.44), (0.2, 0.25, 0.26)
COLOURS = {"mean": MEAN, "std": STD}
STREAM = Stream(5, 1, 2, 3)
CIFAR = {"pad": 4, "size": 32, "flip": True}


def images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    # No zeros: a black pixel in a crop is padding.
    return torch.randint(
        1, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalise_slowly(crops: np.ndarray) -> np.ndarray:
    return ((crops / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)
