"""The probability of the given label as detector: PENCIL's learnt labels (arXiv 1903.07788), NLNL's mean prediction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Detection, Facts, Statistic, check_labels, on_host

ROUNDING = 1e-5  # by so much a softmax in float32 may leave [0, 1]


@dataclass(frozen=True)
class Confidence:
    """Labelled = {p[y] >= threshold}; 1 - p[y] is both the doubt and the probability of being noisy.

    `reads`: one column, p[y] (N,) or whole predictions p (N, C).
    """

    reads: tuple[str, ...]
    threshold: float
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Probabilities (N,) or (N, C) -> the split."""
        given = np.asarray(given)
        check_labels(given, num_classes)
        probability = on_host(statistics[0]).astype(np.float64)
        if probability.shape == (given.size, num_classes):
            probability = probability[np.arange(given.size), given]
        if probability.shape != given.shape:
            raise ValueError(
                f"probabilities have shape {probability.shape}; "
                f"wanted ({given.size},) or ({given.size}, {num_classes})"
            )
        if not ((probability >= -ROUNDING) & (probability <= 1 + ROUNDING)).all():  # false for nan as well
            raise ValueError("probabilities of the given labels must lie in [0, 1]")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; wanted a probability")
        probability = probability.clip(0.0, 1.0)
        return Detection(
            p_noisy=1 - probability,
            labelled=probability >= self.threshold,
            doubt=1 - probability,
            evidence=Facts({"least_probability_of_the_given_label": self.threshold}),
            threshold=1 - self.threshold,
            measure="1 - p of the given label",
            least=True,
        )
