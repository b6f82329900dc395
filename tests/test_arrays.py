"""Hostile .npy and .npz files: refused before memory is taken; sound ones are what numpy reads."""

import io
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdrpl.confusion import read_counts
from fastdrpl.labels import load_labels
from fastdrpl.loaders.arrays import is_npy, open_npz, read_npy, read_npy_head
from fastdrpl.loaders.errors import DataError
from fastdrpl.transitions import load_confusion, load_matrix

ALL = "biufU"


def npy(description: str, data: bytes = b"") -> bytes:
    text = description.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def described(shape: str, kind: str = "<i8", data: bytes = b"", order: str = "False") -> bytes:
    return npy(f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}\n", data)


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(5, dtype=">u2"),
        np.array(7),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.array(["n01440764", "größer"]),
        np.arange(24, dtype=np.int8).reshape(2, 3, 4)[::-1],
    ],
)
def test_sound_arrays_are_what_numpy_reads(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    assert is_npy(tmp_path / "a.npy")
    seen = read_npy(tmp_path / "a.npy", kinds=ALL, most=24)
    assert np.array_equal(seen, array) and (seen.dtype, seen.shape) == (array.dtype, array.shape)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", one=array, two=np.ones(1))
        with open_npz(tmp_path / "a.npz") as stored:
            assert stored.names == ("one", "two")
            seen = stored.read("one", kinds=ALL, most=24)
        assert np.array_equal(seen, array) and (seen.dtype, seen.shape) == (array.dtype, array.shape)


def test_a_description_of_other_writers_is_read() -> None:
    text = '{"shape": (3L, 4L), "fortran_order": True, "descr": "<f8"}'
    head = read_npy_head(io.BytesIO(npy(text)))
    assert (head.shape, head.kind, head.by_columns, head.data) == ((3, 4), "<f8", True, npy(text))


HOSTILE = {
    "huge": described(f"({10**12}, 1000)", "<f8"),
    "overflow": described(f"({10**17}, {10**17}, 0)", "<f8", b"x"),
    "nested": npy("(" * 3000),
    "nested shape": described("(" * 3000),
    "digits": described(f"({'9' * 5000},)"),
    "many sides": described(f"({'1,' * 2000})", data=bytes(8)),
    "backtracking": described("(" + "1" * 4000 + "x)"),
    "object": described("(3,)", "|O", bytes(24)),
    "fields": npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "comma type": described("(1,)", "i4,i4", bytes(8)),
    "wide text": described("(1,)", "<U999999999", b"xxxx"),
    "no text": described(f"({10**15},)", "<U0"),
    "no characters": described("(1,)", "<U1", b"\xff\xff\xff\xff"),
    "cut": saved(np.arange(1000))[:-1],
    "longer": saved(np.arange(1000)) + b"x",
    "cut head": saved(np.arange(1000))[:9],
    "long head": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(20_000),
    "empty": b"",
    "text": b"hello",
    "pickle": b"\x80\x04]\x94.",
}


def hostile_files(folder: Path, name: str) -> tuple[Path, Path]:
    """The array as .npy, and in an .npz under every name that is asked for."""
    (folder / "x.npy").write_bytes(HOSTILE[name])
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        for member in ("index", "row", "given", "truth", "matrix", "schema", "net", "wnids"):
            archive.writestr(f"{member}.npy", HOSTILE[name])
    return folder / "x.npy", folder / "x.npz"


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_arrays_are_data_errors_for_every_reader(name: str, tmp_path: Path) -> None:
    single, packed = hostile_files(tmp_path, name)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            read_npy(single, kinds=ALL, most=1 << 40)
        readers: list[Callable[[], Any]] = [
            lambda: load_matrix(single, 10),
            lambda: load_confusion(packed),
            lambda: load_labels(packed),
            lambda: load_labels(packed, samples=10, class_names=("a", "b")),
            lambda: read_counts(packed),
            lambda: read_counts(packed, ("net",)),
            lambda: read_counts(single),
        ]
        for read in readers:
            with pytest.raises(DataError, match=r"x\.np[yz]") as caught:
                read()
            assert len(str(caught.value)) < 1000
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("names", [("given",), ("index", "matrix", "net")])
def test_a_bomb_is_refused_without_being_unpacked(names: tuple[str, ...], tmp_path: Path) -> None:
    rows = 3 * 10**8 // 8
    head = described(f"({rows},)")
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head)
                for _ in range(rows * 8 // 10**6):
                    file.write(bytes(10**6))
    assert path.stat().st_size < 8 << 20
    start = time.process_time()
    tracemalloc.start()
    try:
        for read in (load_labels, load_confusion, read_counts):
            with pytest.raises(DataError, match=r"bomb\.npz"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 1


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", good=np.arange(3), bad=np.array([{}], dtype=object))
    with open_npz(tmp_path / "a.npz") as stored:
        assert stored.read("good", kinds="i", most=3).tolist() == [0, 1, 2]
        for name, kinds, most in (("bad", ALL, 9), ("good", "f", 9), ("good", "i", 2), ("none", "i", 9)):
            with pytest.raises(ValueError):
                stored.read(name, kinds=kinds, most=most)


def test_a_parquet_of_too_many_samples_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    zeros = pyarrow.array(np.zeros(1 << 21, np.int64))
    table = pyarrow.table({name: zeros for name in ("index", "row", "given", "truth")})
    pyarrow.parquet.write_table(table, tmp_path / "l.parquet")
    assert (tmp_path / "l.parquet").stat().st_size < 1 << 16
    with pytest.raises(DataError, match="2,097,152 samples, more than"):
        load_labels(tmp_path / "l.parquet", samples=10, class_names=("a", "b"))


@given(data=st.data())
def test_mangled_files_are_refused_or_read(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.arange(50), b=np.array(["x", "yz"]))
    broken = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("mangled") / "a.npz"
    path.write_bytes(broken)
    try:
        with open_npz(path) as stored:
            for name in stored.names:
                stored.read(name, kinds=ALL, most=100)
    except (ValueError, OSError):
        pass
