"""Agreement with a network that never saw the sample, INCV's detector (arXiv 1905.05040)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Detection, Statistic, on_host
from fastdrpl.detectors.agreement import Agreement


@dataclass(frozen=True)
class HeldOut:
    """Labelled = the samples that were predicted as their label says when they were last held out.

    `reads`: the column of those predictions, and the one that tells the last halves (0, 1; -1 for samples in neither).
    """

    reads: tuple[str, str]
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Predictions (N, C) and halves (N,) -> the split; doubt and p_noisy as of `Agreement`."""
        prediction, halves = statistics[0], on_host(statistics[1])
        found = Agreement(self.reads[:1], 1.0)([prediction], given, num_classes)
        given = np.asarray(given)
        warnings = [*found.warnings]
        several = len(np.unique(given)) > 1
        for half in (0, 1):
            classes = np.unique(given[halves == half])
            if not classes.size:
                warnings.append(
                    f"in the last iteration half {half + 1} was empty: all samples had been decided before"
                )
            elif classes.size == 1 and several:
                warnings.append(
                    f"in the last iteration half {half + 1} held labels of class {classes[0]} only: "
                    "agreement with a network of one class says little"
                )
        return dataclasses.replace(found, warnings=tuple(warnings))
