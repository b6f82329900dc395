"""The numba twin of the beta mixture: the reference's numbers (1e-6), faster, on all cores.

Samples are handled in chunks of fixed size whose sums are added in order, so nothing depends on the number of
threads. Percentiles of many come from a histogram over the bits of the numbers instead of a sort; log u and log(1 - u)
are held; with two components one exponential per sample and iteration is enough. exp and log are polynomials:
the compiler turns loops over them, but not loops over library calls, into vector instructions. For the same
reason those loops are functions of their own, without division checks (`error_model="numpy"`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np

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
from fastdrpl.kernels.cpu.percentiles import outer_percentiles, within_limit
from fastdrpl.kernels.cpu.primitives import bits_of, extremes_of, nearest, number_of

CHUNK = 4096

# Reordering sums and fusing products is fine; nan and infinity keep their meaning.
REORDER = {"reassoc", "contract", "nsz"}
FUSE = {"contract"}

LOG2_E = 1 / math.log(2)
LN2 = math.log(2)
TO_INTEGER = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest integer in the low bits
TO_INTEGER_BITS = int(np.float64(TO_INTEGER).view(np.int64))
SQRT_HALF_BITS = int(np.float64(math.sqrt(0.5)).view(np.int64))
FLOOR_LOG = math.log(DENSITY_FLOOR)


@jit(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for |x| <= 700, to 1e-13: 2^k times 11 terms of the series on [-ln2/2, ln2/2]."""
    k = nearest(x * LOG2_E)
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
    return number_of(bits_of(p) + (bits_of(k + TO_INTEGER) << 52))


@jit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]
    """log(x) for normal x > 0: e ln2 + 2 artanh((m - 1)/(m + 1)) with x = m 2^e, sqrt(1/2) <= m < sqrt(2)."""
    bits = bits_of(x)
    e = (bits - SQRT_HALF_BITS) >> 52
    m = number_of(bits - (e << 52))
    exponent = number_of(e + TO_INTEGER_BITS) - TO_INTEGER
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
            smallest[c], largest[c] = extremes_of(u[start:end])
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


# numpy is quick enough for these, and compiling what replaces it takes 20 s, once for each installation.
FEW = 16_384


def _ends(losses: Array) -> tuple[float, float, float, float]:
    """The outer percentiles and the extremes, to the bit what numpy gives."""
    if losses.size > FEW:
        return outer_percentiles(losses)
    low, high = np.percentile(losses, OUTER_PERCENTILES)
    return float(low), float(high), float(losses.min()), float(losses.max())


def all_within(values: Array, limit: float) -> bool:
    """Whether no loss of (N,) is nan or larger than `limit` in size."""
    if values.size <= FEW:
        return bool((np.abs(values) <= limit).all())
    with _parallel(values.size):
        return bool(within_limit(values, limit))


def fit(losses: Array, iterations: int) -> Fit:
    """Twin of `fit_reference`: (N,) finite contiguous float64, N >= 1."""
    with _parallel(losses.size):
        low, high, smallest, largest = _ends(losses)
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
