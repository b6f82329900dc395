"""Readers of pickles that can build plain containers and arrays, and can call nothing else.

A pickle is a program: the standard reader runs whatever function the file names. Here every name in the
file is looked up in a table of inert classes; all others are refused before anything is called.
`read_plain` loads a file whole. `scan_plain` leaves long strings of bytes where they are and says where.
"""

import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import numpy as np

from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.pickled import KNOWN, Encoded, Located, Number, NumberType, PickledArray

__all__ = ["KEPT", "LONG", "Located", "PickledArray", "read_plain", "scan_plain", "whole_numbers"]

LONG = 256  # bytes; `scan_plain` gives longer strings as `Located`
KEPT = 16 << 20  # bytes of strings that one scan holds in memory, all together
MOST_STEPS = 4_000_000  # of one scan; 130,000 labels, each an object of numpy, need a quarter
LONGEST_NAME = 256  # bytes of the name of a class

Step = Callable[[Any], None]


# Python's own reader, not the one in C: that one takes memory for whatever number a damaged file names.
class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module[:LONGEST_NAME]}.{name[:LONGEST_NAME]}")
        return KNOWN[module, name]

    def load_build(self) -> None:
        """Give its state to one of our objects; the standard step would also set attributes of classes."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, PickledArray | NumberType):
            raise pickle.UnpicklingError("it changes an object that is no array")
        target.__setstate__(state)

    def load_setitem(self) -> None:
        """Enter one pair into a dict."""
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._enter([key, value])

    def load_setitems(self) -> None:
        """Enter all pairs since the last mark into a dict."""
        self._enter(self.pop_mark())  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        """A dict of all pairs since the last mark."""
        pairs = self.pop_mark()  # type: ignore[attr-defined]
        self.stack.append({})  # type: ignore[attr-defined]
        self._enter(pairs)

    def _enter(self, pairs: list[Any]) -> None:
        # A tuple is no key here: one of 60 levels, each the level below twice, takes 2**60 steps to hash.
        table = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(table, dict) or len(pairs) % 2:
            raise pickle.UnpicklingError("it enters values into what is no table")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, bytes, int, Located, Encoded):
                raise pickle.UnpicklingError(f"a table with a key of the type {type(key).__name__}")
            table[key] = value

    # What plain containers and arrays of every protocol need. No sets: they hash what a file builds.
    dispatch: ClassVar[dict[int, Step]] = {
        **{
            code[0]: pickle._Unpickler.dispatch[code[0]]  # type: ignore[attr-defined]
            for code in (
                *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
                *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.FLOAT, pickle.BINFLOAT),
                *(pickle.INT, pickle.LONG, pickle.LONG1, pickle.BININT, pickle.BININT1, pickle.BININT2),
                *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
                *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.BYTEARRAY8),
                *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
                *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
                *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
                *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
                *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
                *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
            )
        },
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


class _Scanner(_PlainUnpickler):
    """Steps over long strings. It knows the steps that arrays and containers of protocol 2 to 5 need."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, encoding="bytes")
        self.file, self.size, self.kept = file, size, 0

    def scan(self) -> Any:
        """The object in the file."""
        self.metastack: list[Any] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        self.read = read = self.file.read
        self.readline = self._read_name
        dispatch = self.dispatch
        try:
            for _ in range(MOST_STEPS):
                dispatch[read(1)[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise ValueError(f"it needs more than {MOST_STEPS:,} steps")

    def _read_name(self) -> bytes:
        return self.file.readline(LONGEST_NAME)

    def load_frame(self) -> None:
        self.read(8)  # frames say how far to read ahead: of no meaning here

    def _load_bytes(self, nbytes: int, *, text: bool = False) -> None:
        offset = self.file.tell()
        if offset + nbytes > self.size:
            raise EOFError(f"a string of {nbytes:,} bytes in a file that ends at byte {self.size:,}")
        data = None
        if self.kept + nbytes <= KEPT:
            self.kept += nbytes
            data = self.read(nbytes)
            if len(data) != nbytes:
                raise EOFError("it ends inside a string")
        elif nbytes <= LONG:
            raise ValueError("it holds too many strings")
        else:
            self.file.seek(nbytes, 1)
        if data is not None and nbytes <= LONG:
            self.append(data.decode("utf-8", "surrogatepass") if text else data)
        else:
            self.append(Located(offset, nbytes, data, text=text))

    def _load_bytes1(self) -> None:
        self._load_bytes(self.read(1)[0])

    def _load_bytes4(self) -> None:
        self._load_bytes(struct.unpack("<I", self.read(4))[0])

    def _load_bytes8(self) -> None:
        self._load_bytes(struct.unpack("<Q", self.read(8))[0])

    def _load_text1(self) -> None:
        self._load_bytes(self.read(1)[0], text=True)

    def _load_text4(self) -> None:
        self._load_bytes(struct.unpack("<I", self.read(4))[0], text=True)

    def _load_text8(self) -> None:
        self._load_bytes(struct.unpack("<Q", self.read(8))[0], text=True)

    dispatch: ClassVar[dict[int, Step]] = {
        **{
            code[0]: _PlainUnpickler.dispatch[code[0]]
            for code in (  # as above, without those of protocol 0 and those that are replaced below
                *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
                *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT),
                *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
                *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
                *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
                *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
                *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
                *(pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
            )
        },
        pickle.FRAME[0]: load_frame,
        pickle.SHORT_BINBYTES[0]: _load_bytes1,
        pickle.SHORT_BINSTRING[0]: _load_bytes1,
        pickle.BINBYTES[0]: _load_bytes4,
        pickle.BINSTRING[0]: _load_bytes4,
        pickle.BINBYTES8[0]: _load_bytes8,
        pickle.BYTEARRAY8[0]: _load_bytes8,
        pickle.SHORT_BINUNICODE[0]: _load_text1,
        pickle.BINUNICODE[0]: _load_text4,
        pickle.BINUNICODE8[0]: _load_text8,
    }


def read_plain(file: IO[bytes], *, where: str) -> Any:
    """The object in a pickle of dict, list, tuple, bytes, str, numbers and `PickledArray`.

    Strings of Python 2 come as bytes. Raises DataError for a pickle that asks for anything else or is cut.
    A small file can still claim much memory: check its digest first where one is known.
    """
    with _damage_named(where):
        return _PlainUnpickler(file, encoding="bytes").load()


def scan_plain(file: IO[bytes], size: int, *, where: str) -> Any:
    """As `read_plain`, but strings longer than `LONG` come as `Located`: of those, 16 MiB are kept.

    `file` stands at its beginning, has `size` bytes and can `seek` forward. Memory stays below about
    500 MB whatever the file holds. Raises DataError.
    """
    with _damage_named(where):
        return _Scanner(file, size).scan()


def whole_numbers(values: Any) -> np.ndarray:
    """A list of whole numbers, or an array of them, from a pickle: (n,) int64. Raises ValueError."""
    if isinstance(values, PickledArray):
        return values.integers()
    if not isinstance(values, list):
        raise ValueError("labels that are no list of whole numbers")
    plain = [value.value if isinstance(value, Number) else value for value in values]
    if not all(type(value) is int for value in plain):
        raise ValueError("labels that are no list of whole numbers")
    try:
        return np.array(plain, dtype=np.int64)
    except OverflowError:
        raise ValueError("labels larger than any class") from None


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    try:
        yield
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
        zlib.error,
    ) as error:
        raise DataError(
            f"a pickle that holds more than plain arrays and containers, or is damaged: {str(error)[:LONGEST_NAME]}",
            where=where,
            fix="download the file again from its official address",
        ) from None
