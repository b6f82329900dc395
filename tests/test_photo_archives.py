"""Photos in an archive: layouts, packings, and what is wrong inside."""

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from archive_cases import add
from PIL import Image

from fastdrpl.loaders import unpacking
from fastdrpl.loaders.archives import extract
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare

# --- photos in an archive -------------------------------------------------------------------------------------------


def png(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (9, 7), grey).save(out, "PNG")
    return out.getvalue()


def pack(path: Path, *names: str) -> Path:
    """A zip, or a tar: images where the name says so, else notes."""
    files = {name: png(k) if name.endswith(".png") else b"notes" for k, name in enumerate(names)}
    return write_plain_tar(path, files) if ".tar" in path.name else write_plain_zip(path, files)


def write_plain_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            add(archive, name, data)
    return path


def write_plain_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def run(source: Path, out: Path) -> Dataset:
    return prepare(PrepareConfig(kind="folder", source=source, out=out, size=8), quiet=True)


IMAGES = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
BESIDE = {
    "mac": ["__MACOSX/._photos", "__MACOSX/photos/cat/._0.png", ".DS_Store", "TOP/.DS_Store"],
    "read me": ["README.txt", "preview.png"],
    "hidden": [".git/config", "TOP/.thumbnails/0.png"],
}


@pytest.mark.parametrize("beside", list(BESIDE))
@pytest.mark.parametrize("top", ["photos", "a/b/photos"])
@pytest.mark.parametrize("end", [".zip", ".tar"])
def test_what_lies_beside_the_photos_does_not_hide_them(
    tmp_path: Path, beside: str, top: str, end: str
) -> None:
    names = [name.replace("TOP", top) for name in (*BESIDE[beside], *(f"TOP/{name}" for name in IMAGES))]
    dataset = run(pack(tmp_path / f"x{end}", *names), tmp_path / "out")
    assert dataset.class_names == ("cat", "dog") and dataset.name == "photos"
    assert dataset.ids("train") == tuple(IMAGES) and dataset.split("train").valid.all()


def test_a_training_folder_alone_is_as_in_a_folder(tmp_path: Path) -> None:
    dataset = run(pack(tmp_path / "x.zip", *(f"photos/train/{name}" for name in IMAGES)), tmp_path / "out")
    assert dataset.ids("train") == tuple(f"train/{name}" for name in IMAGES)


def test_what_is_wrong_inside_is_named_by_its_place_in_the_archive(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.zip", "photos/cat/0.png", "photos/cat/1.png")
    with pytest.raises(UserError, match="1 class folders here") as caught:
        run(archive, tmp_path / "out")
    assert f"where: {archive}/photos\n" in str(caught.value) and ".unpacked" not in str(caught.value)
    archive = pack(tmp_path / "x.zip", "photos/cat/0.png", "photos/dog/notes.txt")
    with pytest.raises(DataError, match="'dog' has no image") as caught_too:
        run(archive, tmp_path / "out")
    assert f"where: {archive}/photos/dog\n" in str(caught_too.value)
    assert caught_too.value.exit_code == 3 and [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_zip_with_backslashes_between_folders(tmp_path: Path) -> None:
    files = {"photos\\": b"", "photos\\cat\\": b""}
    files |= {f"photos/{name}".replace("/", "\\"): png(k) for k, name in enumerate(IMAGES)}
    dataset = run(write_plain_zip(tmp_path / "x.zip", files), tmp_path / "out")
    assert dataset.class_names == ("cat", "dog") and dataset.ids("train") == tuple(IMAGES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["..\\evil"], "leads out"),
        (["a\\..\\..\\evil"], "leads out"),
        (["\\evil"], "leads out"),
        (["C:\\evil"], "leads out"),
        (["a\\evil", "a/evil"], "one name twice"),
        (["evil", "evil\\inside"], "a file is a folder"),
        (["a\\" + "evil" * 100], "too long"),
    ],
)
def test_backslashes_pass_no_guard(tmp_path: Path, names: list[str], message: str) -> None:
    archive = write_plain_zip(tmp_path / "hostile.zip", dict.fromkeys(names, b"x"))
    with pytest.raises(DataError, match=message) as caught:
        extract(archive, tmp_path / "out")
    assert "evil" in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_the_oldest_tar_format_is_read(tmp_path: Path, packed: bool) -> None:
    for name in IMAGES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(png(7))
    archive = tmp_path / "x.tar"
    command = ["tar", "--format=v7", *(["-z"] if packed else []), "-cf", str(archive), "photos"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert b"ustar" not in archive.read_bytes()
    assert run(archive, tmp_path / "out").ids("train") == tuple(IMAGES)


@pytest.mark.parametrize(
    ("name", "head"),
    [("zstd", b"\x28\xb5\x2f\xfd"), ("7z", b"7z\xbc\xaf\x27\x1c"), ("rar", b"Rar!\x1a\x07\1\0")],
)
def test_other_packings_are_to_be_unpacked_first(tmp_path: Path, name: str, head: bytes) -> None:
    (tmp_path / "photos.tar.x").write_bytes(head + bytes(100))
    with pytest.raises(UserError, match=rf"packed by {name}(.|\n)*photos\.tar\.x(.|\n)*unpack it first"):
        run(tmp_path / "photos.tar.x", tmp_path / "out")
    (tmp_path / "photos.tar.x").write_bytes(b"something else")
    with pytest.raises(UserError, match="the source is no folder"):
        run(tmp_path / "photos.tar.x", tmp_path / "out")


@pytest.mark.parametrize("end", [".zip", ".tar"])
def test_too_little_disk_is_said_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    archive = pack(tmp_path / f"x{end}", *IMAGES)
    needed = 4 * 4096 if end == ".zip" else archive.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    monkeypatch.setattr(unpacking, "extract", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match="not enough disk to unpack"):
        run(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
    monkeypatch.setattr(unpacking, "extract", lambda *_: (_ for _ in ()).throw(InterruptedError))
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    with pytest.raises(DataError, match="the system reports"):  # it was begun
        run(archive, tmp_path / "out")
