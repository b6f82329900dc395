"""Kernels that hand out single functions of `fastdrpl.kernels.gpu.beta_mixture`, for its test."""

import triton
import triton.language as tl

from fastdrpl.kernels.gpu.beta_mixture import (
    LOW_QUANTILE,
    between,
    log_gamma,
    ordered_bits,
    ordered_number,
    percentile_place,
)


@triton.jit
def log_gamma_kernel(x, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = log_gamma(tl.load(x + at, mask=at < count, other=1.0))
    tl.store(out + at, value, mask=at < count)


@triton.jit
def order_kernel(x, keys, back, count, DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ordered = ordered_bits(tl.load(x + at, mask=at < count, other=0.0)).to(tl.int64)
    tl.store(keys + at, ordered, mask=at < count)
    tl.store(back + at, ordered_number(ordered, DOUBLE), mask=at < count)


@triton.jit
def place_kernel(counts, places, number, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = percentile_place(tl.load(counts + at, mask=at < number, other=1), LOW_QUANTILE)
    tl.store(places + at, place, mask=at < number)


@triton.jit
def between_kernel(below, above, shares, out, number, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < number
    low, high = tl.load(below + at, mask=inside, other=0.0), tl.load(above + at, mask=inside, other=0.0)
    share = tl.load(shares + at, mask=inside, other=0.0)
    tl.store(out + at, between(low, high, share), mask=inside)
