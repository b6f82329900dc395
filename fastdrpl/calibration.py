"""One temperature for the probabilities of a finished network (Guo et al. 2017, arXiv 1706.04599).

The softmax of logits / T says how sure the network is; T is fitted by maximum likelihood. It changes no decision.

On which labels it is fitted decides what it is worth. Those of a test set were not trained on: they are taken where
there are any. Where they come from unchecked hands, a share of them is wrong, and a temperature that fits them alone
would make the network as unsure as its labellers are; so the share is fitted along, as if such labels were drawn from
all classes alike. Without a test set only training labels that were kept are left. These were chosen for agreeing with
the network, and learnt: they can show that it is too sure, never that it is not sure enough, so T is at least 1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from fastdrpl.errors import DataError

_LOG_T = (-3.0, 3.0)  # T from 0.05 to 20
_MOST_WRONG = 0.95
_ENOUGH = 20_000  # samples: T is then known to a percent or so
_BINS = 15  # of the expected calibration error, as usual


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it was fitted on."""

    temperature: float
    labels: Literal["test", "kept"]  # of the test set, or the training labels that the run kept
    samples: int
    wrong: float | None  # share of wrong labels, where it was fitted along
    error_before: float | None  # expected calibration error on these samples, where their labels are right
    error_after: float | None

    def as_json(self) -> dict[str, Any]:
        """For model.json."""
        return asdict(self)

    def describe(self) -> str:
        """What a user should know of it, in a line."""
        fit = f"temperature {self.temperature:.3g}, fitted to {self.samples:,}"
        if self.labels == "kept":
            return f"{fit} training labels that were kept: there was no test set, so trust it little"
        if self.wrong is not None:
            return f"{fit} test labels, of which {self.wrong:.1%} seem to be wrong"
        return f"{fit} test labels"


def calibration_from(description: Mapping[str, Any], where: Path) -> Calibration | None:
    """What model.json says of it; None where it says nothing. Raises `DataError` for what is no calibration."""
    entry = description.get("calibration")
    if entry is None:
        return None
    try:
        found = Calibration(**entry)
        if not 0 < found.temperature < np.inf:
            raise ValueError(f"a temperature of {found.temperature}")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the calibration of the network cannot be read: {error}",
            where=str(where),
            fix="run the training again",
        ) from error
    return found


def calibrate_on_test(log_p: np.ndarray, label: np.ndarray, *, may_be_wrong: bool) -> Calibration:
    """From the log probabilities (n, C) of test images and their labels (n,)."""
    chosen = some_of(np.arange(len(label)))
    temperature, wrong = fit_temperature(log_p[chosen], label[chosen], may_be_wrong=may_be_wrong)
    if may_be_wrong:
        return Calibration(temperature, "test", len(chosen), wrong, None, None)
    before = calibration_error(log_p[chosen], label[chosen])
    after = calibration_error(log_softmax(log_p[chosen] / temperature, 1), label[chosen])
    return Calibration(temperature, "test", len(chosen), None, before, after)


def calibrate_on_kept(probability: np.ndarray, given: np.ndarray) -> Calibration:
    """From the probabilities (n, C) of training samples whose labels (n,) were kept."""
    log_p = np.log(np.maximum(probability, np.finfo(np.float32).tiny))
    temperature, _ = fit_temperature(log_p, given, may_be_wrong=False)
    return Calibration(max(1.0, temperature), "kept", len(given), None, None, None)


def fit_temperature(log_p: np.ndarray, label: np.ndarray, *, may_be_wrong: bool) -> tuple[float, float]:
    """The most likely temperature, and share of wrong labels (0 unless they may be): of (n, C) and (n,).

    log T has a standard normal prior, which counts as much as one label or two: without it a few samples that are all
    right would make the network certain.
    """
    log_p, classes = log_p.astype(np.float64), log_p.shape[1]
    rows = np.arange(len(label))

    def cost(at: np.ndarray) -> float:
        log_t, wrong = at
        p = np.exp(log_softmax(log_p / np.exp(log_t), 1)[rows, label])
        said = (1 - wrong) * p + wrong / classes
        return float(0.5 * log_t**2 - np.log(np.maximum(said, 1e-300)).sum()) / max(1, len(label))

    most = _MOST_WRONG if may_be_wrong else 0.0
    found = minimize(cost, (0.0, 0.2 * most), method="L-BFGS-B", bounds=(_LOG_T, (0.0, most)))
    return float(np.exp(found.x[0])), float(found.x[1])


def calibration_error(log_p: np.ndarray, label: np.ndarray) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, over 15 equal bins of confidence."""
    confidence, right = np.exp(log_p.max(1)), log_p.argmax(1) == label
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    apart = np.bincount(bins, confidence, _BINS) - np.bincount(bins, right, _BINS)
    return float(np.abs(apart).sum() / len(label))


def some_of(samples: np.ndarray) -> np.ndarray:
    """As many of the samples as a fit needs, evenly spread."""
    return samples[np.linspace(0, len(samples) - 1, min(len(samples), _ENOUGH)).round().astype(np.int64)]
