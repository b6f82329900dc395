"""Before the iterations: percentiles of the losses by radix selection, their range, and u, log u and log(1 - u)."""

import triton
import triton.language as tl

from fastdrpl.kernels import beta_mixture as reference
from fastdrpl.kernels.gpu.beta_mixture_results import (
    EXTREMES_AT,
    HIGH_AT,
    INFINITE_AT,
    LOW_AT,
    LOW_OFFSET,
    OBSERVED,
    SPREAD_AT,
    UNKNOWN_AT,
    entry,
    normal,
)
from fastdrpl.kernels.gpu.integers import to_int64
from fastdrpl.kernels.gpu.selection import BINS, DIGIT_BITS, count_digits, find_digits

LOW_QUANTILE, HIGH_QUANTILE = (tl.constexpr(p / 100) for p in reference.OUTER_PERCENTILES)
LARGEST_FINITE = tl.constexpr(reference.INFINITE)
SIGN_32, SIGN_64 = tl.constexpr(-(1 << 31)), tl.constexpr(-(1 << 63))


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
    tl.store(results + EXTREMES_AT + 2, tl.full((), 0, tl.float64))


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
