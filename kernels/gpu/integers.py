"""Integers as Triton's functions take them: an argument may be a constant (1 is one to Triton), which has no type."""

import triton
import triton.language as tl


@triton.jit
def to_int32(number):
    """An integer as int32."""
    return tl.full((), 0, tl.int32) + number


@triton.jit
def to_int64(number):
    """An integer as int64."""
    return tl.full((), 0, tl.int64) + number
