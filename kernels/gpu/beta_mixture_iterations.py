"""Expectation and maximisation: an iteration a launch, then the parameters and the log-odds of the noisy component."""

import math

import triton
import triton.language as tl

from fastdrpl.kernels import beta_mixture as reference
from fastdrpl.kernels.gpu.beta_mixture_results import (
    HIGH_AT,
    LOW_AT,
    LOW_OFFSET,
    ODDS_AT,
    PARAMETERS,
    PROGRAMS,
    SPREAD_AT,
    SUMS,
    entry,
    scale_of,
)
from fastdrpl.kernels.gpu.integers import to_int64

FLOOR_LOG = tl.constexpr(math.log(reference.DENSITY_FLOOR))
LARGEST_LOG = tl.constexpr(700.0)  # of which exp is finite
SMALLEST_PARAMETER = tl.constexpr(reference.SMALLEST_PARAMETER)
LARGEST_CONCENTRATION = tl.constexpr(reference.LARGEST_CONCENTRATION)
(ALPHA0, BETA0), (ALPHA1, BETA1) = (map(tl.constexpr, pair) for pair in reference.START)
FIRST_END, LAST_END = map(tl.constexpr, reference.ENDS)
HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2 * math.pi))


@triton.jit
def log_gamma(x):
    """Logarithm of the gamma function for x > 0, float64, to 1e-13: Stirling's series, below 8 after eight steps up."""
    small = x < 8
    product = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5) * (x + 6) * (x + 7)
    steps = tl.where(small, tl.log(product), 0.0)
    x = tl.where(small, x + 8, x)
    inverse = 1 / x
    square = inverse * inverse
    series = 691.0 / 360360.0 - square / 156.0
    series = 1.0 / 1188.0 - square * series
    series = 1.0 / 1680.0 - square * series
    series = 1.0 / 1260.0 - square * series
    series = 1.0 / 360.0 - square * series
    series = 1.0 / 12.0 - square * series
    return (x - 0.5) * tl.log(x) - x + HALF_LOG_TWO_PI + inverse * series - steps


@triton.jit
def log_betas(alpha0, beta0, alpha1, beta1):
    """Logarithm of the beta function for two pairs of numbers, by one call for their six gamma functions."""
    number = tl.arange(0, 8)
    second = number >= 4
    alpha, beta = tl.where(second, alpha1, alpha0), tl.where(second, beta1, beta0)
    place = number % 4
    logs = log_gamma(tl.where(place == 0, alpha, tl.where(place == 1, beta, alpha + beta)))
    signed = tl.where(place < 2, logs, tl.where(place == 2, -logs, 0.0))
    return tl.sum(tl.where(second, 0.0, signed), 0), tl.sum(tl.where(second, signed, 0.0), 0)


@triton.jit
def match_moments(mean, variance):
    """`reference.match_moments`."""
    smallest = tl.full((), SMALLEST_PARAMETER, tl.float64)
    largest = tl.full((), LARGEST_CONCENTRATION, tl.float64)
    mean = tl.minimum(tl.maximum(mean, tl.full((), FIRST_END, tl.float64)), tl.full((), LAST_END, tl.float64))
    concentration = tl.where(variance > 0, mean * (1 - mean) / variance - 1, largest)
    alpha = mean * tl.minimum(concentration, largest)
    beta = alpha * (1 - mean) / mean
    return tl.maximum(alpha, smallest), tl.maximum(beta, smallest)


@triton.jit
def totals(partial, programs):
    """The sums over all programs, in a fixed order: (8,), of which the last two are zero."""
    number, program = tl.arange(0, 8), tl.arange(0, PROGRAMS)
    inside = (number < SUMS)[:, None] & (program < programs)[None, :]
    parts = tl.load(partial + number[:, None] * PROGRAMS + program[None, :], mask=inside, other=0.0)
    return tl.sum(parts, 1)


@triton.jit
def estimated(parameters, partials, programs, iteration):
    """alpha, beta, weight and mean of either component after `iteration` iterations; kept in `parameters`."""
    alpha0, beta0 = tl.full((), ALPHA0, tl.float64), tl.full((), BETA0, tl.float64)
    alpha1, beta1 = tl.full((), ALPHA1, tl.float64), tl.full((), BETA1, tl.float64)
    weight0, mean0 = tl.full((), 0.5, tl.float64), tl.full((), 0.5, tl.float64)
    weight1, mean1 = weight0, mean0
    if iteration > 0:
        # Squares were taken about the mean before, which keeps small variances exact.
        before = parameters + (iteration - 1) * PARAMETERS
        centre0, centre1 = tl.load(before + 6), tl.load(before + 7)
        sums = totals(partials + (iteration - 1) % 2 * (SUMS * PROGRAMS), programs)
        share0, share1 = entry(sums, 0), entry(sums, 3)
        mean0, mean1 = entry(sums, 1) / share0, entry(sums, 4) / share1
        variance0 = entry(sums, 2) / share0 - (mean0 - centre0) * (mean0 - centre0)
        variance1 = entry(sums, 5) / share1 - (mean1 - centre1) * (mean1 - centre1)
        alpha0, beta0 = match_moments(mean0, variance0)
        alpha1, beta1 = match_moments(mean1, variance1)
        weight0, weight1 = share0 / (share0 + share1), share1 / (share0 + share1)
    if tl.program_id(0) == 0:
        here = parameters + iteration * PARAMETERS
        tl.store(here, alpha0)
        tl.store(here + 1, alpha1)
        tl.store(here + 2, beta0)
        tl.store(here + 3, beta1)
        tl.store(here + 4, weight0)
        tl.store(here + 5, weight1)
        tl.store(here + 6, mean0)
        tl.store(here + 7, mean1)
    return alpha0, alpha1, beta0, beta1, weight0, weight1, mean0, mean1


