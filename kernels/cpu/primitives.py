"""What compiled loops of several files are made of: the bits of numbers, the ends of a range.

numba notices a change in the file of a cached function alone, so what stands here never changes what it computes.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

from fastdrpl.kernels.cpu.jit import jit


def _bitcast(source: Any, target: Any, llvm_type: ir.Type) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], llvm_type)

    return target(source), codegen


@intrinsic
def bits_of(typing_context: Any, number: Any) -> Any:
    """The bits of a float64 as int64."""
    return _bitcast(numba.types.float64, numba.types.int64, ir.IntType(64))


@intrinsic
def number_of(typing_context: Any, bits: Any) -> Any:
    """The float64 with these bits."""
    return _bitcast(numba.types.int64, numba.types.float64, ir.DoubleType())


@intrinsic
def nearest(typing_context: Any, number: Any) -> Any:
    """The nearest integer as float64, in one instruction."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.DoubleType()]), arguments)

    return numba.types.float64(numba.types.float64), codegen


@jit(fastmath=True)
def extremes_of(part):  # type: ignore[no-untyped-def]
    low = high = part[0]
    for i in range(part.size):
        low = part[i] if part[i] < low else low
        high = part[i] if part[i] > high else high
    return low, high
