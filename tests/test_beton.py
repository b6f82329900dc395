"""The compiled file: written in any pieces, read back, and never trusted when damaged."""

import errno
import hashlib
import io
import os
import random
import struct
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders import beton
from fastdrpl.loaders.beton import BetonWriter, choose_page_size, place_raw, read_tables
from fastdrpl.loaders.beton_tables import SMALLEST_PAGE
from fastdrpl.loaders.errors import DataError

HEAD = 24 + 3 * 1041  # header and three field descriptors


def random_images(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)


def write_raw(path: Path, images: np.ndarray, labels: np.ndarray, pieces: list[int] | None = None) -> str:
    with closing(BetonWriter(path, labels, height=images.shape[1], width=images.shape[2])) as writer:
        for piece in np.split(images, pieces or []):
            writer.write_raw(piece)
        return writer.finish()[1]


def read_slowly(path: Path) -> tuple[list[np.ndarray], list[int], list[int]]:
    """An independent reader of raw files: plain `struct`, one row at a time."""
    data = path.read_bytes()
    version, fields, _page, rows, table = struct.unpack_from("<HHIQQ", data)
    assert (version, fields) == (2, 3)
    images, labels, indices = [], [], []
    for row in range(rows):
        at = HEAD + 32 * row
        mode, width, height, offset = struct.unpack_from("<BHHQ", data, at)
        label, index = struct.unpack_from("<qq", data, at + 16)
        place = struct.unpack_from("<QQQ", data, table + 24 * row)
        assert mode == 1 and place == (row, offset, width * height * 3)
        images.append(np.frombuffer(data, np.uint8, place[2], offset).reshape(height, width, 3))
        labels.append(label)
        indices.append(index)
    assert table + 24 * rows == len(data)
    return images, labels, indices


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 900), size=st.sampled_from([1, 7, 32, 64]), data=st.data())
def test_any_pieces_give_the_same_file_and_pixels(
    tmp_path_factory: Any, rows: int, size: int, data: Any
) -> None:
    folder = tmp_path_factory.mktemp("beton")
    images, labels = random_images(rows, size), np.arange(rows) % 10
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=5)))
    digest = write_raw(folder / "a", images, labels, cuts)
    assert write_raw(folder / "b", images, labels) == digest
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    assert hashlib.sha256((folder / "a").read_bytes()).hexdigest() == digest
    seen, seen_labels, index = read_slowly(folder / "a")
    assert np.array_equal(np.stack(seen), images)
    assert seen_labels == labels.tolist() and index == list(range(rows))


