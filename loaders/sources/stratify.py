"""Division of a source without a test set: by class, keyed, the same on every machine."""

import numpy as np

from fastdrpl.kernels.philox import words
from fastdrpl.loaders.order import Pass, Purpose


def choose_test_rows(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows for testing, ascending: of each class the nearest whole number to `fraction` of its rows.

    `labels` is (n,) int64. A class keeps at least one row for training.
    """
    stream = Pass(seed, stage=0, epoch=0, purpose=Purpose.split).stream
    high, low = words(stream, np.arange(len(labels), dtype=np.int64))[:2]
    by_key = np.lexsort((low, high))  # one random order of all rows
    chosen = []
    for label in np.unique(labels):
        rows = by_key[labels[by_key] == label]
        chosen.append(rows[: min(int(fraction * len(rows) + 0.5), len(rows) - 1)])
    return np.sort(np.concatenate(chosen))
