"""Two-component beta mixture of per-sample losses: which samples fit their label, and which do not.

What: the losses, brought to (0, 1) by their 5th and 95th percentile, are explained by two beta distributions,
of which the one with the lower mean holds the clean samples. Fitted by EM with the method of moments
(arXiv 1912.08741, section III-A; arXiv 1904.11238, section 3.1). Why a twin: the published fit evaluates a scipy
density 20 times over all samples. Its cost: four reads of the losses, then per iteration 24 bytes and one
exponential per sample. The reference comes first, then the public operation; the twins are `cpu/beta_mixture.py`
and, for losses on a GPU, `gpu/beta_mixture.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaln, expit
from torch import Tensor

from fastdrpl.kernels.dispatch import choose

Array = npt.NDArray[np.float64]
Backend = Literal["auto", "numba", "reference", "triton"]

OUTER_PERCENTILES = (5.0, 95.0)  # what lies outside is dropped for the fit
LOW_OFFSET = 1e-5  # the published code writes 10e-6
RANGE_OFFSET = 1e-6
EDGE = 1e-3  # distance from 0 and 1 of what lies on them or beyond; the published code writes 10e-4
DENSITY_FLOOR = 1e-12
START = ((1.0, 2.0), (2.0, 1.0))  # (alpha, beta) of either component
SMALLEST_PARAMETER = 1e-3
LARGEST_CONCENTRATION = 1e4  # alpha + beta; keeps the variance from reaching 0
INFINITE = 1e300  # larger losses count as infinite, so that no difference of two losses overflows
LOOKUP_BINS = 100
ENDS = (1e-12, 1 - 1e-12)  # where the published table begins and ends; no u is scored beyond
NO_LOSSES = "no losses to fit a mixture to; wanted at least one"


class Fit(NamedTuple):
    """What a back end hands over: (2,) parameters per component, the range, and how much spread was found."""

    alpha: Array
    beta: Array
    weight: Array
    low: float
    high: float
    spread: Literal["middle", "whole", "none"]  # of the middle 90 %, of all samples only, or none at all


# --- the reference ---


def fit_reference(losses: Array, iterations: int) -> Fit:
    """Fit the mixture with numpy and scipy. Takes (N,) finite float64, N >= 1."""
    low, high = (float(value) for value in np.percentile(losses, OUTER_PERCENTILES))
    spread: Literal["middle", "whole"] = "middle"
    u = _normalise_for_fit(losses[(losses >= low) & (losses <= high)], low, high)
    if high - low <= LOW_OFFSET or u.size == 0 or u.min() == u.max():
        low, high, spread = float(losses.min()), float(losses.max()), "whole"
        if high - low <= LOW_OFFSET:
            return no_spread(low, high)
        u = _normalise_for_fit(losses, low, high)
    alpha, beta, weight = _fit_by_moments(u, iterations)
    return Fit(alpha, beta, weight, low, high, spread)


def _normalise_for_fit(losses: Array, low: float, high: float) -> Array:
    """Bring losses to (0, 1) as the published code does. Losses at most 1e-5 above `low` move to 1e-3."""
    u = (losses - (low + LOW_OFFSET)) / scale_of(low, high)
    u[u >= 1] = 1 - EDGE
    u[u <= 0] = EDGE
    return u


def _fit_by_moments(u: Array, iterations: int) -> tuple[Array, Array, Array]:
    """EM with moments in place of likelihood. (N,) in (0, 1) -> (2,) alpha, beta, weight."""
    from scipy.stats import beta as beta_distribution  # takes a second to import: only who wants it pays

    (alpha, beta), weight = np.array(START).T, np.array([0.5, 0.5])
    for _ in range(iterations):
        densities = [weight[k] * beta_distribution.pdf(u, alpha[k], beta[k]) for k in (0, 1)]
        share = np.maximum(densities, DENSITY_FLOOR)
        share /= share.sum(axis=0)
        total = share.sum(axis=1)
        mean = share @ u / total
        variance = np.array([share[k] @ (u - mean[k]) ** 2 / total[k] for k in (0, 1)])
        for k in (0, 1):
            alpha[k], beta[k] = match_moments(float(mean[k]), float(variance[k]))
        weight = share.mean(axis=1)
    return alpha, beta, weight


def match_moments(mean: float, variance: float) -> tuple[float, float]:
    """The beta distribution with this mean and variance, as (alpha, beta), kept away from 0 and infinity."""
    mean = min(max(mean, ENDS[0]), ENDS[1])
    concentration = mean * (1 - mean) / variance - 1 if variance > 0 else LARGEST_CONCENTRATION
    alpha = mean * min(concentration, LARGEST_CONCENTRATION)
    beta = alpha * (1 - mean) / mean
    return max(alpha, SMALLEST_PARAMETER), max(beta, SMALLEST_PARAMETER)


def posterior_reference(losses: Array, low: float, high: float, odds: "LogOdds") -> Array:
    """Probability of the noisy component of (N,) losses; never falls where the loss rises.

    Unlike the fit it leaves losses at or below `low` in their order: moved to 1e-3 they would overtake others.
    """
    with np.errstate(over="ignore"):  # an infinite quotient is a loss at the end
        u = np.clip((losses - (low + LOW_OFFSET)) / scale_of(low, high), odds.smallest, odds.largest)
    return np.asarray(expit(odds.constant + odds.log_u * np.log(u) + odds.log_rest * np.log1p(-u)))


def posterior_lookup(losses: Array, low: float, high: float, table: Array) -> Array:
    """The published posterior: the table's entry at floor(100 u), (N,)."""
    with np.errstate(over="ignore"):
        u = np.clip((losses - (low + LOW_OFFSET)) / scale_of(low, high), EDGE, 1 - EDGE)
    return np.asarray(table[(LOOKUP_BINS * u).astype(np.int64)])