def test_no_image_crosses_a_page_and_pages_are_aligned(tmp_path: Path) -> None:
    images = random_images(1500, 32)
    write_raw(tmp_path / "a", images, np.zeros(1500, np.int64))
    tables = read_tables(tmp_path / "a")
    assert tables.page_size == SMALLEST_PAGE
    assert len(set(tables.offset // SMALLEST_PAGE)) == 3  # 682 images a page
    assert (tables.offset // SMALLEST_PAGE == (tables.offset + tables.nbytes - 1) // SMALLEST_PAGE).all()
    assert tables.offset[0] % SMALLEST_PAGE == 0
    assert np.array_equal(tables.offset, place_raw(1500, 3072, SMALLEST_PAGE))


@pytest.mark.parametrize("size", [1, 16, 32, 64, 256, 1024, 4096])
def test_page_size_is_a_power_of_two_that_wastes_little(size: int) -> None:
    page, image = choose_page_size(size * size * 3), size * size * 3
    assert page & (page - 1) == 0 and page >= SMALLEST_PAGE and page >= image
    if size <= 256:
        assert page % image <= page / 32


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_resuming_at_a_page_gives_the_unbroken_file(tmp_path: Path, store: Any) -> None:
    images, labels = random_images(400, 128), np.arange(400) % 3
    jpegs = [to_jpeg(image) for image in images]

    def write(writer: BetonWriter, start: int, stop: int) -> None:
        if store == "raw":
            writer.write_raw(images[start:stop])
        else:
            writer.write_jpeg(jpegs[start:stop])

    with closing(BetonWriter(tmp_path / "whole", labels, height=128, width=128, store=store)) as writer:
        write(writer, 0, 400)
        whole = writer.finish()
    with closing(BetonWriter(tmp_path / "broken", labels, height=128, width=128, store=store)) as writer:
        write(writer, 0, 390)
        rows, sizes = writer.sync(), writer.nbytes[: writer.done_in_pages].tolist()
    assert rows < 390 and tell_pages(tmp_path / "broken") >= 3
    with open(tmp_path / "broken", "ab") as file:
        file.write(b"a page that was being written")
    sizes = sizes if store == "jpeg" else []
    resume = (rows, sizes)
    with closing(
        BetonWriter(
            tmp_path / "broken", labels, height=128, width=128, store=store, resume=resume, direct=True
        )
    ) as writer:
        write(writer, rows, 400)
        assert writer.finish() == whole
    assert (tmp_path / "broken").read_bytes() == (tmp_path / "whole").read_bytes()
    assert hashlib.sha256((tmp_path / "whole").read_bytes()).hexdigest() == whole[1]


def tell_pages(path: Path) -> int:
    return path.stat().st_size // SMALLEST_PAGE - 1


def test_jpeg_rows_are_the_files_that_went_in(tmp_path: Path) -> None:
    jpegs = [to_jpeg(image) for image in random_images(20, 40)]
    with closing(BetonWriter(tmp_path / "a", np.arange(20), height=40, width=40, store="jpeg")) as writer:
        writer.write_jpeg(jpegs)
        writer.finish()
    tables, data = read_tables(tmp_path / "a"), (tmp_path / "a").read_bytes()
    assert tables.store == "jpeg"
    places = zip(tables.offset, tables.nbytes, strict=True)
    assert [data[offset : offset + nbytes] for offset, nbytes in places] == jpegs


@pytest.mark.parametrize(
    ("rows", "images"),
    [(0, random_images(0, 8)), (2, random_images(3, 8)), (3, random_images(2, 8)), (2, random_images(2, 9))],
)
def test_a_wrong_number_or_size_of_images_is_refused(tmp_path: Path, rows: int, images: np.ndarray) -> None:
    with (
        pytest.raises(ValueError, match=r"rows|images"),
        closing(BetonWriter(tmp_path / "a", np.zeros(rows, np.int64), height=8, width=8)) as writer,
    ):
        writer.write_raw(images)
        writer.finish()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("beton") / "sound"
    write_raw(path, random_images(40, 16), np.arange(40) % 10)
    return path.read_bytes()


def check_broken(path: Path, data: bytes, sound: bytes) -> None:
    """A damaged file is refused with advice, or what is read from it is all inside it."""
    path.write_bytes(data)
    limit = 2 * len(data) + (1 << 16)  # the interpreter's own small objects
    tracemalloc.start()
    try:
        tables = read_tables(path)
    except DataError as error:
        assert "fastdrpl prepare" in str(error) and str(path) in str(error)
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= limit
    assert (tables.height, tables.width, tables.store, len(tables.label)) == (16, 16, "raw", 40)
    assert tables.offset.min() >= HEAD and (tables.offset + tables.nbytes).max() <= len(data)
    # what the digest does not show cannot have changed anything
    path.write_bytes(sound)
    if tables.sha256 == read_tables(path).sha256:
        assert np.array_equal(tables.label, np.arange(40) % 10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_in_header_and_tables(tmp_path: Path, sound: bytes, data: Any) -> None:
    """R5."""
    table = struct.unpack_from("<Q", sound, 16)[0]
    broken = bytearray(sound)
    places = st.one_of(
        st.integers(0, 23), st.integers(24, HEAD + 40 * 32 - 1), st.integers(table, len(sound) - 1)
    )
    for at in data.draw(st.lists(places, min_size=1, max_size=4)):
        broken[at] ^= data.draw(st.integers(1, 255))
    check_broken(tmp_path / "x", bytes(broken), sound)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 1 << 23), extra=st.integers(0, 50))
def test_cut_and_grown_files_are_refused(tmp_path: Path, sound: bytes, cut: int, extra: int) -> None:
    """R5."""
    data = sound[: cut % len(sound)] + b"\0" * extra
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match="run `fastdrpl prepare` again"):
        read_tables(tmp_path / "x")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from([("<H", 0), ("<H", 2), ("<I", 4), ("<Q", 8), ("<Q", 16)]),
    value=st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([2**63, 2**40, 2**32 - 1, 2**31, 41, 39, 0])),
)
def test_huge_and_wrong_counts_are_refused(tmp_path: Path, sound: bytes, field: Any, value: int) -> None:
    """R5."""
    kind, at = field
    value %= 1 << (8 * struct.calcsize(kind))
    broken = bytearray(sound)
    struct.pack_into(kind, broken, at, value)
    if bytes(broken) != sound:
        check_broken(tmp_path / "x", bytes(broken), sound)
        with pytest.raises(DataError):
            (tmp_path / "x").write_bytes(bytes(broken))
            read_tables(tmp_path / "x")


