"""The Gaussian mixture of losses, DivideMix's detector (Li, Socher and Hoi, arXiv 2002.07394, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Curve, Detection, Statistic, check_labels, on_host
from fastdrpl.kernels.gaussian_mixture import GaussianMixture, fit_gaussian_mixture, min_max

POINTS = 400


@dataclass(frozen=True, eq=False)
class GaussianJudgement:
    """What the losses of each of K networks say.

    `clean`: (N, K) float64, w of section 3.1: the posterior of the component with the lower mean. `normalised`: (N, K)
    float64 losses in [0, 1]. `fits`: a mixture for each network.
    """

    clean: npt.NDArray[np.float64]
    normalised: npt.NDArray[np.float64]
    fits: tuple[GaussianMixture, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the fits, each once; with several networks, with the number of the network from 1."""
        several = len(self.fits) > 1
        return tuple(
            f"network {number}: {warning}" if several else warning
            for number, fit in enumerate(self.fits, start=1)
            for warning in fit.warnings
        )


def judge(losses: Statistic) -> GaussianJudgement:
    """Fit a mixture to the min-max normalised losses of each network: (N,), or (N, K) for K networks.

    Infinite losses count as the largest finite one. Raises ValueError for nan, for no samples and other shapes.
    """
    values = on_host(losses).astype(np.float64)
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(f"losses have shape {values.shape}; wanted (N,) or (N, networks)")
    normalised = np.stack([min_max(column) for column in values.reshape(len(values), -1).T], axis=1)
    fits = tuple(fit_gaussian_mixture(column) for column in normalised.T)
    clean = np.stack([fit.posterior(column) for fit, column in zip(fits, normalised.T, strict=True)], axis=1)
    return GaussianJudgement(clean, normalised, fits)


@dataclass(frozen=True)
class GaussianEvidence:
    """The fitted mixtures, of normalised losses, one for each network."""

    fits: tuple[GaussianMixture, ...]
    p_threshold: float

    def to_json(self) -> dict[str, Any]:
        """Threshold, and for each network the two numbers of each parameter."""
        numbers = ("mean", "variance", "weight")
        mixtures = [
            {**{name: list(getattr(fit, name)) for name in numbers}, "iterations": fit.iterations}
            for fit in self.fits
        ]
        return {"p_threshold": self.p_threshold, "mixtures": mixtures}

    def curves(self) -> tuple[Curve, ...]:
        """The two components over the normalised loss, each the mean of what the networks' mixtures say."""
        if any(fit.warnings for fit in self.fits):
            return ()
        x = np.linspace(0.0, 1.0, POINTS)
        density = np.mean([np.exp(fit.log_densities(x)) for fit in self.fits], axis=0)
        return tuple(
            Curve(name, x, density[k]) for k, name in enumerate(("clean component", "noisy component"))
        )


@dataclass(frozen=True)
class NormalisedLossMixture:
    """Labelled = {w > p_threshold}, w the mean over the networks of the posterior of the lower mean (section 3.1).

    `reads`: the column of losses, (N,) or (N, networks). `p_noisy` is 1 - w, `doubt` the mean normalised loss: w alone
    is 0 or 1 to the last bit for many samples and would leave them without an order.
    """

    reads: tuple[str, ...]
    p_threshold: float = 0.5
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Losses of one network or several -> the split."""
        given = np.asarray(given)
        if given.ndim != 1 or tuple(statistics[0].shape[:1]) != given.shape:
            raise ValueError(
                f"losses and labels have shapes {tuple(statistics[0].shape)} and {given.shape}; wanted (N,) or "
                "(N, networks), and (N,)"
            )
        if not 0 <= self.p_threshold < 1:
            raise ValueError(f"p_threshold is {self.p_threshold}; wanted a probability below 1")
        check_labels(given, num_classes)
        found = judge(statistics[0])
        clean = found.clean.mean(1)
        return Detection(
            p_noisy=1.0 - clean,
            labelled=clean > self.p_threshold,
            doubt=found.normalised.mean(1),
            evidence=GaussianEvidence(found.fits, self.p_threshold),
            threshold=1.0 - self.p_threshold,
            measure="normalised loss",
            least=True,
            warnings=found.warnings,
        )
