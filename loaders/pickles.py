"""A reader of pickles that can build plain containers and arrays, and can call nothing else.

A pickle is a program: the standard reader runs whatever function the file names. Here every name in the
file is looked up in a table of four inert classes; all others are refused before anything is called.
"""

import pickle
import struct
from typing import Any, BinaryIO

import numpy as np

from fastdrpl.loaders.errors import DataError


class _Kind:
    """Stands for the class `numpy.ndarray` as an argument; does nothing."""

    __slots__ = ()


class _NumberType:
    """Stands for `numpy.dtype(code)`: keeps the code."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: of no meaning for bytes, the only kind we read."""


class PickledArray:
    """An array as the file describes it; numpy has not seen it yet. `unpack` checks and builds it."""

    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def unpack(self) -> np.ndarray:
        """The array, uint8 in C order. Raises ValueError for any other kind."""
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            raise ValueError("an array without content")
        _, shape, kind, fortran, data = self.state
        if not (isinstance(kind, _NumberType) and kind.code in ("u1", b"u1", "|u1", b"|u1") and not fortran):
            raise ValueError("an array that is not of bytes in C order")
        if not (isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)):
            raise ValueError(f"an array of shape {shape!r}")
        if not isinstance(data, bytes):
            raise ValueError("an array without bytes")
        return np.frombuffer(data, np.uint8).reshape(shape)  # reshape refuses a wrong length


_KNOWN: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _NumberType,
}


# Python's own reader, not the one in C: that one takes memory for whatever number a damaged file names.
class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def read_plain(file: BinaryIO, *, where: str) -> Any:
    """The object in a pickle of dict, list, tuple, bytes, str, numbers and `PickledArray`.

    Strings of Python 2 come as bytes. Raises DataError for a pickle that asks for anything else or is cut.
    A small file can still claim much memory: check its digest first where one is known.
    """
    try:
        return _PlainUnpickler(file, encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise DataError(
            f"a pickle that holds more than plain arrays and containers, or is damaged: {error}",
            where=where,
            fix="download the file again from its official address",
        ) from None
