"""Files that are listed and not there: one example, how many, and the likely cause; spellings of letters are one."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources import missing_files

LABELS = ("ant", "bee")


def make_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (len(name), 9, 9)).save(folder / name, "PNG")


def write(path: Path, *paths: str) -> Path:
    lines = [f'"{name}",{LABELS[k % 2]}' for k, name in enumerate(paths)]
    path.write_text("\n".join(["path,label", *lines, ""]), encoding="utf-8")
    return path


def run(source: Path, out: Path, **options: object) -> Dataset:
    return prepare(PrepareConfig(kind="table", source=source, out=out, size=8, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listed", "there", "cause", "fix"),
    [
        (
            ["imgs/{}.png"],
            "photos/imgs/{}.png",
            "the paths begin in '{root}/photos'",
            "--images {root}/photos",
        ),
        (["imgs/{}.png"], "deep/er/other/{}.png", "'{k}.png' lies in '{root}/deep/er/other'", "--images DIR"),
        (["../x/imgs/{}.png"], "imgs/{}.png", "'imgs/{k}.png' lies in '{root}/", "--images DIR"),
        (["s3://bucket/{}.png"], "{}.png", "addresses (URLs)", "download the images"),
        (["HTTPS://example.org/{}.png"], "{}.png", "addresses (URLs)", "download the images"),
        (["imgs\\{}.png"], "imgs/{}.png", "a path of Windows", "write paths with /"),
        (["C:\\me\\imgs\\{}.png"], "imgs/{}.png", "a path of Windows", "write paths with /"),
        (["imgs/{}"], "imgs/{}.JPG", "with .JPG at its end it would be there", "write the extension"),
        (["imgs/photo.{}"], "imgs/photo.{}.webp", "with .webp at its end", "write the extension"),
        (["imgs/A {}.PNG"], "imgs/a_{}.png", "there is 'a_{k}.png', spelled a little differently", "correct"),
        (["/home/somebody/imgs/{}.png"], "imgs/{}.png", "'imgs/{k}.png' lies in '{root}/'", "--images DIR"),
        (["nothing/{}.png"], "else.png", "is it the right folder?", "--images DIR"),
    ],
)
def test_where_none_is_there_one_is_shown_with_the_likely_cause(
    tmp_path: Path, listed: list[str], there: str, cause: str, fix: str
) -> None:
    root = tmp_path / "s"
    make_images(root, *(there.format(k) for k in range(4)))
    paths = [listed[0].format(k) for k in range(4)]
    with pytest.raises(DataError) as caught:
        run(write(root / "t.csv", *paths), tmp_path / "out")
    first = paths[0] if paths[0][0] == "/" else f"{root}/{paths[0]}"
    assert f"4 of 4 images are not there; the first was looked for at {first!r}" in caught.value.what
    assert cause.format(root=root, k=0) in caught.value.what.replace(f"{root}/'", f"{root}/'")
    assert fix.format(root=root) in str(caught.value.fix)
    assert caught.value.exit_code == 3 and not (tmp_path / "out").exists()


def test_the_fix_that_is_named_works(tmp_path: Path) -> None:
    make_images(tmp_path / "elsewhere" / "set", "imgs/0.png", "imgs/1.png")
    source = write(tmp_path / "t.csv", "imgs/0.png", "imgs/1.png")
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "out")
    words = str(caught.value.fix).split()
    assert words[0] == "--images" and Path(words[1]) == tmp_path / "elsewhere" / "set"
    dataset = run(source, tmp_path / "out", images=Path(words[1]))
    assert dataset.split("train").valid.all() and dataset.ids("train") == ("imgs/0.png", "imgs/1.png")
    with pytest.raises(UserError, match="--images is no folder"):
        run(source, tmp_path / "other", images=tmp_path / "nowhere")
    with pytest.raises(UserError, match="--images is for kind table, not for folder"):
        prepare(PrepareConfig(kind="folder", source=tmp_path, out=tmp_path.parent / "x", images=tmp_path))


def test_the_base_may_lie_above_the_table(tmp_path: Path) -> None:
    make_images(tmp_path, "imgs/0.png", "imgs/1.png")
    (tmp_path / "lists").mkdir()
    with pytest.raises(DataError, match="the paths begin in") as caught:
        run(write(tmp_path / "lists" / "t.csv", "imgs/0.png", "imgs/1.png"), tmp_path / "out")
    assert str(caught.value.fix) == f"--images {tmp_path}/"


def test_where_some_are_missing_it_is_a_warning_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path, *(f"a/{k}.png" for k in range(6)))
    paths = [f"a/{k}.png" for k in range(6)] + ["b/6.png", "b/7.png"]
    dataset = run(write(tmp_path / "t.csv", *paths), tmp_path / "out")
    said = capsys.readouterr().out
    assert f"warning: 2 of 8 images are not there; the first was looked for at '{tmp_path}/b/6.png'" in said
    assert "quarantined: 2 x no such file, first b/6.png" in said
    assert int((~dataset.split("train").valid).sum()) == 2


def test_a_class_without_a_usable_image_shows_one(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"'bee' can be used \(empty file, no such file\); the first of 2 is b\.png"
    ):
        run(write(tmp_path / "t.csv", "a.png", "b.png", "c.png", "d.png"), tmp_path / "out")


@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_two_spellings_of_a_path_are_one_file(tmp_path: Path, on_disk: str, listed: str) -> None:
    def spelled(form: str, name: str) -> str:
        return unicodedata.normalize(form, name)  # type: ignore[arg-type]

    names = ["Zoë/café.png", "Zoë/Ångström.png"]
    make_images(tmp_path, *(spelled(on_disk, name) for name in names))
    dataset = run(write(tmp_path / "t.csv", *(spelled(listed, name) for name in names)), tmp_path / "out")
    assert dataset.split("train").valid.all()
    assert dataset.ids("train") == tuple(spelled(listed, name) for name in names)  # as the table has them


def test_spaces_at_the_ends_of_paths_are_no_part_of_them_unless_they_are(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png", " b.png")
    dataset = run(write(tmp_path / "t.csv", " a.png ", " b.png"), tmp_path / "out")
    assert dataset.split("train").valid.all()


def test_the_search_for_a_cause_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(30):
        make_images(tmp_path, f"deep/{k:02}/x.png")
    monkeypatch.setattr(missing_files, "_MOST_FOLDERS", 5)
    looked: list[str] = []
    subfolders = missing_files.subfolders
    monkeypatch.setattr(missing_files, "subfolders", lambda path: looked.append(path) or subfolders(path))
    with pytest.raises(DataError, match="is it the right folder"):
        run(write(tmp_path / "t.csv", "i/29/y.png", "i/28/y.png"), tmp_path / "out")
    assert 0 < len(looked) <= 4 * 5
