"""Labels for the tests of noise."""

import numpy as np

from fastdrpl.noise import draw_noise
from fastdrpl.noise_config import NoiseConfig

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def names_of(classes: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(classes))


def draw(
    truth: np.ndarray, names: tuple[str, ...] = CIFAR10, superclass: tuple[int, ...] | None = None, **config
):
    return draw_noise(truth, np.arange(len(truth)), names, NoiseConfig(**config), superclass=superclass)


def random_truth(samples: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, samples)
