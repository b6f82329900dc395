"""No file is dropped or taken in silence: what is an image, what is not, what would read it; one walk for all."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from need import need
from PIL import Image

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources import formats
from fastdrpl.loaders.sources.pictures import Unreadable, read_picture
from fastdrpl.loaders.sources.system_names import is_system
from fastdrpl.loaders.sources.walking import Left, list_images
from fastdrpl.predict import find_images

HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 60
AVIF = b"\0\0\0\x18ftypavif" + b"\0" * 60


def image(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (7, 5), (len(path.name), 9, 9)).save(path, **options)  # type: ignore[arg-type]
    return path


def tree(root: Path, count: int = 3) -> Path:
    for label in ("cat", "dog"):
        for k in range(count):
            image(root / label / f"{k}.png")
    return root


def said_of(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    prepare(PrepareConfig(kind="folder", source=source, out=out, size=8))
    return capsys.readouterr().out


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.readable_formats.cache_clear()
    formats.readable_extensions.cache_clear()
    yield
    monkeypatch.undo()
    formats.readable_formats.cache_clear()
    formats.readable_extensions.cache_clear()


SYSTEM = (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "__MACOSX",
    ".AppleDouble",
    ".Trashes",
)
MORE = (
    "@Recycle",
    "#snapshot",
    "lost+found",
    "@tmp",
    "found.000",
    ".svn",
    ".git",
    "Network Trash Folder",
    "@__thumb",
)


@pytest.mark.parametrize("name", [*SYSTEM, *MORE])
def test_system_folders_are_no_classes_and_hold_no_samples_at_any_depth(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tree(tmp_path / "s")
    for place in (source, source / "cat", source / "dog" / "deeper"):
        image(place / name / "thumbnail.png")
    dataset = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8))
    assert dataset.class_names == ("cat", "dog") and len(dataset.split("train")) == 6
    assert "2 other files were ignored: 2 " in capsys.readouterr().out
    assert len(find_images(source)) == 6 and is_system(name)


@pytest.mark.parametrize("name", ["cat", "Recycled paper", "tmp", "#1", "@home", "found", "snapshot", "git"])
def test_names_that_people_give_are_no_system_names(name: str) -> None:
    assert not is_system(name)


def test_counts_by_extension_and_loud_when_they_are_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tree(tmp_path / "s", 40)
    for k in range(3):
        (source / "cat" / f"{k}.TXT").write_text("notes")
    (source / "dog" / "Thumbs.db").touch()
    (source / "dog" / "README").touch()
    said = said_of(source, tmp_path / "out", capsys)
    assert "\n5 other files were ignored: 3 .txt, 1 without an extension, 1 of the system.\n" in f"\n{said}"
    for k in range(30):
        (source / "dog" / f"{k}.mp4").touch()
    said = said_of(source, tmp_path / "many", capsys)
    assert "warning: 35 other files were ignored: 30 .mp4, 3 .txt, 1 without" in said


@pytest.mark.usefixtures("without_heif")
def test_photos_that_need_an_extra_are_loud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tree(tmp_path / "s", 2)
    for k in range(5):
        (source / "cat" / f"IMG_{k}.HEIC").write_bytes(HEIC)
    (source / "dog" / "x.heif").write_bytes(HEIC)
    (source / "dog" / "y.CR2").write_bytes(b"II*\0")
    said = said_of(source, tmp_path / "out", capsys)
    assert (
        "warning: 6 of 11 files are not read (5 .heic, 1 .heif): HEIF needs `pip install 'pillow-heif" in said
    )
    assert "warning: 1 of 11 files are not read (1 .cr2): convert" in said and "other files" not in said
    find_images(source)
    assert "6 of 11 files are not read" in capsys.readouterr().err
    image(source / "bird" / "z.png").rename(source / "bird" / "z.heic")
    with pytest.raises(
        DataError, match=r"'bird' has no image; 1 of 1 files .*\n.*\n.*pip install 'pillow-heif"
    ):
        prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "other", size=8))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "a.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"no images found; 1 of 1 files are not read \(1 \.heic\)"):
        find_images(tmp_path / "alone")


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (HEIC, "HEIF is not read here: pip install 'pillow-heif"),
        (HEIC.replace(b"heic", b"mif1"), "HEIF is not read here"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing"),
        (b"words", "not an image"),
    ],
)
def test_what_lies_under_the_name_of_an_image_is_said(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for place in (str(tmp_path / "a.jpg"), content):
        with pytest.raises(Unreadable) as caught:
            read_picture(place, 8)
        assert why in str(caught.value)


def test_heic_is_read_with_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = need("pillow_heif")
    formats.readable_formats.cache_clear()
    formats.readable_extensions.cache_clear()
    source = tree(tmp_path / "s", 2)
    pixels = np.full((40, 40, 3), (200, 60, 30), np.uint8)
    library.from_pillow(Image.fromarray(pixels)).save(source / "dog" / "p.HEIC", quality=95)
    (source / "dog" / "q.heic").write_bytes(HEIC)
    dataset = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8))
    split, ids = dataset.split("train"), dataset.ids("train") or ()
    row = ids.index("dog/p.HEIC")
    read = np.fromfile(split.path, np.uint8, 8 * 8 * 3, offset=int(split.offset[row])).reshape(8, 8, 3)
    assert np.abs(read.astype(int) - pixels[:8, :8]).max() <= 6 and split.valid[row]
    assert not split.valid[ids.index("dog/q.heic")] and "ignored" not in capsys.readouterr().out


@pytest.mark.skipif("AVIF" not in formats.readable_formats(), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    path = image(tmp_path / "a.AVIF", quality=90)
    assert read_picture(str(path), 8).shape == (8, 8, 3)
    with pytest.raises(Unreadable, match=r"damaged|not an image"):
        read_picture(AVIF, 8)


def test_files_without_an_extension_are_known_by_their_content(tmp_path: Path) -> None:
    source = tree(tmp_path / "s")
    for k, kind in enumerate(("WEBP", "TIFF", "PNG", "PNG")):
        image(source / "emu" / f"{k}", format=kind)
    with pytest.raises(DataError, match=r"'emu' has no image; .*by their content \(2 PNG, 1 [WT]") as caught:
        prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8))
    assert "extension" in str(caught.value.fix) and not (tmp_path / "out").exists()
    (source / "fox").mkdir()
    (source / "fox" / "a.mp4").touch()
    (source / "emu").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"'fox' has no image; there are other files: 1 \.mp4"):
        prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8))


def test_links_that_lead_nowhere_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tree(tmp_path / "s")
    (source / "bird").symlink_to(tmp_path / "moved away")
    (source / "cat" / "more photos").symlink_to("nowhere")
    (source / "cat" / "gone.png").symlink_to("nowhere.png")
    dataset = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8))
    said = capsys.readouterr().out
    assert "warning: links that lead nowhere: bird\n" in said
    assert "warning: links that lead nowhere: cat/more photos\n" in said
    assert "broken link" in (tmp_path / "out" / "quarantine.csv").read_text()
    assert dataset.class_names == ("cat", "dog")


def test_predict_finds_what_prepare_finds(tmp_path: Path) -> None:
    source = tree(tmp_path / "s")
    elsewhere = tree(tmp_path / "elsewhere")
    (source / "dog" / "linked").symlink_to(elsewhere / "cat")
    (source / "dog" / "round").symlink_to(source)
    image(source / "cat" / ".hidden.png")
    image(source / "cat" / "._0.png")
    image(source / "cat" / ".cache" / "x.png")
    (source / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    dataset = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8), quiet=True)
    found = {os.path.relpath(path, source) for path in find_images(source)}
    ids = set(dataset.ids("train") or ())
    assert {"dog/linked/0.png", "cat/gone.jpg"} <= found and not any("hidden" in name for name in found)
    assert ids == found and len(found) == 10  # and nothing of the cats through the link in a circle


@given(
    st.lists(st.tuples(st.sampled_from([".a", ".b", ""]), st.integers(1, 9)), max_size=4),
    st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_what_is_left_adds_up(extensions: list[tuple[str, int]], others: list[int]) -> None:
    parts = [Left(hidden=others[0], system=others[1], lost=["x"] * others[2])]
    for name, count in extensions:
        parts.append(Left())
        parts[-1].extensions[name] = count
    assert sum(parts, Left()).total == sum(others) + sum(count for _, count in extensions)


def test_a_folder_that_is_missing_is_empty_and_a_shallow_look_goes_no_deeper(tmp_path: Path) -> None:
    assert list_images(str(tmp_path / "none")).paths == []
    image(tmp_path / "a.png")
    image(tmp_path / "deeper" / "b.png")
    assert list_images(str(tmp_path), deep=False).paths == [str(tmp_path / "a.png")]
