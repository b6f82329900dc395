"""Archives from anywhere: unpacked exactly, or refused with archive and member named; nothing leaves the folder."""

import os
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archive_cases import add
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdrpl.loaders import archives
from fastdrpl.loaders.archives import PHOTOS, Limits, extract, is_archive, walk
from fastdrpl.loaders.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
FILES = {"a/1.txt": b"one", "a/b/2.txt": b"two" * 50_000, "3.txt": b"", "a/Grüße.txt": b"four"}
LIMITS = Limits(members=50, nbytes=1 << 24, swell=10, free=1 << 20)


def write_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        add(archive, "a", b"", type=tarfile.DIRTYPE)
        for name, data in files.items():
            add(archive, name, data, mtime=1_500_000_000)
    return path


def write_zip(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/", b"")
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0)), data, method)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "tar": lambda path: write_tar(path),
    "tar.gz": lambda path: write_tar(path, mode="w:gz"),
    "tar.bz2": lambda path: write_tar(path, mode="w:bz2"),
    "tar.xz": lambda path: write_tar(path, mode="w:xz"),
    "zip": lambda path: write_zip(path),
    "stored.zip": lambda path: write_zip(path, method=zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_sound_archive_is_unpacked_exactly(tmp_path: Path, kind: str) -> None:
    archive = WRITERS[kind](tmp_path / f"archive.{kind}")
    assert is_archive(archive)
    assert extract(archive, tmp_path / "out") == len(FILES)
    seen = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert seen == FILES
    assert (tmp_path / "out" / "a" / "1.txt").stat().st_mtime > 1_490_000_000
    assert stat.S_IMODE((tmp_path / "out" / "3.txt").stat().st_mode) & 0o111 == 0
    assert [member.name for member in walk(archive, PHOTOS, wanted={"3.txt", "a/1.txt"})] == [
        "a/1.txt",
        "3.txt",
    ]


def test_what_is_no_archive_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_bytes(b"<html>not found</html>" * 100)
    (tmp_path / "short").write_bytes(b"PK")
    (tmp_path / "gzip").write_bytes(zlib.compress(b"x" * 2000, wbits=31))
    assert not any(is_archive(path) for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none"))
    with pytest.raises(DataError, match=r"archive(.|\n)*page\.tar"):
        extract(tmp_path / "page.tar", tmp_path / "out")


def hostile_tar(path: Path, what: str) -> None:
    with tarfile.open(path, "w:gz" if what == "swelling" else "w") as archive:
        add(archive, "good.txt", b"good")
        if what == "up":
            add(archive, "a/../../evil.txt")
        elif what == "absolute":
            add(archive, "/tmp/fastdrpl_evil.txt")
        elif what == "backslash":
            add(archive, "..\\evil.txt")
        elif what == "link":
            add(archive, "evil", b"", type=tarfile.SYMTYPE, linkname="/")
            add(archive, "evil/tmp/fastdrpl_evil.txt")
        elif what == "hard link":
            add(archive, "evil", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        elif what == "device":
            add(archive, "evil", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        elif what == "pipe":
            add(archive, "evil", b"", type=tarfile.FIFOTYPE)
        elif what == "twice":
            add(archive, "./evil")
            add(archive, "evil")
        elif what == "file as folder":
            add(archive, "evil")
            add(archive, "evil/inside")
        elif what == "many":
            for number in range(60):
                add(archive, f"evil{number}")
        elif what == "long name":
            add(archive, "evil" * 100)
        elif what == "swelling":
            add(archive, "evil", bytes(8 << 20))
    if what == "sparse":
        append_raw(path, sparse_header())
    elif what == "huge":
        append_raw(path, header("evil", 1 << 60))
    elif what == "negative":
        append_raw(path, header("evil", -512))
    elif what == "huge pax header":
        append_raw(path, header("evil", 1 << 40, kind=b"x") + bytes(4 << 20))
    elif what == "huge long name":
        append_raw(path, header("././@LongLink", 1 << 31, kind=b"L") + b"n" * (4 << 20))
    elif what == "unreadable header":
        append_raw(path, b"evil" * 128)
    elif what == "no end":
        append_raw(path, b"", end=b"")


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A tar header by hand; the size in the binary form that reaches beyond 8 GiB and below 0."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11, "big")
    block[136:148], block[148:156], block[156:157] = b"00000000000\0", b" " * 8, kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse_header() -> bytes:
    """An old GNU sparse file: 1 TB of holes."""
    block = bytearray(header("evil", 0, b"S"))
    block[257:265] = b"ustar  \0"
    block[386:398], block[398:410] = b"00000000000\0", b"00000000000\0"
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def append_raw(path: Path, data: bytes, end: bytes = bytes(1024)) -> None:
    """Put bytes behind the first member (a header and one block), in place of the end mark."""
    path.write_bytes(path.read_bytes()[:1024] + data + end)


TARS = [
    *(
        "up",
        "absolute",
        "backslash",
        "link",
        "hard link",
        "device",
        "pipe",
        "twice",
        "file as folder",
        "many",
    ),
    *("long name", "swelling", "sparse", "huge", "negative", "huge pax header", "huge long name"),
    *("unreadable header", "no end"),
]


@pytest.mark.parametrize("what", TARS)
def test_a_hostile_tar_is_refused_and_named(tmp_path: Path, what: str) -> None:
    """R8."""
    archive = tmp_path / "in" / "hostile.tar"
    archive.parent.mkdir()
    hostile_tar(archive, what)
    with pytest.raises(DataError) as caught:
        extract(archive, tmp_path / "in" / "out", LIMITS)
    assert "hostile.tar" in str(caught.value) and "member" in str(caught.value)
    if not what.startswith(("huge ", "unreadable", "no end")):
        assert "evil" in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["hostile.tar", "in"]
    assert not os.path.lexists("/tmp/fastdrpl_evil.txt")


def hostile_zip(path: Path, what: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.txt", b"good")
        if what == "up":
            archive.writestr("a/../../evil.txt", b"x")
        elif what == "absolute":
            archive.writestr("/tmp/fastdrpl_evil.txt", b"x")
        elif what == "drive":
            archive.writestr("C:evil.txt", b"x")
        elif what == "link":
            link = zipfile.ZipInfo("evil")
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
        elif what == "twice":
            archive.writestr("evil/x", b"1")
            archive.writestr("./evil//x", b"2")
        elif what == "file as folder":
            archive.writestr("evil/inside", b"1")
            archive.writestr("evil", b"2")
        elif what == "bomb":
            archive.writestr("evil", bytes(12 << 20))
        elif what == "many":
            for number in range(60):
                archive.writestr(f"evil{number}", b"")
        elif what == "method":
            archive.writestr("evil", b"x", compress_type=zipfile.ZIP_LZMA)
        else:
            archive.writestr("evil", os.urandom(1000))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    if what == "encrypted":
        data[entry + 8] |= 1
    elif what == "claims less":
        struct.pack_into("<I", data, entry + 24, 10)
    elif what == "claims more":
        struct.pack_into("<I", data, entry + 24, 1 << 20)
    elif what == "other offset":
        struct.pack_into("<I", data, entry + 42, 7)
    elif what == "wrong sum":
        data[data.index(b"evil", 10) + 50] ^= 1
    elif what == "cut":
        del data[-40:]
    path.write_bytes(data)


ZIPS = ["up", "absolute", "drive", "link", "twice", "file as folder", "bomb", "many", "method", "encrypted"]
ZIPS += ["claims less", "claims more", "other offset", "wrong sum", "cut"]


@pytest.mark.parametrize("what", ZIPS)
def test_a_hostile_zip_is_refused_and_named(tmp_path: Path, what: str) -> None:
    """R8."""
    archive = tmp_path / "in" / "hostile.zip"
    archive.parent.mkdir()
    hostile_zip(archive, what)
    with pytest.raises(DataError) as caught:
        extract(archive, tmp_path / "in" / "out", LIMITS)
    assert "hostile.zip" in str(caught.value)
    assert what == "cut" or "evil" in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["hostile.zip", "in"]
    assert not os.path.lexists("/tmp/fastdrpl_evil.txt")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_every_cut_is_found(tmp_path: Path, kind: str) -> None:
    whole = WRITERS[kind](tmp_path / f"archive.{kind}").read_bytes()
    stops = {len(whole) * part // 40 for part in range(40)} | {len(whole) - 1}
    if kind == "tar":  # it ends in zeros up to 10,240 bytes, of which one block is enough
        end = len(whole.rstrip(b"\0"))
        stops = {stop for stop in stops if stop < end} | {512, 1024, 1536, end - 1}
    for stop in sorted(stops):
        (tmp_path / "cut").write_bytes(whole[:stop])
        with pytest.raises(DataError):
            extract(tmp_path / "cut", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(list(WRITERS)), data=st.data())
def test_mangled_archives_are_refused_or_harmless(tmp_path: Path, kind: str, data: Any) -> None:
    folder = tmp_path / "fuzz"
    folder.mkdir(exist_ok=True)
    content = bytearray(WRITERS[kind](folder / f"archive.{kind}").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "mangled").write_bytes(content)
    try:
        extract(folder / "mangled", folder / "out", LIMITS)
    except DataError as error:
        assert "mangled" in str(error)
        assert not (folder / "out").exists()
        return
    for path in (folder / "out").rglob("*"):
        assert not path.is_symlink() and (path.is_dir() or path.is_file())
    archives.shutil.rmtree(folder / "out")


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    """R8."""
    packer = zlib.compressobj(9, wbits=31)
    with open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(packer.compress(header("long", 1 << 31, b"L")))
        for _ in range(600):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from fastdrpl.loaders.archives import extract\nfrom fastdrpl.loaders.errors import DataError\n"
        f"try: extract(Path({str(tmp_path / 'bomb.tar.gz')!r}), Path({str(tmp_path / 'out')!r}))\n"
        "except DataError: print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # KiB; numpy and the interpreter alone take 40,000


def test_times_that_no_disk_knows_are_dropped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "old", mtime=-5)
        add(archive, "late", pax_headers={"mtime": "1e30"})
        add(archive, "none", pax_headers={"mtime": "nan"})
    assert extract(tmp_path / "a.tar", tmp_path / "out") == 3
    assert {path.stat().st_mtime for path in (tmp_path / "out").iterdir()} == {0.0}