@triton.jit
def iterate_kernel(held, parameters, partials, count, programs, iteration, BLOCK: tl.constexpr):
    """Sums over this program's samples of share, share u and share (u - mean)^2 for either component."""
    alpha0, alpha1, beta0, beta1, weight0, weight1, mean0, mean1 = estimated(
        parameters, partials, programs, iteration
    )
    log_beta0, log_beta1 = log_betas(alpha0, beta0, alpha1, beta1)
    constant0, constant1 = tl.log(weight0) - log_beta0, tl.log(weight1) - log_beta1
    floor = tl.full((), FLOOR_LOG, tl.float64)
    nothing = tl.full((BLOCK,), 0.0, tl.float64)
    share0, share1 = nothing, nothing
    first0, first1 = nothing, nothing
    second0, second1 = nothing, nothing
    for start in range(tl.program_id(0) * BLOCK, count, programs * BLOCK):
        at = to_int64(start) + tl.arange(0, BLOCK)
        inside = at < count
        u = tl.load(held + at, mask=inside, other=0.0)
        log_u = tl.load(held + to_int64(count) + at, mask=inside, other=0.0)
        log_rest = tl.load(held + to_int64(count) * 2 + at, mask=inside, other=0.0)
        density0 = tl.maximum(constant0 + (alpha0 - 1) * log_u + (beta0 - 1) * log_rest, floor)
        density1 = tl.maximum(constant1 + (alpha1 - 1) * log_u + (beta1 - 1) * log_rest, floor)
        odds = tl.exp(tl.minimum(density0 - density1, tl.full((), LARGEST_LOG, tl.float64)))
        part1 = tl.where(u > 0, 1 / (1 + odds), 0.0)
        part0 = odds * part1
        share0 += part0
        share1 += part1
        first0 += part0 * u
        first1 += part1 * u
        second0 += part0 * (u - mean0) * (u - mean0)
        second1 += part1 * (u - mean1) * (u - mean1)
    here = partials + iteration % 2 * (SUMS * PROGRAMS) + tl.program_id(0)
    tl.store(here, tl.sum(share0, 0))
    tl.store(here + PROGRAMS, tl.sum(first0, 0))
    tl.store(here + 2 * PROGRAMS, tl.sum(second0, 0))
    tl.store(here + 3 * PROGRAMS, tl.sum(share1, 0))
    tl.store(here + 4 * PROGRAMS, tl.sum(first1, 0))
    tl.store(here + 5 * PROGRAMS, tl.sum(second1, 0))


@triton.jit
def finish_kernel(parameters, partials, results, programs, iterations):
    """The fitted parameters, in the order of components, and the log-odds of the noisy one (`LogOdds`)."""
    alpha0, alpha1, beta0, beta1, weight0, weight1, _, _ = estimated(
        parameters, partials, programs, iterations
    )
    low, high = tl.load(results + LOW_AT), tl.load(results + HIGH_AT)
    same = tl.load(results + SPREAD_AT) == 0  # without spread all samples are clean
    one = tl.full((), 1, tl.float64)
    alpha0, alpha1 = tl.where(same, one, alpha0), tl.where(same, one, alpha1)
    beta0, beta1 = tl.where(same, one, beta0), tl.where(same, one, beta1)
    weight0, weight1 = tl.where(same, one, weight0), tl.where(same, 1 - one, weight1)
    tl.store(results, alpha0)
    tl.store(results + 1, alpha1)
    tl.store(results + 2, beta0)
    tl.store(results + 3, beta1)
    tl.store(results + 4, weight0)
    tl.store(results + 5, weight1)
    turned = alpha0 / (alpha0 + beta0) > alpha1 / (alpha1 + beta1)  # the noisy component has the higher mean
    sign = tl.where(turned, -one, one)
    log_beta0, log_beta1 = log_betas(alpha0, beta0, alpha1, beta1)
    constant = tl.log(weight1) - tl.log(weight0) - (log_beta1 - log_beta0)
    power_u, power_rest = sign * (alpha1 - alpha0), sign * (beta1 - beta0)
    first, last = tl.full((), FIRST_END, tl.float64), tl.full((), LAST_END, tl.float64)
    turn = tl.minimum(tl.maximum(power_u / (power_u + power_rest), first), last)
    # Sorted by mean, the odds fall everywhere only where they are constant: then their ends do not matter.
    smallest = tl.where((power_u < 0) & (power_rest < 0), turn, first)
    largest = tl.where((power_u > 0) & (power_rest > 0), turn, last)
    tl.static_assert(ODDS_AT % 2 == 0, "odds must begin at a multiple of 16 bytes")
    odds = results + ODDS_AT
    tl.store(odds, sign * constant)
    tl.store(odds + 1, power_u)
    tl.store(odds + 2, power_rest)
    tl.store(odds + 3, smallest)
    tl.store(odds + 4, largest)
    tl.store(odds + 5, low + LOW_OFFSET)
    tl.store(odds + 6, scale_of(low, high))
