"""Pickles that would run something, and mangled ones: refused; plain ones: read."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_cases import small_batch

from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.pickles import PickledArray, read_plain

# --- pickles -------------------------------------------------------------------------------------------------------


class Gadget:
    """Asks the reader to call something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def gadgets(marker: Path) -> list[bytes]:
    """Pickles that touch `marker` when a careless reader loads them."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    calls = [
        Gadget(os.system, touch),
        Gadget(os.popen, touch),
        Gadget(eval, code),
        Gadget(exec, code),
        Gadget(open, str(marker), "w"),
        Gadget(__import__, "antigravity"),
        Gadget(os.open, str(marker), os.O_CREAT | os.O_WRONLY),
        Gadget(Path.touch, marker),
        Gadget(np.ndarray, (3,)),
        Gadget(np.save, str(marker), 1),
        Gadget(getattr, "os", "system"),
    ]
    files = [
        pickle.dumps(what, protocol=p)
        for call in calls
        for p in (0, 2, 4)
        for what in (call, {b"data": [call]})
    ]
    text = str(marker).encode()
    by_hand = [
        b"cos\nsystem\n(S'touch " + text + b"'\ntR.",
        b"(S'touch " + text + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch " + text + b"'\no.",
        b'cbuiltins\nexec\n(S"' + code.encode() + b'"\ntR.',
        b"cnumpy\nndarray.__new__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'x'\ntR.",
        b"cnumpy\nload\n(S'" + text + b"'\nI00\nI01\ntR.",
        b"P1\n.",  # a persistent object
        b"\x82\x01.",  # an object of the extension registry
        b"cnumpy\nndarray\n}S'a'\nI1\nsb.",  # new attributes for a class
    ]
    return files + by_hand


def test_hostile_pickles_are_never_run(tmp_path: Path) -> None:
    """R9."""
    marker = tmp_path / "marker"
    files = gadgets(marker)
    assert len(files) >= 30
    for data in files:
        with pytest.raises(DataError):
            read_plain(io.BytesIO(data), where="x")
        assert not marker.exists()
    pickle.Unpickler(io.BytesIO(files[0])).load()  # the files do what they claim
    assert marker.exists()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mangled_pickles_are_refused_or_plain(data: Any) -> None:
    broken = bytearray(small_batch(2))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(broken) - 1)))
        broken[at] = data.draw(st.integers(0, 255))
    try:
        content = read_plain(io.BytesIO(bytes(broken)), where="x")
    except DataError:
        return
    containers = (dict, list, tuple, set, frozenset, bytes, bytearray, str)
    inert = (type,)  # the reader's own classes, not called
    assert isinstance(content, (*containers, int, float, type(None), PickledArray, *inert))


def test_plain_content_is_read() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = {"a": [1, (2, "x")], b"b": array, "c": None}
    seen = read_plain(io.BytesIO(pickle.dumps(content, protocol=4)), where="x")
    assert np.array_equal(seen.pop(b"b").unpack(), array)
    assert seen == {"a": [1, (2, "x")], "c": None}
