"""Where the fit of a beta mixture leaves its numbers, and the device functions that several of its kernels use."""

from typing import Literal

import triton
import triton.language as tl

from fastdrpl.kernels import beta_mixture as reference

# At most so many programs take part in an iteration: their sums are read by each of the next.
PROGRAMS, SUMS = tl.constexpr(256), tl.constexpr(6)
PARAMETERS = tl.constexpr(8)  # of an iteration: alpha, beta, weight and mean of either component
# Of a part of the losses: how many are nan and infinite, smallest and largest finite one.
OBSERVED = tl.constexpr(4)

# Where the results stand after alpha, beta and weight of either component. The odds are those of `reference.LogOdds`,
# then where u begins and what it is divided by. They lie at a multiple of 16 bytes, behind a number that is 0: Triton
# compiles a kernel anew for a pointer that does not, and to load it inside a captured graph is forbidden.
LOW_AT, HIGH_AT, SPREAD_AT = tl.constexpr(6), tl.constexpr(7), tl.constexpr(8)
UNKNOWN_AT, INFINITE_AT, EXTREMES_AT, ODDS_AT = map(tl.constexpr, (9, 10, 11, 14))
RESULTS = 21
SPREADS: tuple[Literal["none", "whole", "middle"], ...] = ("none", "whole", "middle")

LOW_OFFSET, RANGE_OFFSET = tl.constexpr(reference.LOW_OFFSET), tl.constexpr(reference.RANGE_OFFSET)
EDGE = tl.constexpr(reference.EDGE)


@triton.jit
def entry(block, NUMBER: tl.constexpr):
    """One of the numbers of a block."""
    number = tl.arange(0, block.shape[0])
    return tl.sum(tl.where(number == NUMBER, block, 0), 0)


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
