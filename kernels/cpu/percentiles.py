"""Percentiles of many numbers without a sort: a histogram over the bits of the numbers, on all cores.

Chunks and slabs have a fixed size and are put together in order, so nothing depends on the number of threads.
"""

import math

import numba
import numpy as np

from fastdrpl.kernels.beta_mixture import OUTER_PERCENTILES
from fastdrpl.kernels.cpu.jit import jit
from fastdrpl.kernels.cpu.primitives import bits_of, extremes_of, number_of

CHUNK = 4096
BINS = 4096
OCTAVES = 32  # powers of two that the first histogram tells apart
SORTED_AT_ONCE = 512  # few enough values to sort instead of refining the histogram
LOW_QUANTILE, HIGH_QUANTILE = (percentile / 100 for percentile in OUTER_PERCENTILES)


@jit(inline="always")
def _key(x):  # type: ignore[no-untyped-def]
    """An int64 in the order of the float64 numbers."""
    bits = bits_of(x + 0.0)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@jit()
def _keyed_number(key):  # type: ignore[no-untyped-def]
    """The number whose key this is."""
    return number_of(key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF))


@jit()
def _shift(first, last):  # type: ignore[no-untyped-def]
    """How many bits to drop so that keys in [first, last] fall into the bins."""
    spread, shift = np.uint64(last) - np.uint64(first), 0
    while (spread >> np.uint64(shift)) >= np.uint64(BINS):
        shift += 1
    return np.uint64(shift)


@jit(parallel=True)
def within_limit(values, limit):  # type: ignore[no-untyped-def]
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
        smallest[c], largest[c] = extremes_of(values[c * CHUNK : (c + 1) * CHUNK])
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
        smallest, largest = extremes_of(values)
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
def outer_percentiles(values):  # type: ignore[no-untyped-def]
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
