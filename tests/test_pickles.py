"""Scanned pickles: long strings are found and not read, nothing is run, and memory stays bounded."""

import io
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdrpl.loaders import pickles
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.pickles import KEPT, Located, PickledArray, read_plain, scan_plain, whole_numbers

READERS = [lambda data: scan(data), lambda data: read_plain(io.BytesIO(data), where="x")]
ROOT = Path(__file__).resolve().parent.parent


def scan(data: bytes) -> Any:
    return scan_plain(io.BytesIO(data), len(data), where="x")


def located(array: PickledArray, data: bytes) -> np.ndarray:
    """The array that a scan found in `data`."""
    shape, place = array.locate()
    assert isinstance(place, Located)
    content = data[place.offset : place.offset + place.nbytes]
    if place.text:
        content = content.decode("utf-8").encode("latin-1")
    return np.frombuffer(content, np.uint8).reshape(shape)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_array_is_found_where_it_lies(protocol: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3072), dtype=np.uint8)
    before = {"labels": list(range(50)), "data": pixels, b"after": ("x" * 3, None, True, 1.5, [], -7, 2**40)}
    data = pickle.dumps(before, protocol=protocol)
    after = scan(data)
    assert np.array_equal(located(after["data"], data), pixels)
    assert after["labels"] == list(range(50))
    if protocol > 2:  # which turns short bytes into a call as well
        assert after[b"after"] == before[b"after"]


def test_frames_of_any_size_are_stepped_over() -> None:
    """Python 3.4 to 3.6 put a long string into a frame of its own size."""
    pixels = np.arange(256, dtype=np.uint8).repeat(40).reshape(10, 1024)
    data = pickle.dumps({"data": pixels}, protocol=4)
    plain = b"".join(
        data[at:stop] for (code, _, at), stop in with_ends(data) if code.name not in ("FRAME", "PROTO")
    )
    framed = b"\x80\x04\x95" + struct.pack("<Q", len(plain)) + plain
    assert np.array_equal(located(scan(framed)["data"], framed), pixels)
    assert np.array_equal(pickle.loads(framed)["data"], pixels)


def with_ends(data: bytes) -> list[tuple[Any, int]]:
    steps = list(pickletools.genops(data))
    return list(zip(steps, [at for _, _, at in steps[1:]] + [len(data)], strict=True))  # type: ignore[list-item]


def test_numpy_1_and_2_and_every_kind_of_labels() -> None:
    for labels in ([1, 500, 1000], np.array([1, 500, 1000], ">i4"), np.array([1, 500, 1000], np.uint16)):
        for protocol in (2, 3, 4, 5):
            data = pickle.dumps(labels, protocol=protocol)
            assert whole_numbers(scan(data)).tolist() == [1, 500, 1000]
            other = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            if protocol < 4:  # lines; later the names carry their length
                assert whole_numbers(scan(other)).tolist() == [1, 500, 1000]
    numbers = [np.int64(-3), np.uint8(7), np.int32(2**31 - 1)]
    for protocol in (2, 3, 4, 5):
        assert whole_numbers(scan(pickle.dumps(numbers, protocol=protocol))).tolist() == [-3, 7, 2**31 - 1]
        assert whole_numbers(
            read_plain(io.BytesIO(pickle.dumps(numbers, protocol=protocol)), where="x")
        ).tolist()
    long = np.arange(300_000)
    assert np.array_equal(whole_numbers(scan(pickle.dumps(long))), long)


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # new attributes for a class
        b"c_codecs\ndecode\n.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"]]b.",  # a state for a list
        b"(cnumpy\nndarray\no.",  # steps that no array needs
        b"\x8f.",
        b"I1\n.",
        b"P1\n.",
        b"\x82\x01.",
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87RC\x01x\x86R.",
        b"c" + b"x" * 10_000 + b"\ny\n.",
        b"T\xff\xff\xff\xff.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"h\x05.",
        b"",
        b"]",
        b"..",
        b"\x80\x05",
    ],
)
def test_whatever_no_array_needs_is_refused(data: bytes) -> None:
    if data == b"..":  # ends at the first dot, with nothing on the stack
        data = b"."
    with pytest.raises(DataError):
        scan(data)


