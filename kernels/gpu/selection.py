"""What selections share: a digit of the element of a given rank, from a histogram of that digit (radix selection).

A selection takes one launch for each digit of 8 bits: it counts, among the elements that agree with the digits found so
far, how often each value of the next digit occurs. The next launch finds the digit at its head, in each of its programs
alike, so that nothing waits for the host. Counts are integers: their sum does not depend on the order of atomics.
"""

import triton
import triton.language as tl

DIGIT_BITS = tl.constexpr(8)
BINS = tl.constexpr(256)


@triton.jit
def find_digits(histograms, ranks):
    """The digit (R,) int64 of the element of each rank (R,) int64 (0, 1, ...), and its rank among those that share it.

    `histograms`: (R,) pointers to 256 int32 counts each. A rank beyond the last element stands for the last.
    """
    values = tl.arange(0, BINS)[None, :]
    counts = tl.load(histograms[:, None] + values)
    up_to = tl.cumsum(counts, 1).to(tl.int64)
    ranks = tl.minimum(ranks, tl.sum(counts, 1) - 1)
    digits = tl.sum((up_to <= ranks[:, None]).to(tl.int64), 1)
    before = tl.sum(tl.where(values < digits[:, None], counts, 0), 1)
    return digits, ranks - before


@triton.jit
def count_digits(histogram, digit, candidate):
    """Add how often each value of a digit (a block of int64) occurs among the candidates to 256 int32 counts."""
    digits = tl.arange(0, BINS)
    counts = tl.histogram(digit.to(tl.int32), BINS, mask=candidate)
    tl.atomic_add(histogram + digits, counts, mask=counts > 0)
