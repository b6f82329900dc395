"""How good a split and an order are where the truth is known; *clean* is the positive class.

Paper, Table I and Fig. 3: TPR = share of the clean samples that keep their label, FPR = share of the noisy ones.
"""

from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from fastdrpl.labels import NoisyLabels


class DetectionMetrics(TypedDict):
    """Counts, and how well the detection did where the truth is known (fractions; *clean* is the positive class)."""

    labelled: int
    unlabelled: int
    auc: float | None
    tpr: float | None
    fpr: float | None


def detection_metrics(
    labelled: npt.NDArray[np.bool_], score: npt.NDArray[np.floating], is_noisy: NoisyLabels
) -> DetectionMetrics:
    """How good a split is. All arguments are of N samples; `score` is the loss, lower for cleaner.

    tpr = share of the clean samples that are labelled, fpr = share of the noisy ones; auc = probability that a
    clean sample has a lower loss than a noisy one, ties counting half. None where the truth is unknown
    throughout, or no sample is clean (tpr, auc) or noisy (fpr, auc). Samples of unknown truth are in the counts
    alone. Raises ValueError for wrong shapes or nan.
    """
    labelled, score = np.asarray(labelled, dtype=bool), np.asarray(score, dtype=np.float64)
    noisy, known = np.asarray(is_noisy.noisy, dtype=bool), np.asarray(is_noisy.known, dtype=bool)
    if not (labelled.shape == score.shape == noisy.shape == known.shape and labelled.ndim == 1):
        shapes = ", ".join(str(a.shape) for a in (labelled, score, noisy, known))
        raise ValueError(f"split, losses, noisy and known have shapes {shapes}; wanted (N,) four times")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {score.size} losses are nan; wanted numbers")
    clean, noisy = known & ~noisy, known & noisy
    return {
        "labelled": int(labelled.sum()),
        "unlabelled": int((~labelled).sum()),
        "auc": _area_under_roc(score[clean], score[noisy]),
        "tpr": float(labelled[clean].mean()) if clean.any() else None,
        "fpr": float(labelled[noisy].mean()) if noisy.any() else None,
    }


def _area_under_roc(clean: npt.NDArray[np.float64], noisy: npt.NDArray[np.float64]) -> float | None:
    """Mann-Whitney: the rank sum of the noisy losses, ties at their middle rank."""
    if clean.size == 0 or noisy.size == 0:
        return None
    ranks = rankdata(np.concatenate([clean, noisy]))[clean.size :]
    return float((ranks.sum() - noisy.size * (noisy.size + 1) / 2) / (clean.size * noisy.size))