def test_strings_are_kept_only_up_to_a_sum_and_never_claimed() -> None:
    long = bytes(KEPT - 1000)
    data = pickle.dumps([long, bytes(2000), bytes(5)], protocol=4)
    first, second, third = scan(data)
    assert first.data == long and second.data is None and third == bytes(5)
    assert data[second.offset : second.offset + second.nbytes] == bytes(2000)
    tracemalloc.start()
    with pytest.raises(DataError, match="ends at byte"):
        scan(b"B" + struct.pack("<I", 1 << 31) + b"x" * 100)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_many_small_steps_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    with pytest.raises(DataError, match="1,000 steps"):
        scan(b"]" * 5000)
    monkeypatch.setattr(pickles, "KEPT", 1000)
    with pytest.raises(DataError, match="too many strings"):
        scan(b"]" + (b"C\xc8" + bytes(200) + b"a") * 50 + b".")


def test_a_bomb_of_small_objects_takes_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(b"\x80\x04" + b"}\x94" * 20_000_000)
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from fastdrpl.loaders.pickles import scan_plain\nfrom fastdrpl.loaders.errors import DataError\n"
        f"path = Path({str(tmp_path / 'bomb')!r})\n"
        "try: scan_plain(open(path, 'rb'), path.stat().st_size, where='x')\n"
        "except DataError: print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600_000  # KiB


def test_130_000_labels_are_scanned_in_well_under_a_second() -> None:
    data = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": [700] * 130_000}, protocol=3)
    start = time.process_time()
    assert len(scan(data)["labels"]) == 130_000
    assert time.process_time() - start < 1


# --- small files that claim much time or text ---


def tangle(levels: int, leaf: bytes = b"N") -> bytes:
    """Steps that leave a tuple of `levels` levels on the stack, each of them the level below twice."""
    first = leaf + b"q\x00"
    return first + b"".join(b"0" + b"h%c" % k + b"h%c" % k + b"\x86q%c" % (k + 1) for k in range(levels))


ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01%s"
    b"cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87R\x89C\x03abctb."
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "data",
    [
        b"}" + tangle(60) + b"K\x01s.",
        b"}(" + tangle(60) + b"K\x01u.",
        b"(" + tangle(60) + b"K\x01d.",
        b"\x8f(" + tangle(60) + b"\x90.",
        b"(" + tangle(60) + b"\x91.",
        b"cnumpy\ndtype\n" + tangle(60) + b"\x85R.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00a" + tangle(60) + b"\x86R.",
        b"}" + b"N\x85" * 200_000 + b"K\x01s.",  # deep, not wide: hashing it would end the process
        b"}NK\x01s.",
        b"]K\x00K\x01s.",
        b"}(K\x01u.",
        b"I0x" + b"f" * 5_000_000 + b"y\n.",
    ],
)
def test_tangles_are_refused_at_once_in_few_words(read: Any, data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        read(data)
    assert len(str(caught.value)) < 1000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("leaf", [b"N", b"K\x01", b"\x8a\xff" + b"\x7f" * 255])
def test_a_tangled_shape_is_refused_at_once_in_few_words(read: Any, leaf: bytes) -> None:
    array = read(ARRAY % tangle(60, leaf))
    for use in (array.locate, array.integers, array.unpack):
        with pytest.raises(ValueError, match="shape") as caught:
            use()
        assert len(str(caught.value)) < 1000
    for shape in (leaf + b"\x85", b"(" + leaf + b"q\x00" + b"h\x00" * 1000 + b"t"):
        with pytest.raises(ValueError) as caught:
            read(ARRAY % shape).unpack()
        assert len(str(caught.value)) < 1000


@pytest.mark.timeout(20)
def test_numbers_that_share_one_long_text_are_refused_before_it_is_encoded() -> None:
    kind = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87Rq\x01"
    text = b"X" + struct.pack("<I", 8 << 20) + b"a" * (8 << 20)
    encoded = b"c_codecs\nencode\n" + text + b"X\x06\x00\x00\x00latin1\x86Rq\x02"
    scalar = b"cnumpy.core.multiarray\nscalar\nq\x00"
    number = b"h\x00h\x01h\x02\x86R"
    with pytest.raises(DataError, match="wrong length"):
        read_plain(io.BytesIO(scalar + kind + encoded + b"](" + number * 30_000 + b"e."), where="x")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tables_within_tables_are_read(read: Any, protocol: int) -> None:
    content = {1: {"a": [1, {2: "b"}]}, "c": {}, 3: (None, {"d": 1.5})}
    assert read(pickle.dumps(content, protocol=protocol)) == content
    assert read_plain(io.BytesIO(pickle.dumps(content, protocol=0)), where="x") == content
