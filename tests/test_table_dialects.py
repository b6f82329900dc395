"""Tables as other tools write them: read, or refused by the name of what they look like."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.cli import main
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.columns import LABELS, PATHS, Wanted, choose_columns

COUNT = 6
WORDS = ("ant", "bee", "cow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(COUNT):
        (tmp_path / "imgs").mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (30 * k, 9, 9)).save(tmp_path / "imgs" / f"photo {k}.png")
    return tmp_path


def path(k: int) -> str:
    return f"imgs/photo {k}.png"


def run(source: Path, **options: Any) -> Dataset:
    out = source.parent / f"out of {source.name}"
    return prepare(PrepareConfig(kind="table", source=source, out=out, size=8, **options))


def write(source: Path, text: str, encoding: str = "utf-8") -> Path:
    source.write_bytes(text.encode(encoding))
    return source


def check(dataset: Dataset, names: tuple[str, ...] = WORDS) -> None:
    assert dataset.class_names == names and dataset.split("train").valid.all()
    assert dataset.ids("train") == tuple(map(path, range(COUNT)))
    assert dataset.split("train").label.tolist() == [k % 3 for k in range(COUNT)]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
@pytest.mark.parametrize("head", ["path{}label", "Label{}FILE_NAME", " label {} Image "])
def test_the_separator_is_found_and_names_match_without_case_and_spaces(
    folder: Path, mark: str, ending: str, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = head.lower().strip().startswith("path")
    lines = [mark.join((path(k), WORDS[k % 3]) if first else (WORDS[k % 3], path(k))) for k in range(COUNT)]
    check(run(write(folder / f"t{ending}", "\r\n".join([head.format(mark), *lines]))))
    said = capsys.readouterr().out
    usual = mark == {".csv": ",", ".tsv": "\t"}.get(ending)
    assert ("the table is separated by" in said) == (not usual)
    assert ("columns: path = " in said) == (not first)


@settings(max_examples=40)
@given(
    spelled=st.sampled_from(
        [str.upper, str.title, lambda name: f" {name} ", lambda name: name.replace("_", " ")]
    ),
    of_path=st.sampled_from(PATHS),
    of_label=st.sampled_from(LABELS),
)
def test_other_words_for_columns(spelled: Any, of_path: str, of_label: str) -> None:
    names = ["width", spelled(of_path), "comment", spelled(of_label), "Split"]
    chosen = choose_columns(names, Wanted(), "here")
    assert (chosen.path, chosen.label, chosen.split) == (names[1], names[3], "Split")
    exact = choose_columns(
        [*(name for name in names if name not in ("path", "label")), "path", "label"], Wanted(), ""
    )
    assert (exact.path, exact.label) == ("path", "label")


def test_columns_may_be_named(folder: Path) -> None:
    text = "label,Where,What,part\n" + "".join(f"x,{path(k)},{WORDS[k % 3]},Training\n" for k in range(COUNT))
    source = write(folder / "t.csv", text)
    words = ["--path-column", "Where", "--label-column", "what", "--split-column", "part", "--size", "8"]
    assert main(["prepare", "table", "--source", str(source), "--out", str(folder / "out"), *words]) == 0
    columns = {"path_column": "Where", "label_column": "What", "split_column": "part"}
    check(run(source, **columns))
    with pytest.raises(UserError, match="no column 'wher' in the table; its columns are 'label', 'Where'"):
        run(source, **columns | {"path_column": "wher"})
    with pytest.raises(UserError, match="--label-column is for kind table"):
        prepare(PrepareConfig(kind="folder", source=folder, out=folder.parent / "x", label_column="y"))


@pytest.mark.parametrize("values", [("0", "1"), ("0.0", "1.0"), ("False", "True"), ("", "1")])
def test_one_hot_columns(folder: Path, values: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        ";".join([path(k), "77", *(values[k % 3 == c] for c in range(3)), "train"]) for k in range(COUNT)
    ]
    source = write(folder / "t.csv", "\n".join(["filename;width;ant;bee;cow;split", *lines]))
    check(run(source))
    said = capsys.readouterr().out
    assert "the labels are 3 columns of 0 and 1: 'ant', 'bee', 'cow'" in said and "not used: 'width'" in said
    flags = {name: [k % 3 == c for k in range(COUNT)] for c, name in enumerate(WORDS)}
    pq.write_table(pa.table({"file": [path(k) for k in range(COUNT)]} | flags), folder / "t.parquet")
    check(run(folder / "t.parquet"))


def test_several_labels_an_image_are_refused_with_the_line(folder: Path) -> None:
    with pytest.raises(DataError, match=r"not exactly one 1 in the columns 'ant', 'bee' .*: line 3, line 4"):
        run(write(folder / "t.csv", f"path,ant,bee\n{path(0)},1,0\n{path(1)},1,1\n{path(2)},0,0\n"))


@pytest.mark.parametrize("mark", [" ", "\t", "   "])
def test_key_lists_of_path_and_label(folder: Path, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As Clothing1M has them; a path may hold spaces."""
    text = "".join(f"{path(k)}{mark}{k % 3}\n" for k in range(COUNT))
    check(run(write(folder / "clean_label_kv.txt", text)), ("0", "1", "2"))
    assert "lines of a path and a label" in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json"])
