"""Co-division: the split of an epoch that one network of DivideMix makes for the other, and the one that is reported.

Li, Socher and Hoi, arXiv 2002.07394, section 3.1. The published code fails where a set is empty; here each case is
defined, and a column counts the epochs in which a sample was labelled for that reason only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrpl.config import DetectConfig
from fastdrpl.detection import Detection, Facts, Statistic, guard, on_host
from fastdrpl.detectors.gaussian_mixture import NormalisedLossMixture, judge
from fastdrpl.loaders.order import SMALLEST_TAIL

LEAST = SMALLEST_TAIL  # a batch of fewer samples says nothing to batch normalisation


@dataclass(frozen=True, eq=False)
class CoDivision:
    """What each of K networks says of N samples, as columns for the label store.

    `clean`: (N, K) float32, w of section 3.1. `kept`: (N, K) bool, the samples labelled for the other network.
    `by_rule`: (N, K) bool, those of them with w <= p_threshold.
    """

    clean: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    by_rule: npt.NDArray[np.bool_]


def co_divide(normalised: Statistic, given: Statistic, p_threshold: float, rescue: bool) -> CoDivision:
    """Labelled = {w > p_threshold} for each network: (N, K) normalised losses, (N,) labels.

    Fewer labelled samples than classes: the tenth of each class with the lowest loss is labelled instead. With `rescue`
    a class that has none keeps the hundredth of it with the lowest loss. Never fewer than `LEAST` in all.
    Raises ValueError for nan.
    """
    found, labels = judge(normalised), on_host(given)
    settings = DetectConfig(collapse="relax", rescue="yes" if rescue else "no")
    split = found.clean > p_threshold
    kept = np.empty_like(split)
    for network in range(split.shape[1]):
        doubt = found.normalised[:, network]
        first = Detection(1.0 - found.clean[:, network], split[:, network], doubt, Facts({}))
        kept[:, network] = guard(first, labels, int(labels.max()) + 1, settings).labelled
        if kept[:, network].sum() < LEAST:
            kept[np.argsort(doubt, kind="stable")[:LEAST], network] = True
    return CoDivision(found.clean.astype(np.float32), kept, kept & ~split)


@dataclass(frozen=True)
class CoDivided:
    """The Gaussian mixture of the last losses, which also says what the splits on the way to them needed.

    Reads the normalised losses (N, networks) and the count of epochs (N, networks) in which a sample was labelled
    `by_rule`.
    """

    reads: tuple[str, ...]
    p_threshold: float
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """The split by the mean of the networks' posteriors."""
        mixture = NormalisedLossMixture(self.reads[:1], self.p_threshold)
        found = mixture(statistics[:1], given, num_classes)
        epochs = on_host(statistics[1]).reshape(len(given), -1)
        notes = tuple(
            f"in at least {int(column.max())} epochs the split by network {number} had too few labels, of a class "
            f"or at all: {int((column > 0).sum())} samples of low loss were labelled for that"
            for number, column in enumerate(epochs.T, start=1)
            if column.any()
        )
        return dataclasses.replace(found, warnings=(*found.warnings, *notes))
