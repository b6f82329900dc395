"""What stands for the classes that a pickle of arrays may name: inert, and checked before numpy sees any of it."""

from typing import Literal

import numpy as np

LONGEST_CODE = 16  # characters of the name of a type of numbers, or of an encoding
MOST_SIDES = 8  # of an array
LARGEST_SIDE = 1 << 48


class Kind:
    """Stands for the class `numpy.ndarray` as an argument; does nothing."""

    __slots__ = ()


class NumberType:
    """Stands for `numpy.dtype(code)`: keeps the code and the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str | bytes) or len(code) > LONGEST_CODE:
            raise ValueError("a type of numbers that has no short name")
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">"):
            self.order = ">"

    def integers(self) -> np.dtype:
        """The type, if it is one of whole numbers. Raises ValueError."""
        code = self.code.decode("latin-1") if isinstance(self.code, bytes) else self.code
        if not (isinstance(code, str) and code.strip("<>|=") in _INTEGERS):
            raise ValueError(f"numbers of the type {code!r}, wanted whole numbers")
        big = code.startswith(">") or self.order == ">"
        return np.dtype((">" if big else "<") + code.strip("<>|="))


_INTEGERS = frozenset(sign + size for sign in "iu" for size in "1248")


class Located:
    """A long string of bytes in a file: where it begins, its length there, and its content if it was kept.

    With `text` the bytes are stored as UTF-8 text of Latin-1 characters (Python 3 in protocol 2).
    """

    __slots__ = ("data", "nbytes", "offset", "text")

    def __init__(self, offset: int, nbytes: int, data: bytes | None, *, text: bool = False) -> None:
        self.offset, self.nbytes, self.data, self.text = offset, nbytes, data, text

    def content(self) -> bytes | None:
        """The bytes, or None where they were left in the file. Raises ValueError for text beyond Latin-1."""
        if self.data is None or not self.text:
            return self.data
        return self.data.decode("utf-8").encode("latin-1")


class Encoded:
    """Stands for `_codecs.encode(text, "latin1")`: bytes, as Python 3 stores them in protocol 2."""

    __slots__ = ("text",)

    def __init__(self, text: object, codec: object, *_: object) -> None:
        if not isinstance(codec, str | bytes) or codec not in ("latin1", b"latin1"):
            raise ValueError("text in another code than Latin-1")
        if not isinstance(text, str | Located):
            raise ValueError("encoded text that is no text")
        self.text = text

    def unpack(self) -> bytes | Located:
        return self.text.encode("latin-1") if isinstance(self.text, str) else self.text


class Number:
    """Stands for one whole number of numpy."""

    __slots__ = ("value",)

    def __init__(self, kind: object, data: object, *_: object) -> None:
        if isinstance(data, Encoded) and isinstance(data.text, str) and len(data.text) > 8:
            raise ValueError("a number of a wrong length")  # before it is encoded: many may share one text
        held = data.unpack() if isinstance(data, Encoded) else data
        if not (isinstance(kind, NumberType) and isinstance(held, bytes)):
            raise ValueError("a number without a type or bytes")
        wanted = kind.integers()
        if len(held) != wanted.itemsize:
            raise ValueError("a number of a wrong length")
        order: Literal["big", "little"] = "big" if wanted.str[0] == ">" else "little"
        self.value = int.from_bytes(held, order, signed=wanted.kind == "i")


class PickledArray:
    """An array as the file describes it; numpy has not seen it yet. `unpack` checks and builds it."""

    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def unpack(self) -> np.ndarray:
        """The array, uint8 in C order. Raises ValueError for any other kind."""
        shape, data = self.locate()
        if not isinstance(data, bytes):
            raise ValueError("an array without bytes")
        return np.frombuffer(data, np.uint8).reshape(shape)  # reshape refuses a wrong length

    def locate(self) -> tuple[tuple[int, ...], bytes | Located]:
        """Shape and bytes of an array of uint8 in C order. Raises ValueError for any other kind."""
        shape, kind, fortran, data = self._checked()
        if kind.code not in ("u1", b"u1", "|u1", b"|u1") or fortran:
            raise ValueError("an array that is not of bytes in C order")
        return shape, data

    def integers(self) -> np.ndarray:
        """The array (n,) of whole numbers of any size, as int64. Raises ValueError for any other kind."""
        shape, kind, _, data = self._checked()
        held = data.content() if isinstance(data, Located) else data
        if len(shape) != 1 or held is None:
            raise ValueError(f"an array of shape {shape!r}, wanted one row of numbers")
        values = np.frombuffer(held, kind.integers())
        if len(values) != shape[0]:
            raise ValueError(f"an array of {len(values)} numbers that claims {shape[0]}")
        return values.astype(np.int64)

    def _checked(self) -> tuple[tuple[int, ...], NumberType, object, bytes | Located]:
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            raise ValueError("an array without content")
        _, shape, kind, fortran, data = self.state
        if not isinstance(kind, NumberType):
            raise ValueError("an array that is not of bytes in C order")
        if not (
            isinstance(shape, tuple)
            and len(shape) <= MOST_SIDES
            and all(type(side) is int and 0 <= side < LARGEST_SIDE for side in shape)
        ):
            raise ValueError(
                "an array without a plain shape"
            )  # not shown: it may be a small tangle that prints huge
        if isinstance(data, Encoded):
            data = data.unpack()
        if isinstance(data, bytearray):
            data = bytes(data)
        if not isinstance(data, bytes | Located):
            raise ValueError("an array without bytes")
        return shape, kind, fortran, data


class FromBuffer(PickledArray):
    """An array as protocol 5 describes it."""

    __slots__ = ()

    def __init__(self, data: object, kind: object, shape: object, order: object, *_: object) -> None:
        self.state = (1, shape, kind, order not in ("C", b"C"), data)


KNOWN: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): Kind,
    ("numpy", "dtype"): NumberType,
    ("_codecs", "encode"): Encoded,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = PickledArray
    KNOWN[f"{_core}.multiarray", "scalar"] = Number
    KNOWN[f"{_core}.numeric", "_frombuffer"] = FromBuffer
