"""Names are compared as people see them: spellings of letters are one, other likeness is a warning."""

import unicodedata
from pathlib import Path

import datasets as hugging_face
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.class_names import composed, describe_names, look, nearly
from fastdrpl.loaders.sources.photos import number_labels

CAFE, RESUME = "café", "Ångström"


def spelled(form: str, name: str) -> str:
    return unicodedata.normalize(form, name)  # type: ignore[arg-type]


def make_tree(root: Path, *folders: str, count: int = 3) -> Path:
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (6, 6), (k, place, 90)).save(root / folder / f"{k}.png")
    return root


def run(source: Path, out: Path, kind: str = "folder", **options: object) -> Dataset:
    return prepare(PrepareConfig(kind=kind, source=source, out=out, size=8, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("train", "test"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_two_spellings_of_letters_are_one_class(tmp_path: Path, train: str, test: str) -> None:
    folders = [f"train/{spelled(train, name)}" for name in (CAFE, RESUME)]
    folders += [f"valid/{spelled(test, name)}" for name in (CAFE, RESUME)]
    (tmp_path / "classes.txt").write_text(f"{spelled(test, CAFE)}\n{RESUME}\n", encoding="utf-8")
    source = make_tree(tmp_path / "s", *folders)
    dataset = run(source, tmp_path / "out", classes=tmp_path / "classes.txt")
    assert dataset.class_names == (CAFE, RESUME)
    assert dataset.split("test").label.tolist() == [0, 0, 0, 1, 1, 1]


def test_two_folders_of_one_name_are_joined_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tree(tmp_path / "s", spelled("NFC", CAFE), spelled("NFD", CAFE), "tea")
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == (CAFE, "tea") and np.bincount(dataset.split("train").label).tolist() == [
        6,
        3,
    ]
    assert len(set(dataset.ids("train") or ())) == 9
    assert "two spellings of its letters are one class: 'café'" in capsys.readouterr().out


def test_labels_of_tables_and_saved_datasets_too(tmp_path: Path) -> None:
    make_tree(tmp_path, "p")
    lines = [f"p/{k}.png,{spelled(form, CAFE)}" for k, form in enumerate(("NFC", "NFD"))]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, "p/2.png,tea", ""]), encoding="utf-8")
    dataset = run(tmp_path / "t.csv", tmp_path / "out", kind="table")
    assert dataset.class_names == (CAFE, "tea") and dataset.split("train").label.tolist() == [0, 0, 1]
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["tea", spelled("NFD", CAFE)])}
    )
    content = (tmp_path / "p" / "0.png").read_bytes()
    columns = {"image": [{"bytes": content, "path": None}] * 4, "label": [0, 1, 0, 1]}
    hugging_face.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    assert run(tmp_path / "saved", tmp_path / "other", kind="huggingface").class_names == ("tea", CAFE)


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["cat", "Cat"], "'Cat' (3 images) and 'cat' (3 images)"),
        (
            ["golden retriever", "golden_retriever", "x"],
            "'golden retriever' (3 images) and 'golden_retriever'",
        ),
        (["1", "01"], "'01' (3 images) and '1' (3 images)"),
        (["Straße", "STRASSE"], "'STRASSE' (3 images) and 'Straße'"),
        (["dog\u00a0", "dog"], "'dog' (3 images) and 'dog\\xa0' (3 images)"),
        (["dog ", "cat"], "begin or end with a space: 'dog '"),
        (["NaN", "cat"], "often stand for a missing label: 'NaN' (3 images)"),
        (["None", "null", "N-A", "-"], "missing label: '-' (3 images) and 'None' (3 images) and 'null'"),
    ],
)
def test_a_likeness_that_is_a_guess_is_a_warning(
    tmp_path: Path, names: list[str], warned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run(make_tree(tmp_path / "s", *names), tmp_path / "out")
    said = capsys.readouterr().out
    assert set(dataset.class_names) == set(names)  # kept as they are
    assert warned in said and said.count("warning: ") == 1 + ("dog\u00a0" in names)


@pytest.mark.parametrize(
    "names", [["cat", "cats"], ["nano", "banana"], ["10", "1"], ["a b", "ab"], ["unknown", "other"]]
)
def test_other_names_are_no_guess(names: list[str]) -> None:
    assert describe_names(names, [1, 1]) == []


def test_a_class_that_is_missing_by_its_spelling_only_is_hinted_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has not: 'Dog'; there is 'dog', which may be meant"):
        run(make_tree(tmp_path / "s", "train/dog", "train/cat", "test/Dog"), tmp_path / "out")
    (tmp_path / "classes.txt").write_text("CAT\ndog\n")
    with pytest.raises(UserError, match=r"'CAT' has no folder; there is 'cat', which"):
        run(make_tree(tmp_path / "t", "dog", "cat"), tmp_path / "out", classes=tmp_path / "classes.txt")
    make_tree(tmp_path, "p")
    lines = ("path,label,split", "p/0.png,cat,train", "p/1.png,dog,train", "p/2.png,CAT,test", "")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"\('CAT'\); there is 'cat', which may be meant: line 4"):
        run(tmp_path / "t.csv", tmp_path / "out", kind="table")


def test_classes_that_are_not_tested_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(make_tree(tmp_path / "s", "train/dog", "train/cat", "train/emu", "test/dog"), tmp_path / "out")
    assert "The test set has no image of 2 of 3 classes, 'cat' for one." in capsys.readouterr().out


@given(st.lists(st.text(min_size=1), min_size=1), st.sampled_from(["NFC", "NFD"]))
def test_composing_changes_no_look_and_is_done_once(names: list[str], form: str) -> None:
    for name in names:
        other = spelled(form, name)
        assert composed(other) == composed(name) == composed(composed(name)) and look(other) == look(name)
    labels, classes = number_labels([spelled(form, name) for name in names], None)
    assert [classes[label] for label in labels] == [composed(name) for name in names]
    assert nearly(names[0], [names[0]]) == ""
