"""The Triton twin of `fastdrpl.kernels.beta_mixture`: its numbers (1e-6), without leaving the device.

Percentiles come from a radix selection over the bits of the losses (`selection`), four ranks at a time. log u and
log(1 - u) are held; with two components one exponential per sample and iteration is enough. Each iteration is one
launch: at its head every program adds up, in a fixed order, what the programs of the last one left, and makes the
same parameters from it; so nothing depends on the order in which programs end. All arithmetic is float64.
"""

import functools
import math
from typing import Literal

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels import beta_mixture as reference
from fastdrpl.kernels.gpu.integers import to_int64
from fastdrpl.kernels.gpu.launch import register, wrap_triton
from fastdrpl.kernels.gpu.selection import BINS, DIGIT_BITS, count_digits, find_digits

COUNTED = 4096  # losses whose digits a program counts
BLOCK = 1024  # losses that a program handles at a time
PARTS = 1024  # of whose observations so many are added up at a time
PROGRAMS = tl.constexpr(
    256
)  # at most so many take part in an iteration: their sums are read by each of the next
SUMS = tl.constexpr(6)
PARAMETERS = tl.constexpr(8)  # of an iteration: alpha, beta, weight and mean of either component
OBSERVED = tl.constexpr(
    4
)  # of a part of the losses: how many are nan and infinite, smallest and largest finite one

# Where the results stand after alpha, beta and weight of either component. The odds are those of `reference.LogOdds`,
# then where u begins and what it is divided by.
LOW_AT, HIGH_AT, SPREAD_AT = tl.constexpr(6), tl.constexpr(7), tl.constexpr(8)
UNKNOWN_AT, INFINITE_AT, EXTREMES_AT, ODDS_AT = map(tl.constexpr, (9, 10, 11, 13))
RESULTS = 20
SPREADS: tuple[Literal["none", "whole", "middle"], ...] = ("none", "whole", "middle")

LOW_QUANTILE, HIGH_QUANTILE = (tl.constexpr(p / 100) for p in reference.OUTER_PERCENTILES)
LOW_OFFSET, RANGE_OFFSET = tl.constexpr(reference.LOW_OFFSET), tl.constexpr(reference.RANGE_OFFSET)
EDGE, LARGEST_FINITE = tl.constexpr(reference.EDGE), tl.constexpr(reference.INFINITE)
FLOOR_LOG = tl.constexpr(math.log(reference.DENSITY_FLOOR))
LARGEST_LOG = tl.constexpr(700.0)  # of which exp is finite
SMALLEST_PARAMETER = tl.constexpr(reference.SMALLEST_PARAMETER)
LARGEST_CONCENTRATION = tl.constexpr(reference.LARGEST_CONCENTRATION)
(ALPHA0, BETA0), (ALPHA1, BETA1) = (map(tl.constexpr, pair) for pair in reference.START)
FIRST_END, LAST_END = map(tl.constexpr, reference.ENDS)
HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2 * math.pi))
SIGN_32, SIGN_64 = tl.constexpr(-(1 << 31)), tl.constexpr(-(1 << 63))


# --- percentiles ---


