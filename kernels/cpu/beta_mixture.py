"""The numba twin of the beta mixture: the reference's numbers (1e-6), faster, on all cores.

Samples are handled in chunks of fixed size whose sums are added in order, so nothing depends on the number of
threads. Percentiles come from a histogram over the bits of the numbers instead of a sort; log u and log(1 - u)
are held; with two components one exponential per sample and iteration is enough. exp and log are polynomials:
the compiler turns loops over them, but not loops over library calls, into vector instructions. For the same
reason those loops are functions of their own, without division checks (`error_model="numpy"`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from fastdrpl.kernels.beta_mixture import (
    DENSITY_FLOOR,
    EDGE,
    ENDS,
    LARGEST_CONCENTRATION,
    LOW_OFFSET,
    OUTER_PERCENTILES,
    RANGE_OFFSET,
    SMALLEST_PARAMETER,
    START,
    Array,
    Fit,
    LogOdds,
    no_spread,
)
from fastdrpl.kernels.cpu.jit import PARALLEL_LOCK, jit

CHUNK = 4096
BINS = 4096
OCTAVES = 32  # powers of two that the first histogram tells apart
SORTED_AT_ONCE = 512  # few enough values to sort instead of refining the histogram

# Reordering sums and fusing products is fine; nan and infinity keep their meaning.
REORDER = {"reassoc", "contract", "nsz"}
FUSE = {"contract"}

LOG2_E = 1 / math.log(2)
LN2 = math.log(2)
TO_INTEGER = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest integer in the low bits
TO_INTEGER_BITS = int(np.float64(TO_INTEGER).view(np.int64))
SQRT_HALF_BITS = int(np.float64(math.sqrt(0.5)).view(np.int64))
FLOOR_LOG = math.log(DENSITY_FLOOR)
LOW_QUANTILE, HIGH_QUANTILE = (percentile / 100 for percentile in OUTER_PERCENTILES)


def _bitcast(source: Any, target: Any, llvm_type: ir.Type) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], llvm_type)

    return target(source), codegen


@intrinsic
def _bits(typing_context: Any, number: Any) -> Any:
    """The bits of a float64 as int64."""
    return _bitcast(numba.types.float64, numba.types.int64, ir.IntType(64))


@intrinsic
def _number(typing_context: Any, bits: Any) -> Any:
    """The float64 with these bits."""
    return _bitcast(numba.types.int64, numba.types.float64, ir.DoubleType())


@intrinsic
def _nearest(typing_context: Any, number: Any) -> Any:
    """The nearest integer as float64, in one instruction."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.DoubleType()]), arguments)

    return numba.types.float64(numba.types.float64), codegen


