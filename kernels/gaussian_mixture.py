"""Two-component Gaussian mixture of numbers on a line: which losses are low, and which are high.

What: maximum likelihood by EM for two normal distributions, as DivideMix fits them to the losses of an epoch (Li,
Socher and Hoi, arXiv 2002.07394, section 3.1) with scikit-learn's `GaussianMixture(2, max_iter=10, tol=1e-2,
reg_covar=5e-4)`: the same updates, the same stopping rule, the same floor under the variances. The start is not
random: scikit-learn runs k-means from random centres, here the values are divided into the two groups that k-means
looks for, exactly.

Its cost for N numbers: one sort, then for each of at most ten iterations two exponentials and a logarithm a number.
On one core that is under a second at N = 1.28 million, once an epoch and network: numpy in float64 is all there is.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Array = npt.NDArray[np.float64]

ITERATIONS = 10
TOLERANCE = 1e-2  # a change of the mean log-likelihood below it ends the EM
VARIANCE_FLOOR = 5e-4  # is added to each variance
COUNT_FLOOR = 10 * np.finfo(np.float64).eps  # is added to each component's number of samples
LARGEST = 1e100  # squares of larger numbers would overflow
FAR = 1e6  # standard deviations


@dataclass(frozen=True)
class GaussianMixture:
    """Two normal distributions, the one with the lower mean first.

    `mean`, `variance`, `weight`: two numbers each. `iterations`: how many the EM took; `converged`: whether the
    stopping rule ended it, and not their number. `warnings`: what a user should know of the fit.
    """

    mean: tuple[float, float]
    variance: tuple[float, float]
    weight: tuple[float, float]
    iterations: int
    converged: bool
    warnings: tuple[str, ...] = ()

    def posterior(self, values: npt.ArrayLike) -> Array:
        """Probability of the component with the lower mean (section 3.1, w_i): (N,) -> (N,) float64 in [0, 1].

        Where the two variances differ it is Bayes' rule all the same, and turns back on one side, as published. Raises
        ValueError for nan.
        """
        numbers = np.asarray(values, dtype=np.float64)
        if np.isnan(numbers).any():
            raise ValueError("nan among the values to score; wanted numbers")
        if self.weight[1] == 0:
            return np.ones(numbers.shape)
        reach = FAR * math.sqrt(max(self.variance))  # nothing changes beyond, and squares stay finite
        log_low, log_high = self.log_densities(np.clip(numbers, self.mean[0] - reach, self.mean[1] + reach))
        return np.asarray(expit(log_low - log_high))

    def log_densities(self, values: Array) -> Array:
        """Logarithm of weight times density of each component: (N,) -> (2, N)."""
        return _log_densities(values, np.array(self.mean), np.array(self.variance), np.array(self.weight))


def fit_gaussian_mixture(
    values: npt.ArrayLike,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    variance_floor: float = VARIANCE_FLOOR,
) -> GaussianMixture:
    """Fit the mixture to (N,) finite numbers, N >= 1, in float64. Their order does not matter, to the bit.

    Without spread the mixture is defined, with a warning: one component, to which everything belongs. Raises ValueError
    for nan, infinite or no numbers, for an array that is not (N,), and for settings out of range.
    """
    numbers = np.sort(_vector(values))
    if iterations < 1 or not tolerance >= 0 or not 0 < variance_floor < math.inf:
        raise ValueError(
            f"iterations {iterations}, tolerance {tolerance}, variance floor {variance_floor}: wanted at least 1, "
            "at least 0 and a positive number"
        )
    if numbers[0] == numbers[-1]:
        only, note = float(numbers[0]), f"all {numbers.size} values are equal: they make one component"
        return GaussianMixture((only, only), (variance_floor, variance_floor), (1.0, 0.0), 0, True, (note,))
    high = np.arange(numbers.size) >= lower_group(numbers)
    mean, variance, weight = _maximise(numbers, high.astype(np.float64), variance_floor)
    bound, converged, done = -math.inf, False, 0
    while done < iterations and not converged:
        log_density = _log_densities(numbers, mean, variance, weight)
        share = expit(log_density[1] - log_density[0])
        before, bound = bound, float(np.logaddexp(log_density[0], log_density[1]).mean())
        mean, variance, weight = _maximise(numbers, share, variance_floor)
        converged, done = abs(bound - before) < tolerance, done + 1
    order = np.argsort(mean, kind="stable")
    (mean0, mean1), (variance0, variance1), (weight0, weight1) = (
        map(float, parameter[order]) for parameter in (mean, variance, weight)
    )
    return GaussianMixture((mean0, mean1), (variance0, variance1), (weight0, weight1), done, converged)


def lower_group(ordered: Array) -> int:
    """How many of (N,) rising numbers, two of them different, are in the lower of two groups: 1 to N - 1.

    The division that k-means with two centres looks for: the smallest sum of squared distances to the group's mean,
    which is the largest n0 n1 (m1 - m0)^2. Equal numbers stay together; of equal divisions the first is taken.
    """
    centred = ordered - ordered.mean()
    lower_sum, count, lower = np.cumsum(centred), ordered.size, np.arange(1, ordered.size)
    upper = count - lower
    distance = (lower_sum[-1] - lower_sum[:-1]) / upper - lower_sum[:-1] / lower
    between = np.where(ordered[1:] > ordered[:-1], lower * upper * distance**2, -1.0)
    return int(np.argmax(between)) + 1


def min_max(values: npt.ArrayLike) -> Array:
    """Values brought to [0, 1] by the smallest and the largest: (N,) -> (N,) float64; all 0 where they are equal.

    Infinite ones count as the largest (or smallest) finite one. Raises ValueError for nan, no values and no finite one.
    """
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    if np.isnan(numbers).any() or finite.size == 0:
        raise ValueError(
            f"{numbers.size} values, {finite.size} of them finite; wanted numbers, and one that is finite"
        )
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return np.zeros(numbers.shape)
    numbers = np.clip(numbers, low, high)
    if math.isinf(high - low):  # of two finite numbers
        numbers, low, high = numbers / 2, low / 2, high / 2
    return np.asarray(np.clip((numbers - low) / (high - low), 0.0, 1.0))


def _log_densities(values: Array, mean: Array, variance: Array, weight: Array) -> Array:
    """(N,) -> (2, N): log weight - log(2 pi variance) / 2 - (value - mean)^2 / (2 variance)."""
    constant = np.log(weight) - 0.5 * np.log(2 * math.pi * variance)
    return constant[:, None] - 0.5 * (values - mean[:, None]) ** 2 / variance[:, None]


def _maximise(values: Array, share: Array, variance_floor: float) -> tuple[Array, Array, Array]:
    """Mean, variance and weight (2,) of the components, with `share` (N,) of each value belonging to the second."""
    shares = np.stack([1.0 - share, share])
    count = shares.sum(1) + COUNT_FLOOR
    mean = (shares * values).sum(1) / count
    variance = (shares * (values - mean[:, None]) ** 2).sum(1) / count + variance_floor
    return mean, variance, count / count.sum()


def _vector(values: npt.ArrayLike) -> Array:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"values have shape {numbers.shape}; wanted (N,) with N >= 1")
    if not np.all(np.abs(numbers) <= LARGEST):  # false for nan as well
        raise ValueError(f"values that are no numbers, or beyond {LARGEST:g}; wanted finite numbers")
    return numbers