def test_json(folder: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON lines as metadata.jsonl of Hugging Face: file_name and whatever else."""
    entries = [{"file_name": path(k), "size": [1, 2], "label": WORDS[k % 3]} for k in range(COUNT)]
    text = json.dumps(entries) if ending == ".json" else "\n".join(map(json.dumps, entries)) + "\n\n"
    check(run(write(folder / f"metadata{ending}", text)))
    assert "columns that are not used: 'size'" in capsys.readouterr().out
    numbers = [{"path": path(k), "label": k % 3} for k in range(COUNT)]
    text = json.dumps(numbers) if ending == ".json" else "\n".join(map(json.dumps, numbers))
    check(run(write(folder / f"t{ending}", text)), ("0", "1", "2"))


def test_metadata_csv_of_hugging_face(folder: Path) -> None:
    text = "file_name,additional_feature,label\n" + "".join(
        f"photo {k}.png,x,{WORDS[k % 3]}\n" for k in range(COUNT)
    )
    dataset = run(write(folder / "imgs" / "metadata.csv", text))
    assert dataset.class_names == WORDS and dataset.split("train").valid.all()
    with pytest.raises(UserError, match=r"metadata\.csv lies here: that is for kind table"):
        prepare(PrepareConfig(kind="folder", source=folder / "imgs", out=folder / "other"))


@pytest.mark.parametrize(
    ("name", "text", "kind", "message"),
    [
        (
            "t.csv",
            "imgs/photo 0.png,ant\nimgs/photo 1.png,bee\n",
            UserError,
            "its first line looks like data",
        ),
        (
            "t.csv",
            "filename,width,height,xmin,ymin\na.png,1,1,0,0\n",
            UserError,
            "table of boxes for detection",
        ),
        ("t.csv", "ImageId,EncodedPixels\na.png,1 3\n", UserError, "table of masks for segmentation"),
        ("t.csv", "file_name,text\na.png,a cat on a mat\n", UserError, "table of captions"),
        ("t.csv", "path,Label, label\na,b,c\n", UserError, "'Label' is there twice: 'Label' and ' label'"),
        ("t.txt", "imgs/photo 0.png\nimgs/photo 1.png\n", UserError, "lists paths without labels"),
        ("t.txt", "0\t1.0\timgs/0.png\n1\t0.0\timgs/1.png\n", UserError, "a list of MXNet"),
        ("t.txt", "1 a.png\n0 b.png\n", UserError, "`label path` lines"),
        ("t.txt", "a.png b.png\nc.png d.png\n", UserError, "pairs of images"),
        ("t.txt", "a.png 1\n" * 200 + "lonely.png\n", DataError, "no path and label: line 201"),
        ("t.txt", "", UserError, "no list of `path label` lines"),
        ("t.json", '{"images": [], "annotations": []}', UserError, "looks like COCO"),
        ("t.json", '{"labels": [["a.png", 1]]}', UserError, "dataset.json of StyleGAN"),
        ("t.json", "[1]", DataError, "no object with names: entry 0"),
        ("t.jsonl", '{"path": "a"}\n[]\n', DataError, "no object with names: line 2"),
        ("t.jsonl", '{"path": "a", "label": "x"}\n{"path": "b"', DataError, "cannot be read"),
        ("t.jsonl", '{"path": "a", "label": "x"}\n\n{"path": "b"}\n', DataError, "an empty label: line 3"),
        ("t.jsonl", '{"path": "a", "label": ["x"]}\n', DataError, "'label' holds list; wanted text"),
        ("t.jsonl", '{"path": "a", "label": true}\n', DataError, "'label' holds bool; wanted text"),
        ("t.jsonl", '{"path": "a", "label": 0.5}\n', DataError, "'label' holds a number with a fraction"),
        ("t.jsonl", "[" * 100_000, DataError, "cannot be read"),
        ("t.xlsx", "PK", UserError, "(?s)a table ends in.*save it as CSV"),
    ],
)
def test_what_is_refused_is_named(
    tmp_path: Path, name: str, text: str, kind: type[UserError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        run(write(tmp_path / name, text))
    assert type(caught.value) is kind and name in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_text_of_a_spreadsheet_in_utf_16(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match=r"not UTF8\n(.|\n)*save it as UTF-8"):
        run(write(tmp_path / "t.csv", "path,label\na,x\nb,y\n", encoding))


def test_a_parquet_file_with_images_inside_is_named(tmp_path: Path) -> None:
    images = pa.array([{"bytes": b"x", "path": "a.png"}] * 2)
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"'image' holds images; wanted text\n(.|\n)*then kind huggingface"):
        run(tmp_path / "t.parquet")


@settings(max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([".csv", ".txt", ".tsv", ".json", ".jsonl"]), st.booleans())
def test_no_bytes_end_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str, headed: bool
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    source = folder / f"t{ending}"
    source.write_bytes((b"path;label\n" if headed else b"") + data)
    with pytest.raises(UserError):
        prepare(PrepareConfig(kind="table", source=source, out=folder / "out", size=8), quiet=True)


def test_the_order_of_classes_and_the_file_stay_the_same_in_every_dialect(folder: Path) -> None:
    rows = [(path(k), WORDS[k % 3]) for k in range(COUNT)]
    comma = run(write(folder / "a.csv", "path,label\n" + "".join(f"{a},{b}\n" for a, b in rows)))
    bar = run(write(folder / "b.tsv", "Label|Filename\n" + "".join(f"{b}|{a}\n" for a, b in rows)))
    assert comma.fingerprint == bar.fingerprint
