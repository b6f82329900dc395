"""The beta mixture of losses, DRPL's and M-correction's detector (arXiv 1912.08741, section III-A; 1904.11238, 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastdrpl.config import DetectConfig
from fastdrpl.detection import Curve, Detection, Statistic, check_labels, guard, on_host
from fastdrpl.kernels.beta_mixture import BetaMixture, fit_beta_mixture

POINTS = 400


@dataclass(frozen=True)
class MixtureEvidence:
    """The fitted mixture."""

    fit: BetaMixture
    gamma: float

    def to_json(self) -> dict[str, Any]:
        """Threshold, and the two numbers of each parameter."""
        fit = self.fit
        numbers = {name: list(map(float, getattr(fit, name))) for name in ("alpha", "beta", "weight")}
        return {"gamma": self.gamma, "mixture": {**numbers, "low": float(fit.low), "high": float(fit.high)}}

    def curves(self) -> tuple[Curve, ...]:
        """The two components over the loss."""
        from scipy.stats import beta

        fit = self.fit
        span = fit.high - fit.low
        if span <= 0 or fit.warnings:
            return ()
        u = np.linspace(1e-3, 1 - 1e-3, POINTS)
        return tuple(
            Curve(name, fit.low + u * span, fit.weight[k] * beta.pdf(u, fit.alpha[k], fit.beta[k]) / span)
            for k, name in enumerate(("clean component", "noisy component"))
        )


@dataclass(frozen=True)
class LossMixture:
    """Labelled = {posterior of the noisy component <= gamma} (equations 3 and 4).

    `reads`: the column that the mixture is fitted to, and the one that the posterior is computed from (the published
    method takes two passes of different augmentation); one name where they are the same.
    """

    reads: tuple[str, ...]
    gamma: float
    adjustable: tuple[str, ...] = ()
    compat: Literal["exact", "lookup"] = "exact"

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Losses (N,), once or twice -> the split. Losses on a GPU are fitted and scored there."""
        fit_losses, score_losses = statistics[0], statistics[-1]
        given = np.asarray(given)
        if not (tuple(fit_losses.shape) == tuple(score_losses.shape) == given.shape and given.ndim == 1):
            shapes = f"{tuple(fit_losses.shape)}, {tuple(score_losses.shape)} and {given.shape}"
            raise ValueError(
                f"losses to fit, losses to score and labels have shapes {shapes}; wanted (N,) three times"
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; wanted a probability")
        check_labels(given, num_classes)
        fit = fit_beta_mixture(fit_losses)
        p_noisy = on_host(fit.posterior(score_losses, compat=self.compat))
        doubt = on_host(score_losses).astype(np.float64)
        evidence = MixtureEvidence(fit, self.gamma)
        return Detection(
            p_noisy, p_noisy <= self.gamma, doubt, evidence, self.gamma, "loss", warnings=fit.warnings
        )


def detect(
    fit_losses: Statistic,
    score_losses: Statistic,
    given: npt.NDArray[np.integer],
    num_classes: int,
    gamma: float,
    *,
    compat: Literal["exact", "lookup"] = "exact",
) -> Detection:
    """`LossMixture` and `guard` in one call: (N,) losses to fit, (N,) losses to score, (N,) class ids -> the split.

    Raises CollapseError when fewer samples than classes count as clean; ValueError for nan, wrong shapes or ids.
    """
    found = LossMixture(("fit", "score"), gamma, compat=compat)(
        [
            values if hasattr(values, "device") else np.asarray(values)
            for values in (fit_losses, score_losses)
        ],
        given,
        num_classes,
    )
    return guard(found, np.asarray(given), num_classes, DetectConfig())
