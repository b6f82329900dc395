"""Confident learning, by the library cleanlab: an outside peer (Northcutt et al., arXiv 1911.00068).

From the samples' class probabilities it estimates how many labels of each class are really of each other class, and
takes so many labels for wrong, those that the probabilities contradict most. It asks for probabilities of networks
that have not been trained on the sample. What is given to it here comes from the network of the run, which has been:
see `CAVEAT`.
"""

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Detection, Facts, Statistic, check_labels, on_host
from fastdrpl.errors import UserError

INSTALL = "pip install 'cleanlab>=2.6'"
CAVEAT = (
    "confident learning is made for out-of-sample probabilities, and these are of the network that was trained on "
    "the same labels: the more of them it has learnt by heart, the fewer look wrong"
)
CLOSE = 1e-3  # how far from 1 the probabilities of a sample may add up to, in half precision
WARNINGS_SHOWN = 3


@dataclass(frozen=True)
class ConfidentLearning:
    """Labelled = what cleanlab's `find_label_issues` does not name, pruning by noise rate (its default).

    `reads`: the column of probabilities (N, C). The doubt is 1 - p[y], cleanlab's self-confidence turned round.
    """

    reads: tuple[str, ...]
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Probabilities (N, C) -> the split.

        Raises UserError where cleanlab is missing; ValueError for wrong shapes, class ids out of range, or rows that
        are no probabilities.
        """
        given = np.asarray(given)
        probabilities = _checked(on_host(statistics[0]).astype(np.float64), given, num_classes)
        issues, said = _find(probabilities, given.astype(np.int64))
        doubt = 1 - probabilities[np.arange(given.size), given]
        facts = Facts({"issues": int(issues.sum()), "filter_by": "prune_by_noise_rate"})
        return Detection(doubt, ~issues, doubt, facts, warnings=(*said, CAVEAT))


def require_cleanlab() -> Any:
    """cleanlab's module of filters. Raises UserError with the line that installs it."""
    try:
        return importlib.import_module("cleanlab.filter")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("cleanlab")
        raise UserError(
            "cleanlab is not installed" if missing else f"cleanlab does not import: {error}", fix=INSTALL
        ) from error


def _find(
    probabilities: npt.NDArray[np.float64], given: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Which labels cleanlab names, (N,) bool, and its warnings. With fewer than two classes nothing can be told."""
    library = require_cleanlab()
    present = np.unique(given)
    if present.size < 2:
        return np.zeros(given.size, bool), ("fewer than two classes have samples: no label can be doubted",)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        issues = library.find_label_issues(
            labels=given, pred_probs=probabilities, filter_by="prune_by_noise_rate", n_jobs=1
        )
    said = [f"cleanlab: {warning.message}" for warning in caught]
    more = (f"cleanlab: {len(said) - WARNINGS_SHOWN} more warnings",) if len(said) > WARNINGS_SHOWN else ()
    return np.asarray(issues, dtype=bool), (*said[:WARNINGS_SHOWN], *more)


def _checked(
    values: npt.NDArray[np.float64], given: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.float64]:
    """The probabilities, each row scaled to sum to 1."""
    if given.ndim != 1 or values.shape != (given.size, num_classes):
        raise ValueError(
            f"probabilities and labels have shapes {values.shape} and {given.shape}; wanted (N, {num_classes}) and (N,)"
        )
    check_labels(given, num_classes)
    total = values.sum(axis=1)
    wrong = ~((values >= 0).all(axis=1) & (np.abs(total - 1) <= CLOSE))  # true for nan as well
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {len(values)} rows are no probabilities: >= 0 with a sum of 1"
        )
    return values / total[:, None]
