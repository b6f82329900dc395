"""Files that are whole or not there."""

import errno
import hashlib
import os
import resource
from pathlib import Path

import pytest

from fastdrpl import files
from fastdrpl.files import fault, read_json, sha256_file, write_atomic, write_json
from fastdrpl.loaders.errors import DataError, UserError


@pytest.mark.parametrize("data", [b"", b"x", b"abc" * 100_001])
def test_written_files_come_back(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.bin"
    for content in (b"before", data):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("point", ["file.half-written", "file.before-replace"])
@pytest.mark.parametrize("arrival", [1, 2])
def test_killed_while_writing_the_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, arrival: int
) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"0000")
    monkeypatch.setenv("FASTDRPL_FAULT", f"{point}:{arrival}")
    child = os.fork()
    if child == 0:
        for text in (b"1111", b"2222"):
            write_atomic(path, text)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_bytes() == [b"0000", b"1111"][arrival - 1]
    monkeypatch.delenv("FASTDRPL_FAULT")
    (tmp_path / f".tmp-{os.getpid()}-a.bin").write_bytes(b"left by a dead process of our number")
    write_atomic(path, b"3333")
    assert path.read_bytes() == b"3333"


def test_a_fault_at_another_point_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDRPL_FAULT", "elsewhere:1")
    fault("here")
    monkeypatch.setenv("FASTDRPL_FAULT", "")
    fault("")  # an empty name is no order to die


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write a\.bin: File too large") as caught:
            write_atomic(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.where == str(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_any_refusal_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    write_atomic(tmp_path / "a.bin", b"old")
    monkeypatch.setattr(files.os, call, refuse)
    with pytest.raises(UserError) as caught:
        write_atomic(tmp_path / "a.bin", b"new")
    assert os.strerror(number) in caught.value.what and caught.value.fix
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "a.bin", tmp_path / "file" / "a.bin"):
        with pytest.raises(UserError) as caught:
            write_atomic(path, b"")
        assert caught.value.where == str(path)


def test_json_is_strict_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"b": [1, 2.5, None, True], "a": "ä"}
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text().endswith("}\n")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, bad)
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", None])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert caught.value.where == str(path)
