"""Images that are there twice: found whatever the layout, counted, and the first pairs kept in dataset.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare


def photo(path: Path, seed: int, size: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, to)


def run(source: Path, out: Path, **options: object) -> tuple[Dataset, dict]:
    config = PrepareConfig(source=source, out=out, **({"kind": "folder", "size": 12} | options))  # type: ignore[arg-type]
    dataset = prepare(config)
    return dataset, json.loads((out / "dataset.json").read_text())["identical_images"]


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_under_two_labels_and_in_both_splits(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "s"
    for k in range(8):
        photo(source / "train" / ("cat", "dog")[k % 2] / f"{k}.png", k)
        photo(source / "test" / ("cat", "dog")[k % 2] / f"{k}.png", 100 + k)
    copy(source / "train" / "cat" / "0.png", source / "train" / "dog" / "same as cat 0.png")
    copy(source / "train" / "cat" / "2.png", source / "test" / "cat" / "same as 2.png")
    copy(source / "train" / "cat" / "4.png", source / "train" / "cat" / "again.png")
    dataset, found = run(source, tmp_path / "out", store=store)
    said = capsys.readouterr().out
    assert found["two_labels"]["groups"] == 1 and found["train_and_test"]["groups"] == 1
    (pair,) = found["two_labels"]["pairs"]
    assert [image["id"] for image in pair] == ["train/cat/0.png", "train/dog/same as cat 0.png"]
    ids = dataset.ids("train") or ()
    assert all(ids[image["row"]] == image["id"] and image["split"] == "train" for image in pair)
    (pair,) = found["train_and_test"]["pairs"]
    assert [(image["split"], image["id"]) for image in pair] == [
        ("train", "train/cat/2.png"),
        ("test", "test/cat/same as 2.png"),
    ]
    assert found["repeated"] == 3
    assert (
        "warning: 3 images are there more than once (1 under two labels, 1 in the training set and the test set), "
        "train/cat/0.png and train/dog/same as cat 0.png for one" in said
    )
    run(source, tmp_path / "out", store=store)  # the check of a finished set says it again
    assert "3 images are there more than once (1 under two labels" in capsys.readouterr().out


def test_a_table_that_lists_copies_under_other_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(30):
        photo(tmp_path / f"{k}.png", k % 15)  # 15 pictures, each of them twice
    lines = [f"{k}.png,{('ant', 'bee')[k // 15]}" for k in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, ""]))
    _, found = run(tmp_path / "t.csv", tmp_path / "out", kind="table")
    assert found["two_labels"]["groups"] == 15 and found["repeated"] == 15
    assert [[image["row"] for image in pair] for pair in found["two_labels"]["pairs"]] == [
        [k, k + 15] for k in range(10)
    ]
    assert "15 images are there more than once (15 under two labels), 0.png and 15.png for one" in (
        capsys.readouterr().out
    )


def test_copies_of_one_label_are_counted_and_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(4):
        photo(tmp_path / "s" / ("a", "b")[k % 2] / f"{k}.png", k)
    copy(tmp_path / "s" / "a" / "0.png", tmp_path / "s" / "a" / "9.png")
    _, found = run(tmp_path / "s", tmp_path / "out")
    said = capsys.readouterr().out
    assert found["repeated"] == 1 and "1 image is there twice" in said and "warning" not in said


def test_bad_images_are_all_black_and_no_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(4):
        photo(tmp_path / "s" / ("a", "b")[k % 2] / f"{k}.png", k)
        (tmp_path / "s" / ("a", "b")[k % 2] / f"bad {k}.png").write_text("no image")
    _, found = run(tmp_path / "s", tmp_path / "out")
    assert found["repeated"] == 0 and "twice" not in capsys.readouterr().out


def test_a_single_differing_pixel_is_another_image(tmp_path: Path) -> None:
    """Also where none of the bytes that are looked at first differ."""
    for label, k in (("a", 0), ("a", 1), ("b", 2), ("b", 3)):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[5 * k + 1, 7 * k + 3] = 255
        (tmp_path / "s" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "s" / label / f"{k}.png")
    _, found = run(tmp_path / "s", tmp_path / "out", size=64)
    assert found == {
        "repeated": 0,
        "two_labels": {"groups": 0, "pairs": []},
        "train_and_test": {"groups": 0, "pairs": []},
    }


def test_published_sets_have_no_entry_for_own_images(tmp_path: Path) -> None:
    prepare(PrepareConfig(kind="digits", out=tmp_path / "digits"), quiet=True)
    assert "identical_images" not in json.loads((tmp_path / "digits" / "dataset.json").read_text())


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=3, max_size=14),
    st.sampled_from([2, 5, 12]),
)
def test_counts_equal_those_of_an_independent_search(
    tmp_path_factory: pytest.TempPathFactory, images: list[tuple[int, int]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("twins")
    images = [*images, (90, 0), (91, 1), (92, 2)]
    for k, (seed, label) in enumerate(images):
        photo(folder / "s" / str(label) / f"{k:02}.png", seed, size)
    _, found = run(folder / "s", folder / "out", size=size)
    content: dict[bytes, list[str]] = {}
    for path in sorted((folder / "s").rglob("*.png")):
        content.setdefault(np.asarray(Image.open(path)).tobytes(), []).append(path.parent.name)
    assert found["repeated"] == sum(len(labels) - 1 for labels in content.values())
    assert found["two_labels"]["groups"] == sum(len(set(labels)) > 1 for labels in content.values())