def scale_of(low: float, high: float) -> float:
    return max(high - (low + LOW_OFFSET) + RANGE_OFFSET, RANGE_OFFSET)


# --- what both back ends share ---


class LogOdds(NamedTuple):
    """log(p / (1 - p)) = constant + log_u log(u) + log_rest log(1 - u), u held in [smallest, largest]."""

    constant: float
    log_u: float
    log_rest: float
    smallest: float
    largest: float


def no_spread(low: float, high: float) -> Fit:
    """The fit of losses that are all equal: nothing points at wrong labels, so all are clean."""
    return Fit(np.ones(2), np.ones(2), np.array([1.0, 0.0]), low, high, "none")


def monotone_log_odds(alpha: npt.ArrayLike, beta: npt.ArrayLike, weight: npt.ArrayLike) -> LogOdds:
    """Log-odds of component 1 against 0, made non-decreasing.

    Their slope da/u - db/(1 - u), with da, db the differences of the parameters, is zero once at most, at
    u* = da/(da + db). Where both are positive the odds would fall beyond u*, where both are negative they
    would fall up to u*: there the value at u* is held. With da <= 0 <= db they fall everywhere: constant.
    """
    (alpha0, alpha1), (beta0, beta1), (weight0, weight1) = (
        np.asarray(a, float) for a in (alpha, beta, weight)
    )
    constant = _log(weight1) - _log(weight0) - float(betaln(alpha1, beta1) - betaln(alpha0, beta0))
    difference_alpha, difference_beta = float(alpha1 - alpha0), float(beta1 - beta0)
    smallest, largest = ENDS
    if difference_alpha <= 0 <= difference_beta:
        smallest = largest = 0.5
    elif difference_alpha > 0 and difference_beta > 0:
        largest = min(max(difference_alpha / (difference_alpha + difference_beta), smallest), largest)
    elif difference_alpha < 0 and difference_beta < 0:
        smallest = min(max(difference_alpha / (difference_alpha + difference_beta), smallest), largest)
    return LogOdds(constant, difference_alpha, difference_beta, smallest, largest)


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else -math.inf


def lookup_table(alpha: npt.ArrayLike, beta: npt.ArrayLike, weight: npt.ArrayLike) -> Array:
    """The published table of posteriors: (100,), its right tail made monotone, its left one as it comes."""
    from scipy.stats import beta as beta_distribution

    alpha, beta, weight = (np.asarray(a, float) for a in (alpha, beta, weight))
    u = np.linspace(*ENDS, LOOKUP_BINS)
    clean, noisy = (weight[k] * beta_distribution.pdf(u, alpha[k], beta[k]) for k in (0, 1))
    table = noisy / (clean + noisy + 1e-12)
    table[np.argmax(table) :] = table.max()
    return np.asarray(table)


