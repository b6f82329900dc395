"""Images that are in a prepared set more than once: under two labels, or in the training set and the test set.

Compared are the images as they are stored. Only where the marks of two agree are they read whole.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FIELD = "identical_images"  # of dataset.json
PAIRS = 10  # that dataset.json lists of each kind


def group_identical(rows: np.ndarray, looks: np.ndarray, read: Callable[[int], bytes]) -> list[list[int]]:
    """Groups of two or more rows with one and the same image, by their first row; rows are ascending.

    `rows`: (n,) ascending. `looks`: (n,) uint64, equal where the images are. `read(row)`: its bytes as stored.
    """
    _, group, counts = np.unique(looks, return_inverse=True, return_counts=True)
    by_digest: dict[bytes, list[int]] = {}
    for row in rows[counts[group] > 1].tolist():
        by_digest.setdefault(hashlib.sha256(read(row)).digest(), []).append(row)
    return [found for found in by_digest.values() if len(found) > 1]


def count_identical(
    groups: Sequence[Sequence[int]],
    labels: np.ndarray,
    split: np.ndarray,
    name: Callable[[int], dict[str, Any]],
) -> dict[str, Any]:
    """What dataset.json says of identical images: how many groups of them, and the first pairs.

    `two_labels`: groups whose images have different labels. `train_and_test`: groups with images in both splits.
    `repeated`: how many images could be left out because the same image is there before.
    """

    def listed(of: np.ndarray) -> dict[str, Any]:
        others = [(rows[0], next((row for row in rows if of[row] != of[rows[0]]), None)) for rows in groups]
        pairs = [(first, other) for first, other in others if other is not None]
        return {"groups": len(pairs), "pairs": [[name(row) for row in pair] for pair in pairs[:PAIRS]]}

    repeated = sum(len(rows) - 1 for rows in groups)
    return {"repeated": repeated, "two_labels": listed(labels), "train_and_test": listed(split)}
