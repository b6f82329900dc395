"""Agreement of prediction and label: the detector of the two-stage method (arXiv 1802.02679)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Detection, Facts, Statistic, check_labels, lowest_of_each_class, on_host


@dataclass(frozen=True)
class Agreement:
    """Labelled = in each class the most confident `share` of the samples that are predicted as their label says.

    `reads`: the column of predictions. The share counts the agreeing samples of a class, rounded down, at least one
    where there is one; a share of 1 keeps all that agree.
    """

    reads: tuple[str, ...]
    share: float
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Predictions (N, C) -> the split.

        Of equal predictions the first class counts. doubt = 1 - p[y] where prediction and label agree, else
        2 - p[y], so that no sample that disagrees comes before one that agrees; p_noisy = 1 - [agrees] p[y].
        """
        (statistic,) = statistics
        probability, given = on_host(statistic), np.asarray(given)
        if probability.shape != (given.size, num_classes) or given.ndim != 1:
            raise ValueError(
                f"predictions and labels have shapes {probability.shape} and {given.shape}; "
                f"wanted (N, {num_classes}) and (N,)"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; wanted 0 to 1")
        if np.isnan(probability).any():
            raise ValueError("predictions have nan")
        check_labels(given, num_classes)
        confidence = np.take_along_axis(probability, given[:, None], 1)[:, 0].astype(np.float64).clip(0, 1)
        agrees = probability.argmax(1) == given
        doubt = np.where(agrees, 1.0, 2.0) - confidence
        agreeing = np.flatnonzero(agrees)
        labelled = np.zeros(given.size, dtype=bool)
        if self.share > 0:
            labelled[agreeing] = lowest_of_each_class(doubt[agreeing], given[agreeing], self.share)
        found = {"agreeing": int(agreeing.size), "share": self.share}
        warnings = () if agreeing.size else ("no prediction agrees with its label",)
        return Detection(np.minimum(doubt, 1.0), labelled, doubt, Facts(found), warnings=warnings)
