"""Folders of images: any tree adds up or is refused, classes, names and test sets."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from source_cases import read_image, save

from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources.folder import open_folder
from fastdrpl.loaders.sources.pictures import Target


def make_tree(root: Path, *folders: str, count: int = 3) -> Path:
    for folder in folders:
        for number in range(count):
            save(root / folder / f"{number}.png", Image.new("RGB", (8, 8), (number, 0, 0)))
    return root


@pytest.mark.parametrize("name", ["val", "test"])
def test_train_with_a_test_folder(tmp_path: Path, name: str) -> None:
    source = make_tree(tmp_path / "s", "train/10", "train/2", "train/1", f"{name}/2", f"{name}/10")
    dataset = prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8), quiet=True)
    assert dataset.class_names == ("1", "10", "2")  # sorted as text, and stored
    assert dataset.split("test").label.tolist() == [1, 1, 1, 2, 2, 2]
    assert dataset.ids("test") == tuple(f"{name}/{label}/{k}.png" for label in ("10", "2") for k in range(3))
    assert not dataset.test_may_be_wrong and dataset.name == "s"


def test_a_class_list_gives_the_order(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "s", "1", "2", "10")
    (tmp_path / "classes.txt").write_text("1\n2\n10\n")
    config = PrepareConfig(
        kind="folder", source=source, out=tmp_path / "out", size=8, classes=tmp_path / "classes.txt"
    )
    dataset = prepare(config, quiet=True)
    assert dataset.class_names == ("1", "2", "10") and not dataset.has("test")
    with pytest.raises(UserError, match="no test split"):
        dataset.split("test")
    with pytest.raises(UserError, match="class order"):
        prepare(dataclasses.replace(config, classes=None), quiet=True)
    for text, message in (
        ("1\n2\n", "'10' is not"),
        ("1\n2\n10\nx\n", "'x' has no"),
        ("1\n2\n10\n1\n", "twice"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            prepare(dataclasses.replace(config, out=tmp_path / "other"), quiet=True)


def test_names_that_become_one_when_they_are_printed(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "s", "a\udcff", "b")
    config = PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8)
    assert prepare(config, quiet=True).class_names == ("a\\xff", "b")
    make_tree(source, "a\\xff")
    with pytest.raises(DataError, match=r"'a\\\\xff' and 'a\\udcff'"):
        prepare(dataclasses.replace(config, out=tmp_path / "other"), quiet=True)
    assert not (tmp_path / "other").exists()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "C"])))
def test_every_name_becomes_one_line_that_can_be_printed(name: str) -> None:
    shown = printable(name)
    assert len(shown.splitlines()) < 2 and "\x1b" not in shown and printable(shown) == shown
    assert shown.encode() and storable(name).encode() if name else shown == ""
    if name.isprintable():
        assert shown == name == storable(name)


def test_a_list_of_classes_from_windows(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "s", "a", "b")
    (tmp_path / "classes.txt").write_bytes("b\r\na\r\n".encode("utf-8-sig"))
    config = PrepareConfig(
        kind="folder", source=source, out=tmp_path / "out", size=8, classes=tmp_path / "classes.txt"
    )
    assert prepare(config, quiet=True).class_names == ("b", "a")


def test_an_order_that_is_known_beforehand(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "s", "train/a", "train/b", "train/c", "val/c", "train/__MACOSX")
    options: dict[str, Any] = {"test_fraction": 0.0, "classes": None, "workers": 1, "seed": 1}
    target = Target(8, "raw", 95, "box")
    opened = open_folder(source, target=target, names=["c", "a", "b"], **options)
    assert opened.class_names == ("c", "a", "b") and opened.parts["test"].labels.tolist() == [0, 0, 0]
    assert opened.parts["train"].ids == tuple(f"train/{name}/{k}.png" for name in "cab" for k in range(3))
    for names, message in (
        (["a", "b", "c", "d"], "no folder of the class 'd'"),
        (["a", "b"], "known here: 'c'"),
    ):
        with pytest.raises(UserError, match=message):
            open_folder(source, target=target, names=names, **options)


def test_a_fraction_becomes_the_test_set_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_tree(tmp_path / "s", "a", "b", count=10)
    dataset = prepare(
        PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8, test_fraction=0.3)
    )
    assert "may be wrong" in capsys.readouterr().out and dataset.test_may_be_wrong
    assert np.bincount(dataset.split("test").label).tolist() == [3, 3]
    train, test = dataset.ids("train"), dataset.ids("test")
    assert train is not None and test is not None
    assert sorted(train + test) == sorted(f"{label}/{k}.png" for label in "ab" for k in range(10))
    names = {name: image for name, image in zip(test, range(6), strict=True)}
    for name, row in names.items():
        assert read_image(dataset.split("test"), row)[0, 0, 0] == int(Path(name).stem)


@pytest.mark.parametrize(
    ("folders", "options", "kind", "message"),
    [
        (["a"], {}, UserError, "1 class folders"),
        (["train/a", "train/b", "val/a", "val/c"], {}, DataError, "'c'"),
        (["train/a", "train/b", "val/a"], {"test_fraction": 0.5}, UserError, "without a test set"),
        (["a", "b"], {"test_fraction": 0.01}, UserError, "no test image"),
        (["a", "b"], {"classes": Path("/nowhere")}, UserError, "class list"),
    ],
)
def test_wrong_layouts_say_what_is_wrong(
    tmp_path: Path, folders: list[str], options: dict[str, Any], kind: type[UserError], message: str
) -> None:
    source = make_tree(tmp_path / "s", *folders)
    with pytest.raises(kind, match=message) as caught:
        prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", **options), quiet=True)
    assert type(caught.value) is kind and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"text"])
def test_a_class_without_a_usable_image_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    source = make_tree(tmp_path / "s", "a", "b")
    (source / "c").mkdir()
    if content is not None:
        (source / "c" / "x.png").write_bytes(content)
    with pytest.raises(DataError, match="'c'"):
        prepare(PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=8), quiet=True)
    assert not (tmp_path / "out").exists()


def test_jpeg_store_holds_the_same_pictures(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "s", "a", "b")
    prepare(
        PrepareConfig(kind="folder", source=source, out=tmp_path / "out", size=32, store="jpeg"), quiet=True
    )
    split = open_dataset(tmp_path / "out", verify=True).split("train")
    data = split.path.read_bytes()
    for row in range(len(split)):
        image = Image.open(io.BytesIO(data[split.offset[row] : split.offset[row] + split.nbytes[row]]))
        assert image.size == (32, 32) and abs(int(np.asarray(image)[0, 0, 0]) - row % 3) <= 3
