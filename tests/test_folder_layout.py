"""Split folders are found by the names that people use; what is not used is named, and what is unclear refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.folder_layout import find_layout
from fastdrpl.loaders.sources.split_names import WORDS, split_in, split_of


def make_tree(root: Path, *folders: str, count: int = 2) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", (6, 6), (k, sum(map(ord, folder)) % 256, 90)).save(root / folder / f"{k}.png")
    return root


def run(source: Path, out: Path, **options: object) -> Dataset:
    config = PrepareConfig(kind="folder", source=source, out=out, size=8, **options)  # type: ignore[arg-type]
    return prepare(config)


def split_tree(root: Path, *splits: str) -> Path:
    return make_tree(root, *(f"{split}/{label}" for split in splits for label in ("cat", "dog")))


@given(
    word=st.sampled_from(sorted(WORDS)),
    change=st.sampled_from([str.lower, str.upper, str.title]),
    shape=st.sampled_from(
        ["{}", "{}_set", "{}-set", "{} Set", "{}set", "{}_images", "data_{}", " {} ", "{}2017"]
    ),
)
def test_a_split_word_in_any_dress_is_that_split(word: str, change: object, shape: str) -> None:
    assert split_of(shape.format(change(word))) == WORDS[word]  # type: ignore[operator]


@pytest.mark.parametrize(
    "name", ["cat", "contest", "latest", "trainer", "developer", "train station", "", "set", "7"]
)
def test_other_words_are_no_splits(name: str) -> None:
    assert split_of(name) is None
    assert name == "train station" or split_in(name + "-000.tar") is None


@pytest.mark.parametrize(
    ("splits", "train", "test", "unused"),
    [
        (("training", "validation"), "training", "validation", []),
        (("Train", "Valid", "Test"), "Train", "Test", ["Valid/ is not used (4 images)"]),
        (("train_set", "DEV"), "train_set", "DEV", []),
        (("trainset", "testset", "holiday"), "trainset", "testset", ["not used: holiday/"]),
        (("TRAINING-IMAGES", "eval"), "TRAINING-IMAGES", "eval", []),
    ],
)
def test_splits_by_the_names_that_people_use(
    tmp_path: Path,
    splits: tuple[str, ...],
    train: str,
    test: str,
    unused: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = run(split_tree(tmp_path / "s", *splits), tmp_path / "out")
    said = capsys.readouterr().out
    assert dataset.class_names == ("cat", "dog")
    for split, folder in (("train", train), ("test", test)):
        ids = dataset.ids(split)
        assert ids is not None and len(ids) == 4 and all(name.startswith(f"{folder}/") for name in ids)
    assert f"{test}/ is the test set" in said and all(line in said for line in unused)


def test_what_has_no_classes_is_held_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tree(
        tmp_path / "s", "train/cat", "train/dog", "test", "validation/cat", "validation/dog", count=3
    )
    dataset = run(source, tmp_path / "out")
    said = capsys.readouterr().out
    assert "test/ is not used (3 images): it has no class folders" in said
    assert all(name.startswith("validation/") for name in dataset.ids("test") or ("none",))
    only = make_tree(tmp_path / "only", "train/cat", "train/dog", "Testing", count=5)
    assert not run(only, tmp_path / "other").has("test")
    assert "warning: Testing/ is not used (5 images)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["val/cat", "val/dog", "test/cat"], "there is no training folder"),
        (["train", "test"], "they hold no class folders"),
        (["Dev", "Validation_Set"], "there is no training folder"),
        (["train/a", "train/b", "training/a"], "two folders are named as one split"),
        (["train/a", "train/b", "val/a", "valid/a"], "two folders are named as one split"),
        (["cat", "dog", "test/cat", "test/dog"], "holds classes that lie beside it"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "is itself divided into test/, train/"),
        (["train/images", "train/labels"], "detection or segmentation"),
    ],
)
def test_a_layout_that_is_not_clear_is_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    source = make_tree(tmp_path / "s", *folders)
    with pytest.raises(UserError, match=message) as caught:
        run(source, tmp_path / "out")
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()
    assert caught.value.fix


def test_one_wrapping_folder_is_looked_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = split_tree(tmp_path / "s" / "release 2" / "photos", "train", "val")
    (tmp_path / "s" / "__MACOSX").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "s" / "cover.png")
    dataset = run(tmp_path / "s", tmp_path / "out")
    said = capsys.readouterr().out
    assert "release 2/photos/ is the only folder here" in said and "cover.png" in said
    assert dataset.class_names == ("cat", "dog") and dataset.has("test")
    assert (dataset.ids("train") or ("",))[0] == "release 2/photos/train/cat/0.png"
    assert find_layout(source, 0.0).train == str(source / "train")


def test_a_class_that_is_called_like_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = run(
        make_tree(tmp_path / "s", "aeroplane", "bus", "train"), tmp_path / "out"
    )  # as in PASCAL VOC
    assert dataset.class_names == ("aeroplane", "bus", "train")
    assert "warning: named as a split, but taken as a class: train/" in capsys.readouterr().out


def test_images_in_no_class_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_tree(tmp_path / "s", "cat", "dog", "")
    run(source, tmp_path / "out")
    assert "2 images of s/ lie in no class folder and are not used, 0.png" in capsys.readouterr().out
    source = make_tree(tmp_path / "t", "training/cat", "training/dog", "training", "")
    run(source, tmp_path / "other")
    said = capsys.readouterr().out
    assert "2 images of training/ lie in no class folder" in said and "2 images of t/ lie in no class" in said


def test_a_plain_source_of_classes_says_nothing_of_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_tree(tmp_path / "s", "cat", "dog"), tmp_path / "out")
    said = capsys.readouterr().out
    assert "warning" not in said and "not used" not in said