@dataclass(frozen=True)
class BetaMixture:
    """Two beta distributions of the normalised loss, the clean one (lower mean) first.

    `alpha`, `beta`, `weight`: two numbers each. `low`, `high`: the 5th and 95th percentile of the losses, or
    the smallest and largest loss where those two coincide. `warnings`: what a user should know of the fit.
    """

    alpha: tuple[float, float]
    beta: tuple[float, float]
    weight: tuple[float, float]
    low: float
    high: float
    warnings: tuple[str, ...] = ()

    def posterior(
        self, losses: Any, *, compat: Literal["exact", "lookup"] = "exact", backend: Backend = "auto"
    ) -> Any:
        """Probability that each sample belongs to the noisy component.

        Takes (N,) losses (numpy or a torch tensor), gives (N,) float64 in [0, 1]: a tensor on the same device for
        losses on a GPU, else numpy. "exact" never falls where the loss rises (up to rounding, 1e-12); "lookup", the
        published table of 100 bins, can. Raises ValueError for nan; an infinite loss is as noisy (or, below, as
        clean) as a loss can be.
        """
        if compat not in ("exact", "lookup"):
            raise ValueError(f"compat is {compat!r}; wanted 'exact' or 'lookup'")
        chosen, device = _resolve(backend, losses), _device_of(losses)
        if chosen == "triton":
            return self._posterior_on_device(_device_vector(losses), compat)
        posterior = self._posterior_on_host(_vector(losses), compat, chosen)
        return posterior if device.type == "cpu" else torch.from_numpy(posterior).to(device)

    def _posterior_on_host(self, values: Array, compat: str, backend: Backend) -> Array:
        _refuse_nan(values, backend)
        if compat == "lookup":
            table = lookup_table(self.alpha, self.beta, self.weight)
            return posterior_lookup(values, self.low, self.high, table)
        odds = monotone_log_odds(self.alpha, self.beta, self.weight)
        if math.isinf(odds.constant):  # one weight is zero
            return np.full(values.shape, float(odds.constant > 0))
        return _posterior_of(backend)(values, self.low, self.high, odds)

    def _posterior_on_device(self, values: Tensor, compat: str) -> Tensor:
        from fastdrpl.kernels.gpu.beta_mixture import look_up, score

        if compat == "lookup":
            table = lookup_table(self.alpha, self.beta, self.weight)
            posterior = look_up(values, self.low + LOW_OFFSET, scale_of(self.low, self.high), table)
        else:
            odds = monotone_log_odds(self.alpha, self.beta, self.weight)
            numbers = (*odds, self.low + LOW_OFFSET, scale_of(self.low, self.high))
            posterior = score(values, torch.tensor(numbers, dtype=torch.float64, device=values.device))
        if bool(posterior.isnan().any()):
            _refuse_nan(_vector(values), "reference")
        return posterior


def fit_beta_mixture(losses: Any, *, backend: Backend = "auto", iterations: int = 10) -> BetaMixture:
    """Fit the mixture to (N,) losses (numpy or a torch tensor; computed in float64).

    "reference" is numpy and scipy; "numba" and, for losses on a GPU, "triton" give the same numbers faster; "auto" is
    what `dispatch.choose` says for the device of the losses. None depends on the number of threads.
    Infinite losses count as the largest finite one. Without spread the mixture is defined, with a warning.
    Raises ValueError for nan, for no samples, for no finite loss, and for an array that is not (N,).
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; wanted at least 1")
    chosen = _resolve(backend, losses)
    if chosen == "triton":
        return _fit_on_device(_device_vector(losses), iterations)
    values, infinite = _settle(_vector(losses), chosen)
    if values.size == 0:
        raise ValueError(NO_LOSSES)
    return describe_fit(_fit_of(chosen)(values, iterations), infinite, values.size)


def _fit_on_device(losses: Tensor, iterations: int) -> BetaMixture:
    """Fit on the losses' device and wait for it once, at the end."""
    from fastdrpl.kernels.gpu.beta_mixture import fit, read_fit

    count = losses.numel()
    if count == 0:
        raise ValueError(NO_LOSSES)
    found, unknown, infinite = read_fit(fit(losses, iterations))
    if unknown:
        _refuse_nan(_vector(losses), "reference")
    if infinite == count:
        raise ValueError(f"all {count} losses are infinite; wanted at least one finite loss")
    return describe_fit(found, infinite, count)


