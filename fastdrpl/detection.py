"""Which samples keep their label: a beta mixture of the losses, a threshold, and what to do when it goes wrong.

arXiv 1912.08741, section III-A, equations (3) and (4): labelled = {p_noisy <= gamma}, unlabelled = the rest.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from torch import Tensor

from fastdrpl.errors import CollapseError
from fastdrpl.kernels.beta_mixture import BetaMixture, fit_beta_mixture
from fastdrpl.labels import NoisyLabels

RESCUED_SHARE = 100  # a class without labelled samples keeps one in so many, those with the lowest loss
CLASSES_LISTED = 20
HISTOGRAM_BINS, HISTOGRAM_WIDTH = 10, 40


@dataclass(frozen=True, eq=False)
class Detection:
    """N samples in two sets. `labelled` keep their label; all others lose it.

    `p_noisy`: (N,) float64 in [0, 1]. `labelled`: (N,) bool. `fit`: the mixture. `warnings`: what a user should
    know. `rescued_classes`: class ids that had no labelled sample and were given their lowest-loss 1 %.
    """

    p_noisy: npt.NDArray[np.float64]
    labelled: npt.NDArray[np.bool_]
    fit: BetaMixture
    warnings: tuple[str, ...]
    rescued_classes: tuple[int, ...]


class DetectionMetrics(TypedDict):
    """Counts, and how well the detection did where the truth is known (fractions; *clean* is the positive class)."""

    labelled: int
    unlabelled: int
    auc: float | None
    tpr: float | None
    fpr: float | None


def detect(
    fit_losses: npt.NDArray[np.floating] | Tensor,
    score_losses: npt.NDArray[np.floating] | Tensor,
    given: npt.NDArray[np.integer],
    num_classes: int,
    gamma: float,
    *,
    compat: Literal["exact", "lookup"] = "exact",
) -> Detection:
    """Split N samples by the probability that their label is noisy.

    The mixture is fitted to `fit_losses` (N,), the probability computed from `score_losses` (N,); the published
    method takes two passes of different augmentation. Losses on a GPU are fitted and scored there.
    `given`: (N,) class ids. `gamma` in [0, 1].
    Raises CollapseError when fewer samples than classes count as clean; ValueError for nan, wrong shapes or ids.
    """
    fit_losses, score_losses = (
        losses if isinstance(losses, Tensor) else np.asarray(losses) for losses in (fit_losses, score_losses)
    )
    given = np.asarray(given)
    if not (fit_losses.shape == score_losses.shape == given.shape and given.ndim == 1):
        shapes = f"{fit_losses.shape}, {score_losses.shape} and {given.shape}"
        raise ValueError(
            f"losses to fit, losses to score and labels have shapes {shapes}; wanted (N,) three times"
        )
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; wanted a probability")
    if given.size and not (given.min() >= 0 and given.max() < num_classes):
        raise ValueError(f"labels reach from {given.min()} to {given.max()}; wanted 0 to {num_classes - 1}")
    fit = fit_beta_mixture(fit_losses)
    p_noisy, losses = (_on_host(a) for a in (fit.posterior(score_losses, compat=compat), score_losses))
    labelled = p_noisy <= gamma
    if labelled.sum() < num_classes:
        raise _collapse(losses, int(labelled.sum()), num_classes, gamma)
    warnings = list(fit.warnings)
    if labelled.all():
        warnings.append(
            f"all {labelled.size} samples count as clean at gamma {gamma:g}: none loses its label"
        )
    labelled, rescued, absent = _rescue(labelled, losses, given, num_classes)
    if rescued:
        warnings.append(
            f"no sample counts as clean in {_list(rescued)}: the lowest-loss 1 % keep their label"
        )
    if absent:
        warnings.append(f"no sample has a label of {_list(absent)}")
    return Detection(p_noisy, labelled, fit, tuple(warnings), tuple(rescued))


def _on_host(values: npt.NDArray[np.floating] | Tensor) -> npt.NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _rescue(
    labelled: npt.NDArray[np.bool_],
    losses: npt.NDArray[np.floating],
    given: npt.NDArray[np.integer],
    num_classes: int,
) -> tuple[npt.NDArray[np.bool_], list[int], list[int]]:
    """Give each class with samples but none labelled its lowest losses -> (labelled, rescued, absent classes)."""
    members = np.bincount(given, minlength=num_classes)
    kept = np.bincount(given[labelled], minlength=num_classes)
    rescued = [int(c) for c in np.flatnonzero((kept == 0) & (members > 0))]
    labelled = labelled.copy()
    for c in rescued:
        samples = np.flatnonzero(given == c)
        lowest = np.argsort(losses[samples], kind="stable")[: max(1, samples.size // RESCUED_SHARE)]
        labelled[samples[lowest]] = True
    return labelled, rescued, [int(c) for c in np.flatnonzero(members == 0)]


def _list(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:CLASSES_LISTED]))
    more = f" and {len(classes) - CLASSES_LISTED} more" if len(classes) > CLASSES_LISTED else ""
    return f"class{'es' if len(classes) > 1 else ''} {shown}{more}"


def _collapse(
    losses: npt.NDArray[np.floating], labelled: int, num_classes: int, gamma: float
) -> CollapseError:
    return CollapseError(
        f"only {labelled} of {losses.size} samples count as clean at gamma {gamma:g}, fewer than the "
        f"{num_classes} classes. The losses to the given labels:\n{draw_text_histogram(losses)}",
        fix="check that the labels belong to these images, or try a larger gamma or a longer stage in another --run",
    )


def draw_text_histogram(losses: npt.NDArray[np.floating]) -> str:
    """Ten lines: from, to, a bar, the count. (N,) losses without nan; infinite ones are counted on a line below."""
    finite = np.asarray(losses, dtype=np.float64)[np.isfinite(losses)]
    if finite.size == 0:
        return "  (no finite loss)"
    low, high = finite.min(), finite.max()
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1) if low < high else np.array([low, high])
    counts = np.histogram(finite, edges)[0] if low < high else np.array([finite.size])
    lines = [
        f"  {edges[k]:10.4g} to {edges[k + 1]:10.4g}  {'#' * -(-HISTOGRAM_WIDTH * int(n) // int(counts.max()))} {n}"
        for k, n in enumerate(counts)
    ]
    if finite.size < len(losses):
        lines.append(f"  infinite: {len(losses) - finite.size}")
    return "\n".join(lines)


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
