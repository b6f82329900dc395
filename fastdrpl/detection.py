"""Which samples keep their label: what a detector says, and what to do when it goes wrong.

arXiv 1912.08741, section III-A, equations (3) and (4): labelled = {p_noisy <= gamma}, unlabelled = the rest. A detector
is a pure function from statistics of the samples to a `Detection`; the rescue of classes and the rule for a collapse
stand here and go with any detector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastdrpl.config import DetectConfig
from fastdrpl.errors import CollapseError

RESCUED_SHARE = 100  # a class without labelled samples keeps one in so many, those with the lowest doubt
CLASSES_LISTED = 20
HISTOGRAM_BINS, HISTOGRAM_WIDTH = 10, 40
OTHER_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)

Statistic = npt.NDArray[np.floating] | Tensor


@dataclass(frozen=True)
class Curve:
    """A fitted density for a histogram of the doubt: its integral over `x` is the share of the samples it explains."""

    name: str
    x: npt.NDArray[np.float64]
    density: npt.NDArray[np.float64]


class Evidence(Protocol):
    """What a detector decided by."""

    def to_json(self) -> dict[str, Any]:
        """JSON values for detection.json."""

    def curves(self) -> tuple[Curve, ...]:
        """Fitted densities, where there are any."""


@dataclass(frozen=True)
class Facts:
    """Evidence that is a few numbers."""

    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The numbers."""
        return self.values

    def curves(self) -> tuple[Curve, ...]:
        """None."""
        return ()


@dataclass(frozen=True, eq=False)
class Detection:
    """N samples in two sets. `labelled` keep their label; all others lose it.

    `p_noisy`: (N,) float64 in [0, 1]. `labelled`: (N,) bool. `doubt`: (N,) float64, the statistic that ranks the
    samples (higher = more doubtful), never nan. `evidence`: what it was decided by. `threshold`: of p_noisy, where
    there is one. `measure`: what the doubt is, in words ("loss" is the loss to the given label). `least`: the setting
    behind the threshold is a least probability of being right, 1 - threshold. `warnings`: what a user should know.
    `rescued_classes`: class ids that had no labelled sample and were given those of the lowest doubt.
    """

    p_noisy: npt.NDArray[np.float64]
    labelled: npt.NDArray[np.bool_]
    doubt: npt.NDArray[np.float64]
    evidence: Evidence
    threshold: float | None = None
    measure: str = "doubt"
    least: bool = False
    warnings: tuple[str, ...] = ()
    rescued_classes: tuple[int, ...] = ()


class Detector(Protocol):
    """A pure function of columns of the label store; a frozen dataclass of its thresholds."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns it is given, in order."""

    @property
    def adjustable(self) -> tuple[str, ...]:
        """Dotted names of the settings that nothing but this detection depends on: after a collapse a run goes on
        with another value of them."""

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Split N samples. Raises ValueError for nan, wrong shapes or class ids out of range."""


def guard(
    found: Detection, given: npt.NDArray[np.integer], num_classes: int, settings: DetectConfig
) -> Detection:
    """A detection that can be trained on: enough labelled samples, and some in each class that has any.

    Raises `CollapseError` when fewer samples than classes are labelled, unless `settings.collapse` is "relax": then the
    `collapse_share` of each class with the lowest doubt is kept, with a warning.
    """
    warnings, labelled = list(found.warnings), found.labelled
    if labelled.sum() < num_classes:
        if settings.collapse == "stop":
            raise _collapse(found, num_classes)
        labelled = lowest_of_each_class(found.doubt, given, settings.collapse_share)
        warnings.append(
            f"only {int(found.labelled.sum())} labels count as right, fewer than the {num_classes} classes: "
            f"the {settings.collapse_share:.0%} with the lowest doubt in each class are kept instead "
            "(--detect.collapse relax)"
        )
    if labelled.all():
        warnings.append(f"all {labelled.size} samples count as clean{at(found)}: none loses its label")
    members = np.bincount(given, minlength=num_classes)
    kept = np.bincount(given[labelled], minlength=num_classes)
    bare = [int(c) for c in np.flatnonzero((kept == 0) & (members > 0))]
    absent = [int(c) for c in np.flatnonzero(members == 0)]
    if bare and settings.rescue == "yes":
        warnings.append(
            f"no sample counts as clean in {_list(bare)}: the lowest-{found.measure} 1 % keep their label"
        )
        labelled = labelled | (
            lowest_of_each_class(found.doubt, given, 1 / RESCUED_SHARE) & np.isin(given, bare)
        )
    elif bare:
        warnings.append(f"no sample counts as clean in {_list(bare)}: no label of theirs is kept")
    if absent:
        warnings.append(f"no sample has a label of {_list(absent)}")
    rescued = tuple(bare) if settings.rescue == "yes" else ()
    return dataclasses.replace(found, labelled=labelled, warnings=tuple(warnings), rescued_classes=rescued)


def lowest_of_each_class(
    doubt: npt.NDArray[np.floating], given: npt.NDArray[np.integer], share: float
) -> npt.NDArray[np.bool_]:
    """The `share` of each class with the lowest doubt, rounded down, at least one sample: (N,), (N,) -> (N,) bool.

    Ties go to the smaller index.
    """
    chosen = np.zeros(len(given), dtype=bool)
    for c in np.unique(given):
        samples = np.flatnonzero(given == c)
        lowest = np.argsort(doubt[samples], kind="stable")
        chosen[samples[lowest[: max(1, int(samples.size * share + 1e-9))]]] = True
    return chosen


def on_host(values: Statistic) -> npt.NDArray[Any]:
    """A statistic as a numpy array."""
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def check_labels(given: npt.NDArray[np.integer], num_classes: int) -> None:
    """ValueError unless `given` is (N,) of class ids."""
    if given.ndim != 1:
        raise ValueError(f"labels have shape {given.shape}; wanted (N,)")
    if given.size and not (given.min() >= 0 and given.max() < num_classes):
        raise ValueError(f"labels reach from {given.min()} to {given.max()}; wanted 0 to {num_classes - 1}")


def _list(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:CLASSES_LISTED]))
    more = f" and {len(classes) - CLASSES_LISTED} more" if len(classes) > CLASSES_LISTED else ""
    return f"class{'es' if len(classes) > 1 else ''} {shown}{more}"


def _collapse(found: Detection, num_classes: int) -> CollapseError:
    kept = "" if found.threshold is None else f"\nOther thresholds would keep {', '.join(_others(found))}."
    of = "losses to the given labels" if found.measure == "loss" else f"doubts ({found.measure})"
    return CollapseError(
        f"only {int(found.labelled.sum())} of {found.doubt.size} samples count as clean{at(found)}, fewer than the "
        f"{num_classes} classes. The {of}:\n{draw_text_histogram(found.doubt)}{kept}",
        fix="no training is lost: the same command with another threshold goes on from here (or with "
        "--detect.collapse relax); check that the labels belong to these images",
    )


def at(found: Detection) -> str:
    """` at gamma 0.5`, in the terms of the setting; empty where there is no threshold."""
    if found.threshold is None:
        return ""
    return f" at probability {1 - found.threshold:g}" if found.least else f" at gamma {found.threshold:g}"


def _others(found: Detection) -> list[str]:
    """How many labels other values of the setting would keep."""
    return [
        f"{int((found.p_noisy <= (1 - value if found.least else value)).sum()):,} at {value:g}"
        for value in OTHER_THRESHOLDS
    ]


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