def describe_fit(fit: Fit, infinite: int, count: int) -> BetaMixture:
    """Sort the components by mean and put into words what was unusual."""
    mean = fit.alpha / (fit.alpha + fit.beta)
    order = [0, 1] if mean[0] <= mean[1] else [1, 0]
    notes = []
    if infinite:
        notes.append(f"{infinite} of {count} losses are infinite: they count as the largest finite loss")
    if fit.spread == "none":
        notes.append(f"all {count} losses are equal (within {LOW_OFFSET:g}): every sample counts as clean")
    elif fit.spread == "whole":
        notes.append("the middle 90 % of the losses has no spread: the mixture is fitted to all of them")
    if fit.spread != "none" and bool(np.any(fit.alpha + fit.beta >= LARGEST_CONCENTRATION * (1 - 1e-9))):
        notes.append("a component has shrunk to a point: the losses take few distinct values")
    if fit.spread != "none" and abs(mean[0] - mean[1]) < 1e-6:
        notes.append("the two components coincide: the losses do not tell clean from noisy")
    alpha, beta, weight = (
        (float(a[order[0]]), float(a[order[1]])) for a in (fit.alpha, fit.beta, fit.weight)
    )
    return BetaMixture(alpha, beta, weight, fit.low, fit.high, tuple(notes))


def _device_of(losses: Any) -> torch.device:
    return losses.device if isinstance(losses, Tensor) else torch.device("cpu")


def _resolve(backend: Backend, losses: Any) -> Backend:
    """The back end to use. Raises ValueError for one that does not exist or cannot run where the losses are."""
    kind = _device_of(losses).type
    if backend == "auto":
        return choose("beta_mixture", kind)
    if backend not in ("numba", "reference", "triton"):
        raise ValueError(f"backend is {backend!r}; wanted 'auto', 'numba', 'reference' or 'triton'")
    if backend == "triton" and kind != "cuda":
        raise ValueError(f"backend is 'triton' and the losses are on {kind}; wanted a tensor on a GPU")
    return backend


def _device_vector(losses: Tensor) -> Tensor:
    """(N,) float32 or float64 of a tensor of real numbers, where it is. Raises TypeError or ValueError."""
    if losses.dtype == torch.bool or losses.is_complex():
        raise TypeError(f"losses have dtype {losses.dtype}; wanted real numbers")
    if losses.ndim != 1:
        raise ValueError(f"losses have shape {tuple(losses.shape)}; wanted (N,)")
    exact = losses.dtype in (torch.float32, torch.float64)
    return (losses if exact else losses.double()).contiguous()


def _vector(losses: Any) -> Array:
    """(N,) float64 of an array or tensor of real numbers. Raises TypeError or ValueError."""
    values = np.asarray(losses.cpu() if isinstance(losses, Tensor) else losses)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"losses have dtype {values.dtype}; wanted real numbers")
    if values.ndim != 1:
        raise ValueError(f"losses have shape {values.shape}; wanted (N,)")
    return np.ascontiguousarray(values, dtype=np.float64)


def _refuse_nan(values: Array, backend: Backend) -> None:
    if backend == "numba":
        from fastdrpl.kernels.cpu.beta_mixture import all_within

        if all_within(values, math.inf):
            return
    unknown = np.flatnonzero(np.isnan(values))
    if unknown.size:
        first = ", ".join(str(position) for position in unknown[:5]) + (", ..." if unknown.size > 5 else "")
        raise ValueError(
            f"{unknown.size} of {values.size} losses are nan (positions {first}); wanted numbers"
        )


def _settle(values: Array, backend: Backend) -> tuple[Array, int]:
    """Replace infinite losses by the nearest finite one and count them. Raises ValueError for nan."""
    if backend == "numba":
        from fastdrpl.kernels.cpu.beta_mixture import all_within

        if all_within(values, INFINITE):
            return values, 0
    _refuse_nan(values, backend)
    finite = np.abs(values) <= INFINITE
    if finite.all():
        return values, 0
    if not finite.any():
        raise ValueError(f"all {values.size} losses are infinite; wanted at least one finite loss")
    return np.clip(values, values[finite].min(), values[finite].max()), int(values.size - finite.sum())


def _fit_of(backend: Backend) -> Callable[[Array, int], Fit]:
    if backend == "numba":
        from fastdrpl.kernels.cpu.beta_mixture import fit

        return fit
    return fit_reference


def _posterior_of(backend: Backend) -> Callable[[Array, float, float, LogOdds], Array]:
    if backend == "numba":
        from fastdrpl.kernels.cpu.beta_mixture import posterior

        return posterior
    return posterior_reference