@jit(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for |x| <= 700, to 1e-13: 2^k times 11 terms of the series on [-ln2/2, ln2/2]."""
    k = _nearest(x * LOG2_E)
    r = x - k * LN2
    p = 1 / 39916800.0
    p = p * r + 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return _number(_bits(p) + (_bits(k + TO_INTEGER) << 52))


@jit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]
    """log(x) for normal x > 0: e ln2 + 2 artanh((m - 1)/(m + 1)) with x = m 2^e, sqrt(1/2) <= m < sqrt(2)."""
    bits = _bits(x)
    e = (bits - SQRT_HALF_BITS) >> 52
    m = _number(bits - (e << 52))
    exponent = _number(e + TO_INTEGER_BITS) - TO_INTEGER
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    p = 2 / 21.0
    p = p * q + 2 / 19.0
    p = p * q + 2 / 17.0
    p = p * q + 2 / 15.0
    p = p * q + 2 / 13.0
    p = p * q + 2 / 11.0
    p = p * q + 2 / 9.0
    p = p * q + 2 / 7.0
    p = p * q + 2 / 5.0
    p = p * q + 2 / 3.0
    return exponent * LN2 + (2.0 * s + s * q * p)


# --- percentiles ---


@jit(inline="always")
def _key(x):  # type: ignore[no-untyped-def]
    """An int64 in the order of the float64 numbers."""
    bits = _bits(x + 0.0)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@jit()
def _keyed_number(key):  # type: ignore[no-untyped-def]
    """The number whose key this is."""
    return _number(key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF))


@jit()
def _shift(first, last):  # type: ignore[no-untyped-def]
    """How many bits to drop so that keys in [first, last] fall into the bins."""
    spread, shift = np.uint64(last) - np.uint64(first), 0
    while (spread >> np.uint64(shift)) >= np.uint64(BINS):
        shift += 1
    return np.uint64(shift)


@jit(fastmath=True)
def _extremes_of(part):  # type: ignore[no-untyped-def]
    low = high = part[0]
    for i in range(part.size):
        low = part[i] if part[i] < low else low
        high = part[i] if part[i] > high else high
    return low, high


@jit(parallel=True)
def _all_within(values, limit):  # type: ignore[no-untyped-def]
    count = (values.size + CHUNK - 1) // CHUNK
    outside = np.zeros(count, np.int64)
    for c in numba.prange(count):
        part = values[c * CHUNK : (c + 1) * CHUNK]
        bad = 0
        for i in range(part.size):
            bad += not abs(part[i]) <= limit
        outside[c] = bad
    return outside.sum() == 0


@jit(parallel=True)
def _extremes(values):  # type: ignore[no-untyped-def]
    count = (values.size + CHUNK - 1) // CHUNK
    smallest, largest = np.empty(count), np.empty(count)
    for c in numba.prange(count):
        smallest[c], largest[c] = _extremes_of(values[c * CHUNK : (c + 1) * CHUNK])
    return smallest.min(), largest.max()


@jit()
def _count(part, first, shift, row):  # type: ignore[no-untyped-def]
    for i in range(part.size):
        row[np.int64((np.uint64(max(_key(part[i]), first)) - np.uint64(first)) >> shift)] += 1


@jit(parallel=True)
def _histograms(values, first, shift, slabs):  # type: ignore[no-untyped-def]
    """(slabs, BINS) counts: each slab has its own, so that the gathering knows where to write."""
    counts = np.zeros((slabs, BINS), np.int32)
    size = (values.size + slabs - 1) // slabs
    for s in numba.prange(slabs):
        _count(values[s * size : (s + 1) * size], first, shift, counts[s])
    return counts


@jit()
def _copy_within(part, low, high, out):  # type: ignore[no-untyped-def]
    at = 0
    for i in range(part.size):
        if low <= part[i] <= high:
            out[at] = part[i]
            at += 1


@jit(parallel=True)
def _gather(values, counts, bins, low, high):  # type: ignore[no-untyped-def]
    """The values in [low, high], which are those of the bins [bins[0], bins[1]], one slab after the other."""
    slabs = counts.shape[0]
    size = (values.size + slabs - 1) // slabs
    starts = np.zeros(slabs + 1, np.int64)
    for s in range(slabs):
        starts[s + 1] = starts[s] + counts[s, bins[0] : bins[1] + 1].sum()
    found = np.empty(starts[slabs])
    for s in numba.prange(slabs):
        _copy_within(values[s * size : (s + 1) * size], low, high, found[starts[s] : starts[s + 1]])
    return found


@jit()
def _find_bins(counts, rank):  # type: ignore[no-untyped-def]
    """The bins that hold ranks `rank` and `rank + 1`, and how many values lie before the first of them."""
    before = b = 0
    while before + counts[b] <= rank:
        before += counts[b]
        b += 1
    last, seen = b, before + counts[b]
    while seen <= rank + 1 and last + 1 < counts.size:
        last += 1
        seen += counts[last]
    return (b, last), before


@jit()
def _bounds(bins, first, last, shift):  # type: ignore[no-untyped-def]
    """The smallest and largest number that falls into the bins [bins[0], bins[1]]."""
    low = np.uint64(first) + (np.uint64(bins[0]) << shift)
    high = np.uint64(first) + ((np.uint64(bins[1]) + np.uint64(1)) << shift) - np.uint64(1)
    return _keyed_number(np.int64(low)), _keyed_number(min(np.int64(high), last))


@jit()
def _select_two(values, rank):  # type: ignore[no-untyped-def]
    """The values of ranks `rank` and `rank + 1` (or the last one twice), by finer and finer histograms."""
    while values.size > SORTED_AT_ONCE:
        smallest, largest = _extremes_of(values)
        first, last = _key(smallest), _key(largest)
        if first == last:
            return values[0], values[0]
        shift = _shift(first, last)
        counts = np.zeros(BINS, np.int32)
        _count(values, first, shift, counts)
        bins, before = _find_bins(counts, rank)
        found = np.empty(counts[bins[0] : bins[1] + 1].sum())
        if found.size == values.size:  # all lie in two bins far apart: no finer histogram parts them
            break
        low, high = _bounds(bins, first, last, shift)
        _copy_within(values, low, high, found)
        values, rank = found, rank - before
    ordered = np.sort(values)
    return ordered[rank], ordered[min(rank + 1, ordered.size - 1)]


@jit()
def _percentile(values, ends, shift, counts, totals, quantile):  # type: ignore[no-untyped-def]
    """What np.percentile gives with linear interpolation, to the bit."""
    position = (values.size - 1) * quantile
    rank = math.floor(position)
    weight = position - rank
    bins, before = _find_bins(totals, rank)
    low, high = _bounds(bins, ends[0], ends[1], shift)
    low = -np.inf if bins[0] == 0 else low
    below, above = _select_two(_gather(values, counts, bins, low, high), rank - before)
    step = above - below
    return above - step * (1 - weight) if weight >= 0.5 else below + step * weight


@jit()
def _outer_percentiles(values):  # type: ignore[no-untyped-def]
    """The two percentiles of the range, then the smallest and the largest value."""
    smallest, largest = _extremes(values)
    first, last = _key(smallest), _key(largest)
    if np.uint64(last) - np.uint64(first) > np.uint64(OCTAVES << 52):
        first = last - (OCTAVES << 52)  # a loss of 0 must not make the bins coarse: bin 0 takes all below
    ends = (first, last)
    shift = _shift(ends[0], ends[1])
    counts = _histograms(values, ends[0], shift, max(1, min(16, values.size // (4 * BINS))))
    totals = counts.sum(axis=0)
    low = _percentile(values, ends, shift, counts, totals, LOW_QUANTILE)
    high = _percentile(values, ends, shift, counts, totals, HIGH_QUANTILE)
    return low, high, smallest, largest


# --- fit ---


@jit(fastmath=FUSE, error_model="numpy")
def _take_logs(u, log_u, log_rest):  # type: ignore[no-untyped-def]
    for i in range(u.size):
        log_u[i] = _log(u[i])
        log_rest[i] = _log(1.0 - u[i])


@jit(error_model="numpy")
def _pick(part, low, high, start, scale, u):  # type: ignore[no-untyped-def]
    """Normalise the losses in [low, high], write them to the head of u and count them."""
    at = 0
    for i in range(part.size):
        if low <= part[i] <= high:
            t = (part[i] - start) / scale
            t = 1 - EDGE if t >= 1 else t
            u[at] = EDGE if t <= 0 else t
            at += 1
    return at


@jit(parallel=True)
def _normalise(values, low, high):  # type: ignore[no-untyped-def]
    """u, log u and log(1 - u) of the losses in [low, high]: chunk c holds counts[c] of them, from c * CHUNK on.

    Also the smallest and largest u among them.
    """
    chunks = (values.size + CHUNK - 1) // CHUNK
    u, log_u, log_rest = np.empty(values.size), np.empty(values.size), np.empty(values.size)
    counts = np.zeros(chunks, np.int64)
    smallest, largest = np.full(chunks, np.inf), np.full(chunks, -np.inf)
    begin = low + LOW_OFFSET
    scale = max(high - begin + RANGE_OFFSET, RANGE_OFFSET)
    for c in numba.prange(chunks):
        start, end = c * CHUNK, min((c + 1) * CHUNK, values.size)
        count = _pick(values[start:end], low, high, begin, scale, u[start:end])
        end = start + count
        _take_logs(u[start:end], log_u[start:end], log_rest[start:end])
        counts[c] = count
        if count:
            smallest[c], largest[c] = _extremes_of(u[start:end])
    return u, log_u, log_rest, counts, smallest.min(), largest.max()


@jit(fastmath=REORDER, error_model="numpy")
def _expect(u, log_u, log_rest, constants, centres):  # type: ignore[no-untyped-def]
    """Six sums over a chunk: share, share u, share (u - centre)^2 for either component."""
    constant0, power0, rest0, constant1, power1, rest1 = constants
    centre0, centre1 = centres
    share0 = share1 = first0 = first1 = second0 = second1 = 0.0
    for i in range(u.size):
        density0 = constant0 + power0 * log_u[i] + rest0 * log_rest[i]
        density1 = constant1 + power1 * log_u[i] + rest1 * log_rest[i]
        density0 = density0 if density0 > FLOOR_LOG else FLOOR_LOG
        density1 = density1 if density1 > FLOOR_LOG else FLOOR_LOG
        odds = _exp(density0 - density1)
        r1 = 1.0 / (1.0 + odds)
        r0 = odds * r1
        t0, t1 = u[i] - centre0, u[i] - centre1
        share0 += r0
        share1 += r1
        first0 += r0 * u[i]
        first1 += r1 * u[i]
        second0 += r0 * t0 * t0
        second1 += r1 * t1 * t1
    return share0, first0, second0, share1, first1, second1


@jit()
def _log_density_constants(alpha, beta, weight):  # type: ignore[no-untyped-def]
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    return math.log(weight) - log_norm, alpha - 1, beta - 1


@jit()
def _match_moments(mean, variance):  # type: ignore[no-untyped-def]
    mean = min(max(mean, ENDS[0]), ENDS[1])
    concentration = mean * (1 - mean) / variance - 1 if variance > 0 else LARGEST_CONCENTRATION
    alpha = mean * min(concentration, LARGEST_CONCENTRATION)
    beta = alpha * (1 - mean) / mean
    return max(alpha, SMALLEST_PARAMETER), max(beta, SMALLEST_PARAMETER)


@jit(parallel=True)
def _fit_by_moments(u, log_u, log_rest, counts, iterations):  # type: ignore[no-untyped-def]
    """EM; gives (3, 2): alpha, beta, weight."""
    parameters = np.array([[START[0][0], START[1][0]], [START[0][1], START[1][1]], [0.5, 0.5]])
    centres = (0.5, 0.5)  # squares are taken about the last mean, which keeps small variances exact
    partial = np.empty((counts.size, 6))
    for _ in range(iterations):
        constants = _log_density_constants(
            parameters[0, 0], parameters[1, 0], parameters[2, 0]
        ) + _log_density_constants(parameters[0, 1], parameters[1, 1], parameters[2, 1])
        for c in numba.prange(counts.size):
            start, end = c * CHUNK, c * CHUNK + counts[c]
            sums = _expect(u[start:end], log_u[start:end], log_rest[start:end], constants, centres)
            for k in range(6):
                partial[c, k] = sums[k]
        share0, first0, second0, share1, first1, second1 = partial.sum(axis=0)
        mean0, mean1 = first0 / share0, first1 / share1
        variance0 = second0 / share0 - (mean0 - centres[0]) ** 2
        variance1 = second1 / share1 - (mean1 - centres[1]) ** 2
        centres = (mean0, mean1)
        parameters[0, 0], parameters[1, 0] = _match_moments(mean0, variance0)
        parameters[0, 1], parameters[1, 1] = _match_moments(mean1, variance1)
        parameters[2, 0] = share0 / (share0 + share1)
        parameters[2, 1] = share1 / (share0 + share1)
    return parameters


@jit(fastmath=FUSE, error_model="numpy")
def _score(values, start, scale, odds, out):  # type: ignore[no-untyped-def]
    constant, log_u, log_rest, smallest, largest = odds
    for i in range(values.size):
        u = (values[i] - start) / scale
        u = u if u > smallest else smallest
        u = u if u < largest else largest
        negative = -(constant + log_u * _log(u) + log_rest * _log(1.0 - u))
        negative = negative if negative < 700.0 else 700.0
        negative = negative if negative > -700.0 else -700.0
        out[i] = 1.0 / (1.0 + _exp(negative))


@jit(parallel=True)
def _posterior(values, start, scale, odds):  # type: ignore[no-untyped-def]
    out = np.empty(values.size)
    for c in numba.prange((values.size + CHUNK - 1) // CHUNK):
        part = slice(c * CHUNK, min((c + 1) * CHUNK, values.size))
        _score(values[part], start, scale, odds, out[part])
    return out


# --- called from Python ---


@contextmanager
def _parallel(count: int) -> Iterator[None]:
    """Hold the lock, and wake no more threads than there are chunks: waking one takes longer than a small chunk."""
    with PARALLEL_LOCK:
        threads = numba.get_num_threads()
        numba.set_num_threads(max(1, min(threads, (count + CHUNK - 1) // CHUNK)))
        try:
            yield
        finally:
            numba.set_num_threads(threads)


def all_within(values: Array, limit: float) -> bool:
    """Whether no loss of (N,) is nan or larger than `limit` in size."""
    with _parallel(values.size):
        return bool(_all_within(values, limit))


def fit(losses: Array, iterations: int) -> Fit:
    """Twin of `fit_reference`: (N,) finite contiguous float64, N >= 1."""
    with _parallel(losses.size):
        low, high, smallest, largest = _outer_percentiles(losses)
        u, log_u, log_rest, counts, least, most = _normalise(losses, low, high)
        middle = high - low > LOW_OFFSET and least < most
        if not middle:
            low, high = smallest, largest
            if high - low <= LOW_OFFSET:
                return no_spread(low, high)
            u, log_u, log_rest, counts, _, _ = _normalise(losses, low, high)
        alpha, beta, weight = _fit_by_moments(u, log_u, log_rest, counts, iterations)
    return Fit(alpha, beta, weight, low, high, "middle" if middle else "whole")


def posterior(losses: Array, low: float, high: float, odds: LogOdds) -> Array:
    """Twin of `posterior_reference`: (N,) contiguous float64 without nan."""
    start = low + LOW_OFFSET
    scale = max(high - start + RANGE_OFFSET, RANGE_OFFSET)
    with _parallel(losses.size):
        return np.asarray(_posterior(losses, start, scale, tuple(odds)))
