"""`fastdrpl fix --out-folder`: a corrected copy of an image folder beside a source that stays as it is."""

import csv
import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import fix_cases
import pytest
from fix_cases import hash_of, judge

from fastdrpl.cli import main
from fastdrpl.loaders.dataset import open_dataset

ACCENT = unicodedata.normalize("NFD", "été")  # as macOS writes it


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos with difficult names in train/ and test/, and what was prepared from them."""
    place = tmp_path_factory.mktemp("made")
    photos = place / "photos"
    files = [
        "train/big cat/1.png", "train/big cat/deep/2.png", 'train/big cat/q"uote, and\nline.png',
        f"train/{ACCENT}/1.png", f"train/{ACCENT}/{ACCENT}.png", f"train/{ACCENT}/3.png",
        "train/=x/1.png", "train/=x/2.png", "train/=x/3.png",
        "test/big cat/1.png", f"test/{ACCENT}/t.png", "test/=x/t.png",
    ]  # fmt: skip
    for number, file in enumerate(files):
        fix_cases.paint(photos / file, number % 3, number)
    (photos / "train" / "=x" / os.fsdecode(b"no\xfftext.png")).write_bytes(
        (photos / "train/=x/1.png").read_bytes()
    )
    (photos / "train" / "=x" / "broken.png").write_bytes(b"nothing")
    (photos / "notes.txt").write_text("mine")
    return photos, fix_cases.prepare("folder", photos, place / "data")


@pytest.fixture
def fixed(made, tmp_path):
    """A function that applies decisions (file -> decision, label) and gives the copy and the log."""

    def fixed(decisions: dict[str, tuple[str, str]], *words: str):
        run = judge(tmp_path / "run", made[1], {})
        with open(tmp_path / "fixes.csv", "w", newline="", encoding="utf-8") as file:
            file.write(f"# fastdrpl fixes for run {hash_of(run)}\n")
            writer = csv.writer(file)
            writer.writerow(["index", "file", "decision", "label"])
            writer.writerows(["", name, *decision] for name, decision in decisions.items())
        copy = tmp_path / "copy"
        words = ("--fixes", str(tmp_path / "fixes.csv"), "--out-folder", str(copy), *words)
        assert main(["fix", str(run), *words]) == 0
        with open(tmp_path / "copy.changes.csv", newline="", encoding="utf-8") as file:
            return copy, list(csv.DictReader(file))

    return fixed


def test_images_go_to_the_folder_of_their_class_and_all_else_stays(made, fixed, capsys):
    photos = made[0]
    before, stamps = tree(photos), {p: p.stat().st_mtime_ns for p in photos.rglob("*")}
    quote = 'train/big cat/q"uote, and\nline.png'
    escaped = "train/=x/no\\xfftext.png"  # as tables name it
    copy, log = fixed(
        {
            "train/big cat/1.png": ("relabel", "été"),  # where there is a 1.png
            "train/=x/1.png": ("relabel", "été"),  # and a second
            "train/big cat/deep/2.png": ("relabel", "=x"),
            quote: ("relabel", "été"),
            escaped: ("relabel", "big cat"),
            f"train/{ACCENT}/3.png": ("drop", ""),
            "train/=x/2.png": ("keep", "=x"),
        }
    )
    moved = {
        "train/big cat/1.png": f"train/{ACCENT}/1~3.png",
        "train/=x/1.png": f"train/{ACCENT}/1~2.png",
        "train/big cat/deep/2.png": "train/=x/deep/2.png",
        quote: f'train/{ACCENT}/q"uote, and\nline.png',
        os.fsdecode(b"train/=x/no\xfftext.png"): os.fsdecode(b"train/big cat/no\xfftext.png"),
    }
    gone = (f"train/{ACCENT}/3.png", "notes.txt")
    expected = {moved.get(name, name): content for name, content in before.items() if name not in gone}
    assert tree(copy) == expected
    assert tree(photos) == before and {p: p.stat().st_mtime_ns for p in photos.rglob("*")} == stamps
    new = {row["file"]: row["new_file"] for row in log}
    assert new["train/big cat/1.png"] == f"train/{ACCENT}/1~3.png" and new[quote] == moved[quote]
    assert new[f"train/{ACCENT}/3.png"] == "" and new[escaped] == "train/big cat/no\\xfftext.png"
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "5 of them in another class, 1 left out" in said and "2 were renamed" in said
    assert "4 images that the run did not train on" in said  # three of the test set and the broken one
    assert "1 files that are no images" in said
    left = [path.name for path in copy.parent.iterdir() if path.name.startswith(".")]
    assert left == []


def test_the_copy_is_what_prepare_reads(made, fixed, tmp_path):
    copy, _ = fixed({"train/big cat/1.png": ("relabel", "=x"), "train/=x/3.png": ("drop", "")})
    again = open_dataset(fix_cases.prepare("folder", copy, tmp_path / "again"))
    names = dict(zip(again.ids("train"), again.split("train").label.tolist(), strict=True))
    was = open_dataset(made[1])
    old = dict(zip(was.ids("train"), was.split("train").label.tolist(), strict=True))
    assert again.class_names == was.class_names
    old["train/=x/1~2.png"] = was.class_names.index("=x")
    del old["train/big cat/1.png"], old["train/=x/3.png"]
    assert names == old and again.ids("test") == was.ids("test")


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_links_and_copies(made, fixed, link):
    copy, _ = fixed({"train/big cat/1.png": ("relabel", "=x")}, "--link", link)
    source, target = made[0] / "train/big cat/1.png", copy / "train/=x/1~2.png"
    assert target.read_bytes() == source.read_bytes()
    assert (link == "symbolic") == target.is_symlink()
    assert (link != "copy") == os.path.samefile(source, target)
    if link == "symbolic":
        assert Path(os.readlink(target)).is_absolute()


def test_a_disk_that_a_hard_link_cannot_cross(made, tmp_path, capsys, monkeypatch):
    def refuse(source, target, **more):
        raise OSError(18, "Invalid cross-device link", target)

    monkeypatch.setattr(os, "link", refuse)
    run = judge(tmp_path / "run", made[1], {0: (1, 0.99, 0.99)})
    assert main(["fix", str(run), "--accept", "0.9", "--out-folder", str(tmp_path / "copy")]) == 2
    assert "--link copy" in (said := capsys.readouterr().err) and "cross-device" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_is_killed_half_way_is_begun_again(made, tmp_path, monkeypatch):
    run = judge(tmp_path / "run", made[1], {0: (1, 0.99, 0.99)})
    words = ["fix", str(run), "--accept", "0.9", "--out-folder", str(tmp_path / "copy")]
    (tmp_path / ".copy.fixing" / "train").mkdir(parents=True)
    (tmp_path / ".copy.fixing" / "train" / "left.png").write_text("of a killed process")
    assert main(words) == 0
    assert (
        not (tmp_path / "copy" / "train" / "left.png").exists() and not (tmp_path / ".copy.fixing").exists()
    )


def test_a_source_that_moved_and_one_that_lacks_images(made, tmp_path, capsys):
    place = tmp_path / "here"
    shutil.copytree(made[0], place / "photos", symlinks=True)
    data = fix_cases.prepare("folder", place / "photos", place / "data")
    run = judge(tmp_path / "run", data, {0: (1, 0.99, 0.99)})
    (place / "photos").rename(place / "moved")
    words = ["fix", str(run), "--accept", "0.9", "--out-folder", str(tmp_path / "copy")]
    assert main(words) == 2 and "the source of the images is not there" in capsys.readouterr().err
    (place / "moved" / "train" / "=x" / "2.png").rename(place / "moved" / "train" / "=x" / "new.png")
    assert main([*words, "--source", str(place / "moved")]) == 3
    assert "1 of 10 images of the run are not in the source, 'train/=x/2.png'" in capsys.readouterr().err
    (place / "moved" / "train" / "=x" / "new.png").rename(place / "moved" / "train" / "=x" / "2.png")
    assert main([*words, "--source", str(place / "moved")]) == 0
    assert (tmp_path / "copy" / "test").is_dir()


def test_a_source_that_is_an_archive_is_said_to_be_unpacked(tmp_path, capsys):
    for number in range(4):
        fix_cases.paint(tmp_path / "u" / "all" / "ab"[number % 2] / f"{number}.png", number % 2, number)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "u").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "u"))
    data = fix_cases.prepare("folder", tmp_path / "photos.zip", tmp_path / "data")
    run = judge(tmp_path / "run", data, {0: (1, 0.99, 0.99)})
    words = ["fix", str(run), "--accept", "0.9", "--out-folder", str(tmp_path / "copy")]
    assert main(words) == 2 and "unpack the archive" in capsys.readouterr().err
    assert (
        main([*words, "--source", str(tmp_path / "u")]) == 0
    )  # which holds a folder that prepare looked into
    assert sorted(tree(tmp_path / "copy")) == ["a/2.png", "b/0.png", "b/1.png", "b/3.png"]


def test_a_class_that_loses_its_last_image_is_named(tmp_path, capsys):
    for number in range(3):
        fix_cases.paint(tmp_path / "p" / "aab"[number] / f"{number}.png", number % 2, number)
    run = judge(tmp_path / "run", fix_cases.prepare("folder", tmp_path / "p", tmp_path / "d"), {2: (0, 1, 1)})
    assert main(["fix", str(run), "--accept", "0.9", "--out-folder", str(tmp_path / "copy")]) == 0
    assert "no training image of the class 'b' is left" in capsys.readouterr().out


def test_data_that_are_no_folder_have_no_corrected_folder(tmp_path, capsys):
    data = tmp_path / "digits"
    assert main(["prepare", "digits", "--out", str(data)]) == 0
    run = judge(tmp_path / "run", data, {0: (1, 0.99, 0.99)})
    for option in ("--out-folder", "--out-table"):
        assert main(["fix", str(run), "--accept", "0.9", option, str(tmp_path / "new")]) == 2
        assert "prepared from kind digits" in capsys.readouterr().err
