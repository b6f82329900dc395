"""Folders of the library `datasets`: read as it reads them, from the disk alone, nothing run."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from need import need
from PIL import Image

from fastdrpl.loaders import extras
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.huggingface import open_huggingface
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.stratify import choose_test_rows

datasets: Any = need("datasets")

datasets.disable_progress_bars()
NAMES = ["emu", "ant", "cow"]  # not sorted: the order of a ClassLabel is kept


def photo(grey: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), (grey, grey, grey)).save(out, kind)
    return out.getvalue()


def make(
    count: int, first: int = 0, *, image: str = "image", label: str = "label", kind: Any = None, **more: Any
) -> Any:
    """Image k has colour 4 * k and class k modulo 3; `more` has further columns as (values, feature)."""
    kind = kind or datasets.ClassLabel(names=NAMES)
    numbers = range(first, first + count)
    text = isinstance(kind, datasets.Value) and "string" in kind.dtype
    values = {
        image: [{"bytes": photo(4 * k, "PNG" if k % 2 else "BMP"), "path": None} for k in numbers],
        label: [NAMES[k % 3] if text else k % 3 for k in numbers],
    }
    features = {image: datasets.Image(), label: kind} | {name: feature for name, (_, feature) in more.items()}
    values |= {name: column for name, (column, _) in more.items()}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def run(source: Path, out: Path, **options: Any) -> Dataset:
    return prepare(PrepareConfig(kind="huggingface", source=source, out=out, **({"size": 8} | options)))


def greys(dataset: Dataset, split: str) -> list[int]:
    table = dataset.split(split)
    data = np.fromfile(table.path, np.uint8)
    return [int(data[at]) for at in table.offset]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_dict_with_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"train": make(20), "validation": make(5, 20), "extra": make(3)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "my set")
    dataset = run(tmp_path / "my set", tmp_path / "out")
    assert dataset.class_names == tuple(NAMES) and dataset.name == "my set"
    assert greys(dataset, "train") == [4 * k for k in range(20)]
    assert greys(dataset, "test") == [4 * k for k in range(20, 25)]
    assert dataset.split("train").label.tolist() == [k % 3 for k in range(20)]
    assert dataset.split("test").label.tolist() == [k % 3 for k in range(20, 25)]
    assert dataset.ids("test") == tuple(f"validation/{row}" for row in range(5))
    assert not dataset.test_may_be_wrong and not dataset.source.labels_checked
    said = capsys.readouterr().out
    assert (
        "`validation` is the test set" in said and "not used: extra" in said and "'image' and 'label'" in said
    )
    with pytest.raises(UserError, match="without a test set"):
        run(tmp_path / "my set", tmp_path / "other", test_fraction=0.5)


def test_other_words_for_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"training": make(9), "dev": make(3, 9), "valid": make(6, 12)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "s")
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert greys(dataset, "train") == [4 * k for k in range(9)] and greys(dataset, "test") == [36, 40, 44]
    assert "`dev` is the test set; not used: valid" in capsys.readouterr().out
    datasets.DatasetDict({"train": make(9), "Training": make(3)}).save_to_disk(tmp_path / "t")
    with pytest.raises(UserError, match="several splits for training"):
        run(tmp_path / "t", tmp_path / "other")


def test_shuffled_sharded_datasets_with_a_format(tmp_path: Path) -> None:
    whole = make(150).shuffle(seed=3).select(range(130)).with_format("numpy")
    whole.save_to_disk(tmp_path / "s", num_shards=4)
    dataset = run(tmp_path / "s", tmp_path / "out")
    loaded = datasets.load_from_disk(tmp_path / "s").with_format(None)
    assert greys(dataset, "train") == [entry["image"].getpixel((0, 0))[0] for entry in loaded]
    assert dataset.split("train").label.tolist() == loaded["label"][:]


def test_a_dataset_alone_with_a_fraction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(30).save_to_disk(tmp_path / "s")
    dataset = run(tmp_path / "s", tmp_path / "out", test_fraction=0.2, seed=5)
    wanted = choose_test_rows(np.arange(30) % 3, 0.2, 5)
    assert greys(dataset, "test") == [4 * k for k in wanted]
    assert greys(dataset, "train") == [4 * k for k in range(30) if k not in wanted]
    assert dataset.ids("test") == tuple(f"train/{k}" for k in wanted)
    assert dataset.test_may_be_wrong and "may be wrong too" in capsys.readouterr().out


def test_a_test_split_without_labels_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlabelled = make(4, 30).map(lambda _: {"label": -1})
    parts = {"train": make(9), "test": unlabelled, "validation": make(3, 9)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "s")
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert greys(dataset, "test") == [36, 40, 44]
    assert "`test` has no labels" in capsys.readouterr().out
    datasets.DatasetDict({"train": make(9), "test": unlabelled}).save_to_disk(tmp_path / "t")
    assert not run(tmp_path / "t", tmp_path / "none").has("test")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("string", ("ant", "cow", "emu")),
        ("large_string", ("ant", "cow", "emu")),
        ("int64", ("0", "1", "2")),
        ("uint8", ("0", "1", "2")),
    ],
)
def test_text_and_numbers_as_labels(tmp_path: Path, kind: str, names: tuple[str, ...]) -> None:
    make(9, kind=datasets.Value(kind)).save_to_disk(tmp_path / "s")
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert dataset.class_names == names
    shown = [names[label] for label in dataset.split("train").label]
    assert shown == ([str(k % 3) for k in range(9)] if "int" in kind else [NAMES[k % 3] for k in range(9)])


def test_columns_are_found(tmp_path: Path) -> None:
    coarse = ([k % 2 for k in range(9)], datasets.ClassLabel(names=["x", "y"]))
    for number, (options, columns) in enumerate(
        [
            ({"image": "img", "label": "fine_label", "coarse_label": coarse}, 3),
            ({"image": "picture", "label": "animal"}, 3),
            ({"label": "labels", "size": ([1.5] * 9, datasets.Value("float32"))}, 3),
        ]
    ):
        make(9, **options).save_to_disk(tmp_path / f"{number}")
        dataset = run(tmp_path / f"{number}", tmp_path / f"out{number}")
        assert len(dataset.class_names) == columns and greys(dataset, "train") == [4 * k for k in range(9)]


def test_columns_that_are_not_clear(tmp_path: Path) -> None:
    second = ([{"bytes": photo(1), "path": None}] * 9, datasets.Image())
    coarse = ([k % 2 for k in range(9)], datasets.ClassLabel(names=["x", "y"]))
    cases = [
        ({"image": "a", "b": second}, r"which column is the image\? .*'a' \(Image\), .*'b' \(Image\)"),
        (
            {"label": "a", "b": coarse},
            r"which column is the label\? .*'a' \(ClassLabel\), 'b' \(ClassLabel\)",
        ),
        (
            {"kind": datasets.Value("float32")},
            r"'label' is no ClassLabel, text or whole number; .*\(float32\)",
        ),
    ]
    for number, (options, message) in enumerate(cases):
        make(9, **options).save_to_disk(tmp_path / f"{number}")
        with pytest.raises(UserError, match=message):
            run(tmp_path / f"{number}", tmp_path / "out")
    features = datasets.Features(image=datasets.Value("string"), label=datasets.ClassLabel(names=NAMES))
    datasets.Dataset.from_dict({"image": ["x"] * 3, "label": [0, 1, 2]}, features=features).save_to_disk(
        tmp_path / "n"
    )
    with pytest.raises(UserError, match=r"'image' is no Image column; the columns are 'image' \(string\)"):
        run(tmp_path / "n", tmp_path / "out")


def test_bad_images_are_quarantined(tmp_path: Path) -> None:
    entries = [
        {"bytes": photo(4), "path": "kept.png"},
        {"bytes": photo(8)[:30], "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"<html>", "path": None},
        None,
        {"bytes": photo(20), "path": None},
    ]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["x", "y"]))
    values = {"image": entries, "label": [0, 1, 0, 1, 0, 1]}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "s")
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert dataset.split("train").valid.tolist() == [True, False, False, False, False, True]
    text = (tmp_path / "out" / "quarantine.csv").read_text()
    assert text.count("empty file") == 2 and "3,train/3,train,not an image" in text


def test_images_outside_are_files_and_never_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.png").write_bytes(photo(40))
    outside = [str(tmp_path / "there.png"), "../there.png", "a/../../there.png", f"{tmp_path}/s/../there.png"]
    paths = [*outside, "http://127.0.0.1:9/x.png", "beside.png", str(tmp_path / "s" / "beside.png")]
    entries = [{"bytes": None, "path": path} for path in paths] + [{"bytes": photo(4), "path": None}]
    unpacked = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # not packed when saved
    features = datasets.Features(image=unpacked, label=datasets.Value("int8"))
    values = {"image": entries, "label": [0, 1] * 4}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "s")
    info = json.loads((tmp_path / "s" / "dataset_info.json").read_text())
    info["features"]["image"] = {"_type": "Image"}
    (tmp_path / "s" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "s" / "beside.png").write_bytes(photo(80))
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert dataset.split("train").valid.tolist() == [False] * 5 + [True] * 3
    assert greys(dataset, "train") == [0, 0, 0, 0, 0, 80, 80, 4]
    text = (tmp_path / "out" / "quarantine.csv").read_text()
    assert text.count("outside the saved folder") == 4 and text.count("no such file") == 1


def test_saved_images_are_packed_wherever_they_came_from(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(photo(40 * number))
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int8"))
    values = {"image": [str(tmp_path / f"{number}.png") for number in range(4)], "label": [0, 1] * 2}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "s")
    for number in range(4):
        (tmp_path / f"{number}.png").unlink()
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert dataset.split("train").valid.all() and greys(dataset, "train") == [0, 40, 80, 120]


def test_reading_can_start_at_any_row(tmp_path: Path) -> None:
    datasets.DatasetDict(train=make(50), test=make(7, 50)).save_to_disk(tmp_path / "s")
    opened = open_huggingface(
        tmp_path / "s", target=Target(8, "raw", 95), test_fraction=0.0, classes=None, workers=1, seed=1
    )
    for split, first, count in (("train", 0, 50), ("test", 50, 7)):
        for start in (0, 1, count // 2, count - 1, count):
            images = [image for piece in opened.parts[split].read(start) for image in piece.images]
            assert [int(np.asarray(image)[0, 0, 0]) for image in images] == [
                4 * k for k in range(first + start, first + count)
            ]


def test_the_class_list_gives_the_order(tmp_path: Path) -> None:
    make(9).save_to_disk(tmp_path / "s")
    (tmp_path / "classes.txt").write_text("ant\ncow\nemu\n")
    dataset = run(tmp_path / "s", tmp_path / "out", classes=tmp_path / "classes.txt")
    assert dataset.class_names == ("ant", "cow", "emu")
    assert dataset.split("train").label.tolist() == [2, 0, 1] * 3


def test_datasets_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no dataset(.|\n)*save_to_disk"):
        run(tmp_path / "empty", tmp_path / "out")
    datasets.DatasetDict(test=make(9)).save_to_disk(tmp_path / "tests")
    with pytest.raises(UserError, match="no split 'train' in the dataset; it has test"):
        run(tmp_path / "tests", tmp_path / "out")
    make(9).map(lambda _, k: {"label": -1 if k in (2, 7) else k % 3}, with_indices=True).save_to_disk(
        tmp_path / "lost"
    )
    with pytest.raises(DataError, match="without a label: train/2, train/7"):
        run(tmp_path / "lost", tmp_path / "out")
    make(9, kind=datasets.ClassLabel(names=[*NAMES, "fox"])).save_to_disk(tmp_path / "fox")
    with pytest.raises(DataError, match="'fox' has no training image"):
        run(tmp_path / "fox", tmp_path / "out")
    make(9).save_to_disk(tmp_path / "range")
    info = tmp_path / "range" / "dataset_info.json"
    info.write_text(info.read_text().replace('"ant",', "").replace('"cow"', '"ant"'))
    with pytest.raises(DataError, match="label 2 of row 2 is not in"):
        run(tmp_path / "range", tmp_path / "out")
    other = make(9, label="animal")
    datasets.DatasetDict(train=make(9), test=other).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="test has other columns"):
        run(tmp_path / "other", tmp_path / "out")


@pytest.mark.parametrize("damage", ["arrow cut", "arrow gone", "state", "features", "info gone"])
def test_damaged_datasets_are_named(tmp_path: Path, damage: str) -> None:
    make(90).save_to_disk(tmp_path / "s")
    arrow = tmp_path / "s" / "data-00000-of-00001.arrow"
    if damage == "arrow cut":
        arrow.write_bytes(arrow.read_bytes()[:300])
    elif damage == "arrow gone":
        arrow.unlink()
    elif damage == "state":
        (tmp_path / "s" / "state.json").write_text("[")
    elif damage == "features":
        info = tmp_path / "s" / "dataset_info.json"
        info.write_text(info.read_text().replace('"Image"', '"os.system"'))
    else:
        (tmp_path / "s" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="cannot be read") as caught:
        run(tmp_path / "s", tmp_path / "out")
    assert str(tmp_path / "s") in str(caught.value)


def test_a_changed_dataset_is_another_source(tmp_path: Path) -> None:
    make(9).save_to_disk(tmp_path / "s")
    dataset = run(tmp_path / "s", tmp_path / "out")
    (tmp_path / "s" / "cache-0123.arrow").touch()  # the library leaves such files
    assert run(tmp_path / "s", tmp_path / "out").fingerprint == dataset.fingerprint
    os.utime(tmp_path / "s" / "data-00000-of-00001.arrow", (1, 1))
    with pytest.raises(UserError, match="files differ"):
        run(tmp_path / "s", tmp_path / "out")


def test_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="datasets") as caught:
        run(tmp_path / "s", tmp_path / "out")
    assert extras.INSTALL["datasets"] in str(caught.value)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    make(3).save_to_disk(tmp_path / "s")
    code = (
        "import sys; from pathlib import Path; import fastdrpl\n"
        "from fastdrpl.loaders.prepare import PrepareConfig, prepare\n"
        "prepare(PrepareConfig(kind='huggingface', source=Path(sys.argv[1]), out=Path(sys.argv[2]), size=8))\n"
        "assert 'datasets' in sys.modules and 'torch' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), str(tmp_path / "out")], check=True, cwd=root
    )
