"""Losses for the tests of the beta mixture, the nasty ones with names."""

import numpy as np


def make_losses(seed: int, count: int = 2000) -> np.ndarray:
    """Losses as in training: a clean heap near 0 and a noisy one, of random place, width and share."""
    random = np.random.default_rng(seed)
    noisy = random.random(count) < random.uniform(0.1, 0.8)
    wrong = random.gamma(random.uniform(3, 15), random.uniform(0.2, 0.6), count)
    right = random.gamma(random.uniform(0.4, 3), random.uniform(0.05, 0.5), count)
    return np.where(noisy, wrong, right)


def _nasty() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    normal = make_losses(3)
    return {
        "one sample": np.array([0.7]),
        "two samples": np.array([0.2, 3.0]),
        "three samples": np.array([0.1, 0.4, 2.0]),
        "constant": np.full(100, 2.5),
        "zeros": np.zeros(10),
        "two values": np.repeat([0.1, 3.0], 50),
        "two values, few": np.repeat([0.0, 5.0], [97, 3]),
        "three values": np.repeat([0.0, 1.0, 9.0], [5, 90, 5]),
        "integers": random.integers(0, 5, 1000).astype(float),
        "a spike and a tail": np.concatenate([np.zeros(500), random.gamma(2, 1, 500)]),
        "outlier": np.append(normal, 1e6),
        "huge outlier": np.append(normal, 1e299),
        "infinite": np.concatenate([normal, np.full(5, np.inf)]),
        "mostly infinite": np.concatenate([normal, np.full(4000, np.inf)]),
        "both infinities": np.array([-np.inf, 0.0, 1.0, np.inf]),
        "tiny": normal * 1e-7,
        "small": normal * 1e-5,
        "large": normal * 1e200,
        "shifted": normal + 1e9,
        "negative": -normal,
        "both signs": random.normal(0, 1, 1000),
        "uniform": random.random(1000),
        "all clean": random.exponential(0.1, 3000),
        "subnormal": np.full(50, 5e-324) * np.arange(50),
        "float32 ties": make_losses(5).astype(np.float32).round(1).astype(float),
        "two far heaps": np.concatenate([random.normal(1, 1e-3, 500), random.normal(9, 1e-3, 500)]),
    }


NASTY = _nasty()
