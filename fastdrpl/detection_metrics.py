"""How good a split and an order are where the truth is known.

Of a split, and of a ROC curve, *clean* is the positive class (arXiv 1912.08741, Table I and Fig. 3): TPR = share of the
clean samples that keep their label, FPR = share of the noisy ones. What a list of suspects is worth is asked the other
way round: average precision and precision at k count the *noisy* samples among the most doubtful.
"""

from dataclasses import dataclass
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
    _check_numbers(score)
    clean, noisy = known & ~noisy, known & noisy
    return {
        "labelled": int(labelled.sum()),
        "unlabelled": int((~labelled).sum()),
        "auc": _area_under_roc(score[clean], score[noisy]),
        "tpr": float(labelled[clean].mean()) if clean.any() else None,
        "fpr": float(labelled[noisy].mean()) if noisy.any() else None,
    }


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Both shares as the threshold on the score rises, corner after corner, from (0, 0) to (1, 1)."""

    fpr: npt.NDArray[np.float64]  # (K,) share of the noisy samples that keep their label
    tpr: npt.NDArray[np.float64]  # (K,) share of the clean ones


def roc_curve(score: npt.NDArray[np.floating], is_noisy: NoisyLabels) -> RocCurve | None:
    """The ROC curve of a score (N,), lower for cleaner; samples of equal score make one straight piece.

    None where no sample is known to be clean, or none to be noisy. Raises ValueError for wrong shapes or nan.
    """
    steps = _steps(score, is_noisy)
    if steps is None or steps.clean[-1] == 0 or steps.noisy[-1] == 0:
        return None
    fpr, tpr = np.append(0, steps.noisy), np.append(0, steps.clean)
    inner = np.diff(fpr[:-1]) * np.diff(tpr[1:]) != np.diff(fpr[1:]) * np.diff(tpr[:-1])  # counts: exact
    corners = np.concatenate([[True], inner, [True]])
    return RocCurve(fpr[corners] / fpr[-1], tpr[corners] / tpr[-1])


def average_precision(score: npt.NDArray[np.floating], is_noisy: NoisyLabels) -> float | None:
    """Mean over the noisy samples of the share of noisy ones among all that are at least as doubtful.

    `score` (N,) is higher for more doubtful samples. None where no sample is known to be noisy. Raises ValueError for
    wrong shapes or nan.
    """
    steps = _steps(score, is_noisy)
    if steps is None or steps.noisy[-1] == 0:
        return None
    noisy = np.append(0, steps.noisy)[-1] - np.append(0, steps.noisy)[:-1]  # with at least this score
    clean = np.append(0, steps.clean)[-1] - np.append(0, steps.clean)[:-1]
    found = noisy - np.append(noisy[1:], 0)
    return float((found * noisy / (noisy + clean)).sum() / noisy[0])


def precision_at(k: int, score: npt.NDArray[np.floating], is_noisy: NoisyLabels) -> float | None:
    """Share of noisy samples among the `k` of the highest score (N,), of those whose truth is known.

    Where samples of equal score stand on both sides of the cut, each of them counts by its chance to be among the k.
    None where fewer than `k` are known. Raises ValueError for k below 1, wrong shapes or nan.
    """
    if k < 1:
        raise ValueError(f"precision at {k}; wanted 1 or more")
    steps = _steps(score, is_noisy)
    if steps is None or steps.noisy[-1] + steps.clean[-1] < k:
        return None
    below = np.append(0, steps.noisy + steps.clean)  # samples under each distinct score
    cut = below[-1] - k  # so many are left out
    noisy_left_out = np.interp(cut, below, np.append(0, steps.noisy).astype(np.float64))
    return float((steps.noisy[-1] - noisy_left_out) / k)


@dataclass(frozen=True, eq=False)
class _Steps:
    """How many samples have at most each distinct score, from the lowest on: (K,) int64 each."""

    clean: npt.NDArray[np.int64]
    noisy: npt.NDArray[np.int64]


def _steps(score: npt.NDArray[np.floating], is_noisy: NoisyLabels) -> _Steps | None:
    """None where the truth of no sample is known."""
    score = np.asarray(score, dtype=np.float64)
    noisy, known = np.asarray(is_noisy.noisy, dtype=bool), np.asarray(is_noisy.known, dtype=bool)
    if not (score.shape == noisy.shape == known.shape and score.ndim == 1):
        shapes = ", ".join(str(a.shape) for a in (score, noisy, known))
        raise ValueError(f"score, noisy and known have shapes {shapes}; wanted (N,) three times")
    _check_numbers(score)
    if not known.any():
        return None
    order = np.argsort(score[known], kind="stable")
    ordered, noisy = score[known][order], noisy[known][order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # the last of each group of equal scores
    count = np.cumsum(noisy, dtype=np.int64)
    return _Steps((np.arange(1, noisy.size + 1) - count)[last], count[last])


def _check_numbers(score: npt.NDArray[np.floating]) -> None:
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {score.size} scores are nan; wanted numbers")


def _area_under_roc(clean: npt.NDArray[np.float64], noisy: npt.NDArray[np.float64]) -> float | None:
    """Mann-Whitney: the rank sum of the noisy losses, ties at their middle rank."""
    if clean.size == 0 or noisy.size == 0:
        return None
    ranks = rankdata(np.concatenate([clean, noisy]))[clean.size :]
    return float((ranks.sum() - noisy.size * (noisy.size + 1) / 2) / (clean.size * noisy.size))
