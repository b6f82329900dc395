"""A table of images: what is in it is read, and what is wrong with it is said with the line."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.photos import number_labels
from fastdrpl.loaders.sources.stratify import choose_test_rows

CLASSES = ("ant", "bee", "cow")


def make_images(folder: Path, count: int = 12) -> list[str]:
    """Image number k is of colour 20 * k; names of any kind."""
    names = [
        f"{'deep/er' if k % 3 else 'a b, c'}/photo {k}.{'png' if k % 2 else 'jpg'}" for k in range(count)
    ]
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + k, 7), (20 * k, 20 * k, 20 * k)).save(folder / name)
    return names


def quote(value: object) -> str:
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


def write_csv(path: Path, columns: dict[str, list[Any]], mark: str = ",", end: str = "\n") -> Path:
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_bytes("".join(mark.join(map(quote, row)) + end for row in rows).encode())
    return path


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    return write_csv(path, columns, "\t" if path.suffix == ".tsv" else ",")


def run(source: Path, out: Path, **options: Any) -> Dataset:
    return prepare(PrepareConfig(kind="table", source=source, out=out, **({"size": 8} | options)))


def grey(dataset: Dataset, split: str, row: int) -> int:
    table = dataset.split(split)
    return int(np.fromfile(table.path, np.uint8, 1, offset=int(table.offset[row]))[0])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "UPPER.CSV"])
def test_rows_in_their_order_with_absolute_and_relative_paths(tmp_path: Path, name: str) -> None:
    names = make_images(tmp_path)
    paths = [str(tmp_path / path) if k % 5 == 0 else path for k, path in enumerate(names)]
    labels = [CLASSES[k % 3] for k in range(12)]
    splits = ["test" if k in (3, 4, 5) else "train" for k in range(12)]
    source = write(
        tmp_path / name, {"split": splits, "label": labels, "extra, more": list(range(12)), "path": paths}
    )
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == CLASSES and dataset.name == source.stem
    for split, rows in (("train", [0, 1, 2, 6, 7, 8, 9, 10, 11]), ("test", [3, 4, 5])):
        assert dataset.ids(split) == tuple(paths[k] for k in rows)
        assert dataset.split(split).label.tolist() == [k % 3 for k in rows]
        assert all(abs(grey(dataset, split, row) - 20 * k) <= 1 for row, k in enumerate(rows))
    assert not dataset.test_may_be_wrong and not dataset.source.labels_checked


def test_what_is_not_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = make_images(tmp_path, 9)
    columns = {
        "path": names,
        "label": [CLASSES[k % 3] for k in range(9)],
        "split": ["train"] * 5 + ["test", "val", "val", "val"],
        "width": [1] * 9,
        "by whom": ["x"] * 9,
    }
    dataset = run(write(tmp_path / "t.csv", columns), tmp_path / "out")
    said = capsys.readouterr().out
    assert "not used: 'width', 'by whom'" in said and "the 3 rows of `val` are not used" in said
    assert (len(dataset.split("train")), len(dataset.split("test"))) == (5, 1)
    columns["split"] = ["train"] * 5 + ["val"] * 4
    dataset = run(write(tmp_path / "t.csv", columns), tmp_path / "other")
    assert "rows of `val`" not in capsys.readouterr().out
    assert dataset.ids("test") == tuple(names[5:]) and not dataset.test_may_be_wrong


@pytest.mark.parametrize(
    "words",
    [
        ("Train", "Validation"),
        ("TRAINING", "dev"),
        ("train_set", "Valid"),
        ("trn", "x"),
        ("training", "Testing "),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_other_words_for_splits(tmp_path: Path, words: tuple[str, str], kind: str) -> None:
    names = make_images(tmp_path, 9)
    columns = {
        "path": names,
        "label": [CLASSES[k % 3] for k in range(9)],
        "split": [words[k > 5] for k in range(9)],
    }
    source = write(tmp_path / f"t.{kind}", columns)
    if words[1] == "x":
        with pytest.raises(DataError, match=r"none of train, test, val \('trn', 'x'\)"):
            run(source, tmp_path / "out")
        return
    dataset = run(source, tmp_path / "out")
    assert (dataset.ids("train"), dataset.ids("test")) == (tuple(names[:6]), tuple(names[6:]))


@pytest.mark.parametrize("with_split", [False, True])
def test_a_fraction_is_taken_of_every_class_as_for_folders(
    tmp_path: Path, with_split: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names = make_images(tmp_path)
    columns = {"path": names, "label": [CLASSES[k % 3] for k in range(12)]}
    if with_split:
        columns["split"] = ["train"] * 12
    source = write(tmp_path / "t.csv", columns)
    dataset = run(source, tmp_path / "out", test_fraction=0.25, seed=4)
    wanted = choose_test_rows(np.arange(12) % 3, 0.25, 4)
    assert dataset.ids("test") == tuple(names[row] for row in wanted) and len(wanted) == 3
    assert sorted([*(dataset.ids("test") or ()), *(dataset.ids("train") or ())]) == sorted(names)
    assert dataset.test_may_be_wrong and "may be wrong too" in capsys.readouterr().out
    assert not run(source, tmp_path / "none").has("test")
    with pytest.raises(UserError, match="no test image"):
        run(source, tmp_path / "other", test_fraction=0.01)


def test_missing_and_damaged_images_are_quarantined(tmp_path: Path) -> None:
    names = make_images(tmp_path)
    (tmp_path / names[2]).unlink()
    (tmp_path / names[7]).write_text("text")
    paths = [*names, "nowhere/x.png", "deep", "nul\0byte.png", "x" * 300]
    source = write(tmp_path / "t.parquet", {"path": paths, "label": [CLASSES[k % 3] for k in range(16)]})
    dataset = run(source, tmp_path / "out")
    split = dataset.split("train")
    assert len(split) == 16 and set(np.flatnonzero(~split.valid)) == {2, 7, 12, 13, 14, 15}
    text = (tmp_path / "out" / "quarantine.csv").read_text()
    assert text.count("no such file") == 2 and "not an image" in text and "not a regular file" in text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["2", "10", "1"] * 3, ["1", "2", "10"]),  # whole numbers count as numbers
        (["-1", "0", "1"] * 3, ["-1", "0", "1"]),
        (["007", "10", "7"] * 3, ["007", "10", "7"]),  # two of these would be the same number
        (["b", "10", "a"] * 3, ["10", "a", "b"]),
        ([" x ", "x", "NA"] * 3, ["NA", "x"]),
        (["null", "nan", "true"] * 3, ["nan", "null", "true"]),
        (["été", 'quoted, "label"', "two\\lines"] * 3, ['quoted, "label"', "two\\lines", "été"]),
    ],
)
def test_the_text_of_a_label_is_its_class(
    tmp_path: Path, kind: str, labels: list[str], wanted: list[str]
) -> None:
    source = write(tmp_path / f"t.{kind}", {"path": make_images(tmp_path, 9), "label": labels})
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == tuple(wanted)
    assert [wanted[label] for label in dataset.split("train").label] == [label.strip() for label in labels]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([10, 2, 2, 10], pa.int16()),
        pa.array([10, 2, 2, 10], pa.uint64()),
        pa.array(["10", "2", "2", "10"]).dictionary_encode(),
        pa.array([10, 2, 2, 10], pa.int32()).dictionary_encode(),
        pa.array(["10", "2", "2", "10"], pa.large_string()),
    ],
)
def test_every_kind_of_parquet_label(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"path": make_images(tmp_path, 4), "label": column})
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = run(tmp_path / "t.parquet", tmp_path / "out")
    assert dataset.class_names == ("2", "10") and dataset.split("train").label.tolist() == [1, 0, 0, 1]


@given(st.lists(st.text(max_size=3) | st.integers(-30, 30).map(str), min_size=1, max_size=30))
def test_labels_are_numbered_without_loss(labels: list[str]) -> None:
    numbers, names = number_labels(labels, None)
    assert [names[number] for number in numbers] == labels and sorted(set(labels)) == sorted(names)
    if all(re.fullmatch("-?[0-9]+", name) and str(int(name)) == name for name in names):
        assert [int(name) for name in names] == sorted(int(name) for name in names)
    else:
        assert names == sorted(names)


def test_a_class_list_gives_the_order(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", {"path": make_images(tmp_path, 6), "label": list(CLASSES) * 2})
    classes = tmp_path / "classes.txt"
    classes.write_text("cow\nant\nbee\n")
    dataset = run(source, tmp_path / "out", classes=classes)
    assert dataset.class_names == ("cow", "ant", "bee")
    assert dataset.split("train").label.tolist() == [1, 2, 0] * 2
    for text, message in (("ant\nbee\n", "'cow' is not in"), ("ant\nbee\ncow\nemu\n", "'emu' has no image")):
        classes.write_text(text)
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "other", classes=classes)


def test_control_characters_of_a_label_are_shown_as_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["two\nlines", "\x1b[31mred", "turned\u202e"] * 2
    source = write(tmp_path / "t.csv", {"path": make_images(tmp_path, 6), "label": labels})
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == ("\\x1b[31mred", "turned\\u202e", "two\\nlines")
    said = capsys.readouterr().out
    assert "\\x1b[31mred, turned\\u202e, two\\nlines" in said and "\x1b" not in said and "\u202e" not in said
    write(source, {"path": make_images(tmp_path, 2), "label": ["two\nlines", "two\\nlines"]})
    with pytest.raises(DataError, match=r"one name when they are printed: 'two\\nlines' and 'two\\\\nlines'"):
        run(source, tmp_path / "other")


def test_a_mark_at_the_begin_of_a_file_is_no_text(tmp_path: Path) -> None:
    names = make_images(tmp_path, 4)
    classes = tmp_path / "classes.txt"
    classes.write_bytes("cow\r\nant\r\n".encode("utf-8-sig"))
    for kind in ("csv", "tsv"):
        source = write(tmp_path / f"t.{kind}", {"path": names, "label": ["ant", "cow"] * 2})
        source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
        dataset = run(source, tmp_path / f"{kind}.out", classes=classes)
        assert dataset.class_names == ("cow", "ant") and dataset.split("train").valid.all()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    "other",
    [
        "./photos/a.png",
        "photos//a.png",
        "x/../photos/./a.png",
        "{folder}/photos/a.png",
        "//{folder}/photos/a.png",
    ],
)
def test_one_photo_in_two_spellings_is_one_path(tmp_path: Path, kind: str, other: str) -> None:
    other = other.format(folder=tmp_path)
    columns = {
        "path": ["photos/a.png", "photos/b.png", other, "photos/a.png/b"],
        "label": ["x", "y", "x", "y"],
        "split": ["train", "train", "test", "test"],
    }
    source = write(tmp_path / f"t.{kind}", columns)
    line = "row 2" if kind == "parquet" else "line 4"
    message = f"({other!r}, which is 'photos/a.png'): {line}\n"
    for place in (source, Path(os.path.relpath(source))):
        with pytest.raises(DataError) as caught:
            run(place, tmp_path / "out")
        assert "a path that is in the table already " + message in str(caught.value)


def check_error(
    tmp_path: Path, content: bytes, kind: type[UserError], *parts: str, name: str = "t.csv"
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind) as caught:
        run(tmp_path / name, tmp_path / "out")
    assert type(caught.value) is kind and all(part in str(caught.value) for part in (*parts, name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("where,label\na,b\n", UserError, ["no column 'path'", "'where', 'label'", "--path-column"]),
        ("path:label\na:b\n", UserError, ["no column 'path'", "'path:label'"]),
        ("path,Labelled\na,b\n", UserError, ["no column 'label'", "'path', 'Labelled'"]),
        ("path,label,label\na,b,c\n", UserError, ["'label' is there twice"]),
        ("", DataError, ["cannot be read", "Empty"]),
        ("path,label\n", DataError, ["no rows"]),
        ("path,label\na,x\nb\n", DataError, ["cannot be read", "Expected 2 columns, got 1"]),
        ("path,label\na,x\n,y\n\nc,y\n,z\n", DataError, ["an empty path: line 3, line 6"]),
        ('path,label\n"a\nb",x\nb,\nc, \nd,y\n', DataError, ["an empty label: line 4, line 5"]),
        (
            "path,label\na,\nb,\nc,\nd,\ne,\n",
            DataError,
            ["an empty label: line 2, line 3, line 4 and 2 more"],
        ),
        ("path,label\na,x\nb,y\na,x\na,y\n", DataError, ["('a'): line 4, line 5", "in the table already"]),
        (
            "path,label,split\na,x,train\nb,y,fold1\nc,y,\n",
            DataError,
            ["none of train, test, val ('fold1', ''): line 3, line 4"],
        ),
        ("path,label,split\na,x,test\nb,y,val\n", DataError, ["no row has the split 'train'"]),
        (
            "path,label,split\na,x,train\nb,y,train\nc,z,test\n",
            DataError,
            ["('z'): line 4", "training set has not"],
        ),
        (
            "path,label,split\na,x,train\nb,y,train\nc,z,val\n",
            DataError,
            ["('z'): line 4", "training set has not"],
        ),
        (f"path,label\n{'a' * 200_000},x\nb,\n", DataError, ["an empty label: line 3"]),
        ("path,label\na,x\nb,x\n", DataError, ["one class, 'x'; wanted two"]),
    ],
)
def test_wrong_tables_say_what_and_where(
    tmp_path: Path, text: str, kind: type[UserError], parts: list[str]
) -> None:
    check_error(tmp_path, text.encode(), kind, *parts)
    check_error(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), kind, *parts)


def test_wrong_bytes_and_kinds(tmp_path: Path) -> None:
    check_error(tmp_path, b"path,label\na,\xe9\n", DataError, "cannot be read", "UTF8")
    check_error(tmp_path, b"PAR1 no parquet PAR1", DataError, "cannot be read", name="t.parquet")
    check_error(tmp_path, b"", DataError, "cannot be read", name="t.parquet")
    check_error(tmp_path, b"path,label\n", UserError, ".csv, .tsv or .parquet", name="t.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="no file"):
        run(tmp_path / "folder.csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"path": ["a", None], "label": ["x", "y"]}, ["an empty path: row 1"]),
        ({"path": ["a", "b"], "label": [1, None]}, ["an empty label: row 1"]),
        ({"path": ["a", "b"], "label": [1.0, 2.0]}, ["'label' holds double", "text or whole numbers"]),
        ({"path": ["a", "b"], "label": [True, False]}, ["'label' holds bool"]),
        ({"path": [1, 2], "label": ["x", "y"]}, ["'path' holds int64; wanted text"]),
        ({"path": [b"a", b"b"], "label": ["x", "y"]}, ["'path' holds binary"]),
        ({"path": ["a", "b"], "label": [None, None]}, ["an empty label: row 0, row 1"]),
        ({"path": [], "label": []}, ["no rows"]),
    ],
)
def test_wrong_parquet_columns(tmp_path: Path, columns: dict[str, list[Any]], parts: list[str]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    check_error(tmp_path, (tmp_path / "t.parquet").read_bytes(), DataError, *parts, name="t.parquet")


def test_a_split_of_its_own_and_a_fraction_contradict_each_other(tmp_path: Path) -> None:
    columns = {"path": make_images(tmp_path, 3), "label": ["x", "y", "x"], "split": ["train", "train", "val"]}
    with pytest.raises(UserError, match="without a test set"):
        run(write(tmp_path / "t.csv", columns), tmp_path / "out", test_fraction=0.5)