@triton.jit
def ordered_bits(x):
    """A uint64 for each loss, in the order of the losses; its digits are those of a float32 where the losses are."""
    x = tl.where(x == 0, 0.0, x)  # -0.0 becomes 0.0
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        return (bits ^ ((bits >> 63) | SIGN_64)).to(tl.uint64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
        return (bits ^ ((bits >> 31) | SIGN_32)).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def ordered_number(ordered, DOUBLE: tl.constexpr):
    """The loss, float64, that has these ordered bits."""
    if DOUBLE:
        return (ordered ^ (~(ordered >> 63) | SIGN_64)).to(tl.float64, bitcast=True)
    else:
        bits = ordered.to(tl.int32)
        return (bits ^ (~(bits >> 31) | SIGN_32)).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def percentile_place(count, quantile):
    """Where a percentile lies between two ranks, as `np.percentile` has it.

    The share beyond the lower rank is taken by another launch: beside this product the difference would be fused
    with it, and a share of exactly 0 would no longer be 0.
    """
    return (tl.full((), 0, tl.float64) + count - 1) * quantile


@triton.jit
def between(below, above, share):
    """`np.percentile`'s linear interpolation."""
    step = above - below
    return tl.where(share >= 0.5, above - step * (1 - share), below + step * share)


@triton.jit
def selected(histograms, state, count, step):
    """The digits that `step` launches found of the losses below and above the low and the high percentile, (4,).

    Kept in `state` for the next launch, with their ranks among the losses that share these digits.
    """
    number = tl.arange(0, 4)
    low, high = percentile_place(count, LOW_QUANTILE), percentile_place(count, HIGH_QUANTILE)
    ranks = tl.floor(tl.where(number < 2, low, high)).to(tl.int64) + number % 2
    digits = number.to(tl.int64) * 0
    if step > 0:
        if step > 1:
            before = state + (step - 1) * 8 + number
            digits, ranks = tl.load(before), tl.load(before + 4)
        row = tl.where(step > 1, number, 0)  # the first digit is counted once for all
        found, ranks = find_digits(histograms + ((step - 1) * 4 + row) * BINS, ranks)
        digits = (digits << DIGIT_BITS) | found
    if tl.program_id(0) == 0:
        here = state + step * 8 + number
        tl.store(here, digits)
        tl.store(here + 4, ranks)
    return digits


@triton.jit
def entry(block, NUMBER: tl.constexpr):
    """One of the numbers of a block."""
    number = tl.arange(0, block.shape[0])
    return tl.sum(tl.where(number == NUMBER, block, 0), 0)


@triton.jit
def observe_kernel(losses, histograms, observed, places, count, shift, BLOCK: tl.constexpr):
    """Count the first digit, and what is nan or infinite; find the finite extremes and the percentiles' places."""
    if tl.program_id(0) == 0:
        tl.store(places, percentile_place(count, LOW_QUANTILE))
        tl.store(places + 1, percentile_place(count, HIGH_QUANTILE))
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(losses + at, mask=inside, other=0.0)
    count_digits(histograms, (ordered_bits(x) >> shift) & (BINS - 1), inside)
    x = x.to(tl.float64)
    unknown = inside & (x != x)
    finite = inside & (tl.abs(x) <= LARGEST_FINITE)
    infinite = tl.full((), float("inf"), tl.float64)
    here = observed + tl.program_id(0).to(tl.int64) * OBSERVED
    tl.store(here, tl.sum(unknown.to(tl.int32), 0).to(tl.float64))
    tl.store(here + 1, tl.sum((inside & ~unknown & ~finite).to(tl.int32), 0).to(tl.float64))
    tl.store(here + 2, tl.min(tl.where(finite, x, infinite), 0))
    tl.store(here + 3, tl.max(tl.where(finite, x, -infinite), 0))


@triton.jit
def count_among(histogram, ordered, digits, shift, inside):
    """Count the next digit of the losses that share the digits found so far."""
    same = ((ordered >> shift) >> DIGIT_BITS).to(tl.int64) == digits
    count_digits(histogram, (ordered >> shift) & (BINS - 1), inside & same)


@triton.jit
def narrow_kernel(losses, histograms, state, count, step, shift, BLOCK: tl.constexpr):
    """Find a digit of the losses of four ranks, then count the next digit, at bit `shift`, of what agrees with each."""
    digits = selected(histograms, state, count, step)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    ordered = ordered_bits(tl.load(losses + at, mask=inside, other=0.0))
    upper, digit = ((ordered >> shift) >> DIGIT_BITS).to(tl.int64), (ordered >> shift) & (BINS - 1)
    here = histograms + step * 4 * BINS
    count_digits(here, digit, inside & (upper == entry(digits, 0)))
    count_digits(here + BINS, digit, inside & (upper == entry(digits, 1)))
    count_digits(here + 2 * BINS, digit, inside & (upper == entry(digits, 2)))
    count_digits(here + 3 * BINS, digit, inside & (upper == entry(digits, 3)))


# --- range and normalisation ---


@triton.jit
def settle_kernel(
    observed,
    parts,
    histograms,
    state,
    places,
    results,
    count,
    steps,
    DOUBLE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """From the last digits and the parts' observations: low, high, spread, and how many are nan and infinite."""
    unknown, infinite = tl.zeros((PARTS,), tl.float64), tl.zeros((PARTS,), tl.float64)
    smallest = tl.full((PARTS,), float("inf"), tl.float64)
    largest = -smallest
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        here, inside = observed + part.to(tl.int64) * OBSERVED, part < parts
        unknown += tl.load(here, mask=inside, other=0.0)
        infinite += tl.load(here + 1, mask=inside, other=0.0)
        smallest = tl.minimum(smallest, tl.load(here + 2, mask=inside, other=float("inf")))
        largest = tl.maximum(largest, tl.load(here + 3, mask=inside, other=float("-inf")))
    first, last = tl.min(smallest, 0), tl.max(largest, 0)
    low_place, high_place = tl.load(places), tl.load(places + 1)
    low_share, high_share = low_place - tl.floor(low_place), high_place - tl.floor(high_place)
    next_to = ordered_number(selected(histograms, state, count, steps), DOUBLE)
    next_to = tl.minimum(tl.maximum(next_to, first), last)  # infinite losses count as the nearest finite one
    below_low, above_low, below_high, above_high = (
        entry(next_to, 0),
        entry(next_to, 1),
        entry(next_to, 2),
        entry(next_to, 3),
    )
    low, high = between(below_low, above_low, low_share), between(below_high, above_high, high_share)
    least = tl.where(below_low >= low, below_low, above_low)
    most = tl.where(above_high <= high, above_high, below_high)
    # `least` and `most` are the smallest and largest loss in [low, high]; their u differ where the middle has spread.
    middle = (high - low > LOW_OFFSET) & (least <= most)
    middle = middle & (normal(least, low, high) < normal(most, low, high))
    spread = tl.where(middle, 2, tl.where(last - first > LOW_OFFSET, 1, 0))
    tl.store(results + LOW_AT, tl.where(middle, low, first))
    tl.store(results + HIGH_AT, tl.where(middle, high, last))
    tl.store(results + SPREAD_AT, spread.to(tl.float64))
    tl.store(results + UNKNOWN_AT, tl.sum(unknown, 0))
    tl.store(results + INFINITE_AT, tl.sum(infinite, 0))
    tl.store(results + EXTREMES_AT, first)
    tl.store(results + EXTREMES_AT + 1, last)


@triton.jit
def normal(x, low, high):
    """Losses brought to (0, 1), as `reference._normalise_for_fit`."""
    begin = low + LOW_OFFSET
    edge = tl.full((), EDGE, tl.float64)
    u = (x - begin) / scale_of(low, high)
    return tl.where(u <= 0, edge, tl.where(u >= 1, 1 - edge, u))


@triton.jit
def scale_of(low, high):
    """What losses are divided by."""
    smallest = tl.full((), RANGE_OFFSET, tl.float64)
    return tl.maximum(high - (low + LOW_OFFSET) + RANGE_OFFSET, smallest)


@triton.jit
def normalise_kernel(losses, results, held, count, BLOCK: tl.constexpr):
    """u, log u and log(1 - u) of each loss into `held` (3, N); u is 0 where the fit leaves the loss out."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    low, high = tl.load(results + LOW_AT), tl.load(results + HIGH_AT)
    x = tl.load(losses + at, mask=inside, other=0.0).to(tl.float64)
    x = tl.minimum(tl.maximum(x, tl.load(results + EXTREMES_AT)), tl.load(results + EXTREMES_AT + 1))
    u = normal(x, low, high)
    kept = (x >= low) & (x <= high)
    tl.store(held + at, tl.where(kept, u, 0.0), mask=inside)
    tl.store(held + to_int64(count) + at, tl.log(u), mask=inside)
    tl.store(held + to_int64(count) * 2 + at, tl.log(1 - u), mask=inside)


# --- expectation and maximisation ---


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
    odds = results + ODDS_AT
    tl.store(odds, sign * constant)
    tl.store(odds + 1, power_u)
    tl.store(odds + 2, power_rest)
    tl.store(odds + 3, smallest)
    tl.store(odds + 4, largest)
    tl.store(odds + 5, low + LOW_OFFSET)
    tl.store(odds + 6, scale_of(low, high))


@triton.jit
def score_kernel(losses, odds, out, count, BLOCK: tl.constexpr):
    """The probability of the noisy component, `reference.posterior_reference`; nan for nan."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(losses + at, mask=inside, other=0.0).to(tl.float64)
    u = (x - tl.load(odds + 5)) / tl.load(odds + 6)
    u = tl.minimum(tl.maximum(u, tl.load(odds + 3)), tl.load(odds + 4))
    log_odds = tl.load(odds) + tl.load(odds + 1) * tl.log(u) + tl.load(odds + 2) * tl.log(1 - u)
    tl.store(out + at, tl.where(x == x, 1 / (1 + tl.exp(-log_odds)), x), mask=inside)


# --- launchers ---


def launch_fit(
    losses: Tensor,
    iterations: int,
    counted: int = COUNTED,
    block: int = BLOCK,
    most_programs: int = PROGRAMS.value,
    parts_at_once: int = PARTS,
) -> Tensor:
    """Fit the mixture to (N,) losses, N >= 1, float32 or float64, contiguous: -> (RESULTS,) float64.

    Nan or no finite loss among them is noted in the results, whose other numbers then mean nothing. `counted`, `block`:
    losses that a program handles at a time; `most_programs`: at most 256, it changes the order of sums;
    `parts_at_once`: how many observations are added up at a time. Powers of two, but for `most_programs`.
    """
    count, double = losses.numel(), losses.dtype == torch.float64
    empty = functools.partial(torch.empty, dtype=torch.float64, device=losses.device)
    digit_bits, bins = DIGIT_BITS.value, BINS.value
    steps, parts = (8 if double else 4), triton.cdiv(count, counted)
    histograms = torch.zeros((steps, 4, bins), dtype=torch.int32, device=losses.device)
    state = torch.empty((steps + 1, 2, 4), dtype=torch.int64, device=losses.device)
    observed, places = empty((parts, OBSERVED.value)), empty(2)
    results, held = empty(RESULTS), empty((3, count))
    shift = digit_bits * (steps - 1)
    wrap_triton(observe_kernel)[(parts,)](
        losses, histograms, observed, places, count, shift, BLOCK=counted, num_warps=8
    )
    for step in range(1, steps):
        shift -= digit_bits
        wrap_triton(narrow_kernel)[(parts,)](
            losses, histograms, state, count, step, shift, BLOCK=counted, num_warps=8
        )
    wrap_triton(settle_kernel)[(1,)](
        observed, parts, histograms, state, places, results, count, steps, DOUBLE=double, PARTS=parts_at_once
    )
    blocks = triton.cdiv(count, block)
    wrap_triton(normalise_kernel)[(blocks,)](losses, results, held, count, BLOCK=block)
    programs = min(blocks, most_programs)
    parameters = empty((iterations + 1, PARAMETERS.value))
    partials = empty((2, SUMS.value, PROGRAMS.value))
    for iteration in range(iterations):
        wrap_triton(iterate_kernel)[(programs,)](
            held, parameters, partials, count, programs, iteration, BLOCK=block, num_warps=8
        )
    wrap_triton(finish_kernel)[(1,)](parameters, partials, results, programs, iterations)
    return results


def launch_score(losses: Tensor, odds: Tensor, block: int = BLOCK) -> Tensor:
    """Posterior of (N,) losses, contiguous, from the odds (7,) of a fit: -> (N,) float64; nan stays nan."""
    out = torch.empty(losses.shape, dtype=torch.float64, device=losses.device)
    if losses.numel():
        grid = (triton.cdiv(losses.numel(), block),)
        wrap_triton(score_kernel)[grid](losses, odds, out, losses.numel(), BLOCK=block)
    return out


def look_up(losses: Tensor, begin: float, scale: float, table: reference.Array) -> Tensor:
    """`reference.posterior_lookup` with tensor code, on the losses' device: (N,) -> (N,) float64; nan stays nan."""
    u = ((losses.double() - begin) / scale).clamp(reference.EDGE, 1 - reference.EDGE)
    entry = (reference.LOOKUP_BINS * u).nan_to_num().long()
    return torch.where(u.isnan(), u, torch.from_numpy(table).to(losses.device)[entry])


def read_fit(results: Tensor) -> tuple[reference.Fit, int, int]:
    """The results of `fit` on the host: the fit, and how many losses were nan and how many infinite. Waits once."""
    numbers = results.cpu().numpy()
    low, high = float(numbers[LOW_AT.value]), float(numbers[HIGH_AT.value])
    unknown, infinite = int(numbers[UNKNOWN_AT.value]), int(numbers[INFINITE_AT.value])
    spread = SPREADS[int(numbers[SPREAD_AT.value])]
    return reference.Fit(numbers[0:2], numbers[2:4], numbers[4:6], low, high, spread), unknown, infinite


# --- the operations, with their references on the CPU ---


@torch.library.custom_op("fastdrpl::beta_mixture_reference", mutates_args=())
def fit_on_host(losses: Tensor, iterations: int) -> Tensor:
    """What `launch_fit` gives, by the reference; opaque to torch.compile, which cannot see into numpy."""
    values = losses.double().numpy()
    results = torch.zeros(RESULTS, dtype=torch.float64)
    unknown, finite = np.isnan(values), np.abs(values) <= reference.INFINITE
    results[UNKNOWN_AT.value], results[INFINITE_AT.value] = unknown.sum(), (~finite & ~unknown).sum()
    if unknown.any() or not finite.any():
        return results
    extremes = values[finite].min(), values[finite].max()
    fit = reference.fit_reference(np.clip(values, *extremes), iterations)
    mixture = reference.describe_fit(fit, 0, values.size)
    odds = reference.monotone_log_odds(mixture.alpha, mixture.beta, mixture.weight)
    begin = fit.low + reference.LOW_OFFSET
    spread, scale = SPREADS.index(fit.spread), reference.scale_of(fit.low, fit.high)
    numbers = (*fit.alpha, *fit.beta, *fit.weight, fit.low, fit.high, spread)
    results[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    results[EXTREMES_AT.value :] = torch.tensor((*extremes, *odds, begin, scale), dtype=torch.float64)
    return results


@fit_on_host.register_fake
def _(losses: Tensor, iterations: int) -> Tensor:
    return losses.new_empty(RESULTS, dtype=torch.float64)


def _fit(
    losses: Tensor,
    iterations: int,
    counted: int = COUNTED,
    block: int = BLOCK,
    most_programs: int = PROGRAMS.value,
    parts_at_once: int = PARTS,
) -> Tensor:
    return fit_on_host(losses, iterations)


def _score(losses: Tensor, odds: Tensor, block: int = BLOCK) -> Tensor:
    constant, log_u, log_rest, smallest, largest, begin, scale = odds.unbind()
    u = torch.minimum(torch.maximum((losses.double() - begin) / scale, smallest), largest)
    return torch.sigmoid(constant + log_u * torch.log(u) + log_rest * torch.log1p(-u))


fit = register("beta_mixture_fit", _fit)(launch_fit)
score = register("beta_mixture_score", _score)(launch_score)