@pytest.mark.slow
def test_thousand_damaged_files(tmp_path: Path, sound: bytes) -> None:
    """R5: bytes changed anywhere, cuts, huge numbers: refused, or read within the file, in bounded memory."""
    chance = random.Random(5)
    for _ in range(1000):
        broken = bytearray(sound)
        for _ in range(chance.randrange(1, 5)):
            width = chance.choice([1, 4, 8])
            at = chance.choice(
                [chance.randrange(24), chance.randrange(HEAD + 40 * 32), chance.randrange(len(sound) - 8)]
            )
            broken[at : at + width] = chance.choice([chance.randbytes(width), b"\xff" * width])
        if chance.random() < 0.2:
            del broken[chance.randrange(len(broken)) :]
        check_broken(tmp_path / "x", bytes(broken), sound)


@pytest.mark.parametrize("offset", [0, HEAD, 2**64 - 1, 2**63, 1 << 22])
def test_offsets_outside_the_data_are_refused(tmp_path: Path, sound: bytes, offset: int) -> None:
    table = struct.unpack_from("<Q", sound, 16)[0]
    broken = bytearray(sound)
    struct.pack_into("<Q", broken, HEAD + 5, offset)  # the first record's place
    struct.pack_into("<Q", broken, table + 8, offset)
    (tmp_path / "x").write_bytes(bytes(broken))
    with pytest.raises(DataError):
        read_tables(tmp_path / "x")


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError):
            read_tables(path)


def test_writing_needs_a_few_pages_and_not_the_file(tmp_path: Path) -> None:
    labels = np.zeros(8000, np.int64)  # 25 MB of pixels
    piece = random_images(100, 32)
    tracemalloc.start()
    with closing(BetonWriter(tmp_path / "a", labels, height=32, width=32)) as writer:
        for _ in range(80):
            writer.write_raw(piece)
        writer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert os.path.getsize(tmp_path / "a") > 24e6
    assert peak < 5 * SMALLEST_PAGE + 4 * 56 * 8000


def to_jpeg(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95)
    return out.getvalue()


def test_a_view_of_colour_planes_gives_the_same_file(tmp_path: Path) -> None:
    images = random_images(700, 64)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(700, -1)
    view = planes.reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1)
    assert not view.flags.c_contiguous
    labels = np.zeros(700, np.int64)
    assert write_raw(tmp_path / "a", view, labels, [100, 101]) == write_raw(tmp_path / "b", images, labels)


def test_after_a_failed_write_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = beton._write_all, []

    def fail_once(descriptor: int, data: memoryview) -> None:
        calls.append(len(data))
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "full for a moment")
        real(descriptor, data)

    monkeypatch.setattr(beton, "_write_all", fail_once)
    labels = np.zeros(20_000, np.int64)
    writer = BetonWriter(tmp_path / "a", labels, height=32, width=32)
    with closing(writer), pytest.raises(OSError, match="for a moment"):
        for _ in range(200):
            writer.write_raw(random_images(100, 32))
        writer.finish()
    assert len(calls) == 4 and writer.done_in_pages == 2 * (SMALLEST_PAGE // 3072)  # the head and two pages


@pytest.mark.parametrize("fails", [None, "switch", "write"])
def test_writing_past_the_cache_gives_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str | None
) -> None:
    """Also where the disk refuses it, at once or at the first page."""
    images, labels = random_images(2000, 32), np.arange(2000)
    wanted = write_raw(tmp_path / "b", images, labels)
    real_write, real_fcntl, direct = beton._write_all, beton.fcntl.fcntl, []

    def write(descriptor: int, data: memoryview) -> None:
        is_direct = bool(real_fcntl(descriptor, beton.fcntl.F_GETFL) & os.O_DIRECT)
        direct.append(is_direct)
        if fails == "write" and is_direct:
            os.write(descriptor, data[:4096])
            raise OSError(errno.EINVAL, "not on this disk")
        real_write(descriptor, data)

    def control(file: Any, command: int, *flags: int) -> Any:
        if fails == "switch" and flags and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not on this disk")
        return real_fcntl(file, command, *flags)

    monkeypatch.setattr(beton, "_write_all", write)
    monkeypatch.setattr(beton.fcntl, "fcntl", control)
    writer = BetonWriter(tmp_path / "a", labels, height=32, width=32, direct=True)
    with closing(writer):
        writer.write_raw(images)
        assert writer.finish()[1] == wanted
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not direct[0] and not direct[-1]  # the head and the table
    if fails is None and not writer._direct_pages:
        return  # the temporary folder is on a disk that knows no direct writing
    assert direct == {None: [False, True, True, True, False], "switch": [False] * 5}.get(
        fails, [False, True, *[False] * 4]
    )
