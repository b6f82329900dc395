"""WebVision as it is published: lists of web images, most of them there, and a checked validation set."""

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdrpl.loaders.beton import BetonWriter
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.webvision import open_webvision

WNIDS = [f"n{number:08}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, 1496331)]
CLASSES = len(WNIDS)


def photo(value: int, size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, value // 2, 255 - value)).save(out, "JPEG", quality=95)
    return out.getvalue()


def colour_of(label: int, number: int) -> int:
    return 20 + 30 * label + number


def make_webvision(root: Path, *, val: str = "val_images_256") -> Path:
    """6 classes; class k has 2 queries with 3 Google images and 1 query with 2 from Flickr; 2 validation images."""
    (root / "info").mkdir(parents=True)
    (root / "info" / "synsets.txt").write_text("".join(f"{w} name {w}, other name\n" for w in WNIDS))
    lists: dict[str, list[str]] = {"google": [], "flickr": [], "val": []}
    for label in range(CLASSES):
        for origin, queries, images in (("google", 2, 3), ("flickr", 1, 2)):
            for query in range(queries):
                folder = f"{origin}/q{label * 2 + query + 1:04}"
                (root / folder).mkdir(parents=True, exist_ok=True)
                for number in range(images):
                    name = f"{folder}/{origin}_{query}{number}-x_{label}.jpg"
                    (root / name).write_bytes(photo(colour_of(label, number)))
                    lists[origin].append(f"{name} {label}")
        (root / val).mkdir(exist_ok=True)
        for number in range(2):
            name = f"val{label * 2 + number + 1:06}.jpg"
            (root / val / name).write_bytes(photo(colour_of(label, number)))
            lists["val"].append(f"{name} {label}")
    lists["val"].reverse()
    for origin in ("google", "flickr"):
        (root / "info" / f"train_filelist_{origin}.txt").write_text("\n".join(lists[origin]) + "\n")
    (root / "info" / "val_filelist.txt").write_text("\n".join(lists["val"]) + "\n")
    (root / "info" / "queries_synsets_map.txt").write_text("1 1\n2 1\n")
    return root


def run(source: Path, out: Path, **options: Any) -> Dataset:
    config = PrepareConfig(kind="webvision", source=source, out=out, **({"size": 16, "first": 3} | options))
    return prepare(config)


def mean_red(dataset: Dataset, split: str, row: int) -> float:
    table = dataset.split(split)
    nbytes = table.height * table.width * 3
    data = np.fromfile(table.path, np.uint8, nbytes, offset=int(table.offset[row]))
    return float(data.reshape(-1, 3)[:, 0].mean())


def edit(path: Path, line: int, text: str | None) -> None:
    lines = path.read_text().splitlines()
    lines[line : line + 1] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")


def test_the_first_classes_of_both_origins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = run(make_webvision(tmp_path / "s"), tmp_path / "out")
    said = capsys.readouterr().out
    assert dataset.class_names == tuple(WNIDS[:3])
    train, test = dataset.split("train"), dataset.split("test")
    assert np.bincount(train.label).tolist() == [8, 8, 8] and np.bincount(test.label).tolist() == [2, 2, 2]
    ids, test_ids = dataset.ids("train"), dataset.ids("test")
    assert ids is not None and test_ids is not None
    for row, name in enumerate(ids):  # what the name says, the label and the pixels say too
        origin, query, file = name.split("/")
        label, number = int(file[-5]), int(file.split("-")[0][-1])
        assert (
            train.label[row] == label
            and origin in ("google", "flickr")
            and (int(query[1:]) - 1) // 2 == label
        )
        assert abs(mean_red(dataset, "train", row) - colour_of(label, number)) < 3
    for row, name in enumerate(test_ids):
        number = int(name.removeprefix("val_images_256/val")[:6]) - 1
        assert test.label[row] == number // 2
        assert abs(mean_red(dataset, "test", row) - colour_of(number // 2, number % 2)) < 3
    assert "train_filelist_google.txt: 36 images listed, 18 of the first 3 classes" in said
    assert "train_filelist_flickr.txt: 12 images listed, 6 of the first 3 classes" in said
    assert "val_filelist.txt: 12 images listed, 6 of the first 3 classes" in said
    assert "training set: 24 images; test set: 6 images of val_images_256/" in said
    assert "has 6 classes; the published one has 1,000" in said and "not sorted" not in said
    assert not dataset.test_may_be_wrong and not dataset.source.labels_checked
    assert (train.height, train.width) == (16, 16)


def test_google_only_and_all_classes(tmp_path: Path) -> None:
    source = make_webvision(tmp_path / "s")
    dataset = run(source, tmp_path / "out", google_only=True, first=CLASSES)
    ids = dataset.ids("train")
    assert ids is not None and len(ids) == 36 and all(name.startswith("google/") for name in ids)
    assert dataset.class_names == tuple(WNIDS)
    (source / "info" / "train_filelist_flickr.txt").unlink()
    run(source, tmp_path / "again", google_only=True)  # its list is not needed then
    with pytest.raises(UserError, match=r"train_filelist_flickr\.txt"):
        run(source, tmp_path / "other")


def test_the_full_size_release_has_its_own_validation_folder(tmp_path: Path) -> None:
    dataset = run(make_webvision(tmp_path / "s", val="val_images"), tmp_path / "out")
    ids = dataset.ids("test")
    assert ids is not None and ids[0] == "val_images/val000006.jpg"


def test_the_aspect_is_not_kept(tmp_path: Path) -> None:
    source = make_webvision(tmp_path / "s")
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, :30] = 255  # the left third
    Image.fromarray(wide).save(source / "google/q0001/google_00-x_0.jpg", quality=100)
    dataset = run(source, tmp_path / "out", size=24)
    split = dataset.split("train")
    pixels = np.fromfile(split.path, np.uint8, 24 * 24 * 3, offset=int(split.offset[0])).reshape(24, 24, 3)
    assert pixels[:, :7].min() > 200 and pixels[:, 9:].max() < 55


def test_missing_and_damaged_images_are_quarantined_and_the_totals_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_webvision(tmp_path / "s")
    bad = {
        "google/q0001/google_01-x_0.jpg": "no such file",
        "flickr/q0003/flickr_00-x_1.jpg": "no such file",
        "google/q0005/google_02-x_2.jpg": "not an image (a web page)",
        "val_images_256/val000003.jpg": "empty file",
    }
    for name, reason in bad.items():
        (source / name).unlink()
        if reason != "no such file":
            (source / name).write_bytes(
                b"<html>gone</html>" if reason == "not an image (a web page)" else b""
            )
    dataset = run(source, tmp_path / "out")
    lines = (tmp_path / "out" / "quarantine.csv").read_text().splitlines()[1:]
    assert {line.split(",")[1]: line.split(",")[3] for line in lines} == bad
    train, test = dataset.split("train"), dataset.split("test")
    assert (len(train), int(train.valid.sum())) == (24, 21) and (len(test), int(test.valid.sum())) == (6, 5)
    said = capsys.readouterr().out
    assert "train: 24 images of 16x16, raw, 3 of them quarantined" in said
    assert "quarantined: 2 x no such file" in said


def test_an_interrupted_prepare_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_webvision(tmp_path / "s")
    monkeypatch.setattr("fastdrpl.loaders.prepare.SECONDS_BETWEEN_ENTRIES", 0.0)
    monkeypatch.setattr("fastdrpl.loaders.sources.photos.CHUNK", 2)
    whole = run(source, tmp_path / "whole", size=1024)
    write, sync, journal = BetonWriter.write_raw, BetonWriter.sync, tmp_path / ".out.preparing" / "journal"
    begun, ended = threading.Event(), threading.Event()

    def watched_sync(self: BetonWriter) -> int:
        begun.set()
        rows = sync(self)
        ended.set()
        return rows

    def fail_late(self: BetonWriter, images: np.ndarray) -> None:
        write(self, images)
        if begun.is_set():
            assert ended.wait(60)
        time.sleep(0.1)  # pages are written and journalled behind our back
        if len(journal.read_bytes().splitlines()) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(BetonWriter, "write_raw", fail_late)
    monkeypatch.setattr(BetonWriter, "sync", watched_sync)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", size=1024)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(BetonWriter, "write_raw", write)
    capsys.readouterr()
    dataset = run(source, tmp_path / "out", size=1024)
    done = re.search(r"Continuing an unfinished prepare: (\d+) images", capsys.readouterr().out)
    assert done and 0 < int(done[1]) < 24
    assert dataset.fingerprint == whole.fingerprint


def test_an_image_listed_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_webvision(tmp_path / "s")
    google = source / "info" / "train_filelist_google.txt"
    first, second = google.read_text().splitlines()[:2]
    other_class = second.rsplit(" ", 1)[0] + " 2"
    google.write_text(google.read_text() + first + "\n" + first + "\n" + other_class + "\n")
    dataset = run(source, tmp_path / "out")
    ids, labels = dataset.ids("train"), dataset.split("train").label
    assert ids is not None and len(ids) == 25 and ids.count(first.split()[0]) == 1
    twice = [int(labels[row]) for row, name in enumerate(ids) if name == second.split()[0]]
    assert twice == [0, 2]  # neither is known to be right
    said = capsys.readouterr().out
    assert "2 images are listed twice with the same class" in said
    assert "1 images are listed with another class again" in said


def test_one_image_in_two_spellings_is_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_webvision(tmp_path / "s")
    google, val = source / "info" / "train_filelist_google.txt", source / "info" / "val_filelist.txt"
    first, second = google.read_text().splitlines()[:2]
    other_class = second.replace("google/", "google/./").rsplit(" ", 1)[0] + " 2"
    more = [first.replace("google/", "google//"), f"./{first}", other_class]
    google.write_text(google.read_text() + "\n".join(more) + "\n")
    val.write_text(val.read_text() + "./val000001.jpg 0\n")
    dataset = run(source, tmp_path / "out")
    ids, labels = dataset.ids("train"), dataset.split("train").label
    assert ids is not None and len(ids) == 25 and ids.count(first.split()[0]) == 1
    assert [int(labels[row]) for row, name in enumerate(ids) if name == second.split()[0]] == [0, 2]
    said = capsys.readouterr().out
    assert (
        "2 images are listed twice with the same class" in said and "1 test images are listed twice" in said
    )
    val.write_text(val.read_text() + ".//val000001.jpg 1\n")
    with pytest.raises(DataError, match="class 1 here and class 0 before"):
        run(source, tmp_path / "other")


def test_classes_without_a_validation_image_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_webvision(tmp_path / "s")
    run(source, tmp_path / "out")
    assert "no validation image" not in capsys.readouterr().out
    val = source / "info" / "val_filelist.txt"
    val.write_text("\n".join(line for line in val.read_text().splitlines() if line[-1] in "13"))
    run(source, tmp_path / "other")
    assert "2 of the first 3 classes have no validation image." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("list_name", "line", "text", "message"),
    [
        ("train_filelist_google.txt", 4, "google/q0001/a.jpg", "not a path and a class number"),
        ("train_filelist_google.txt", 4, "", "not a path and a class number"),
        ("train_filelist_google.txt", 4, "google/q0001/a.jpg one", "not a path and a class number"),
        ("train_filelist_google.txt", 4, "google/q0001/a.jpg -1", "not a path and a class number"),
        ("train_filelist_google.txt", 4, "google/q0001/a.jpg \u0663", "not a path and a class number"),
        ("train_filelist_google.txt", 4, "google/q0001/a.jpg 6", "class 6 is not in 0..5"),
        ("train_filelist_flickr.txt", 2, "flickr/a.jpg " + "9" * 5000, "is not in 0..5"),
        ("train_filelist_flickr.txt", 2, "flickr/../../a.jpg 0", "leaves the source folder"),
        ("train_filelist_flickr.txt", 2, "/etc/passwd 5", "leaves the source folder"),
        ("val_filelist.txt", 1, "../info/synsets.txt 1", "leaves the source folder"),
        ("val_filelist.txt", 11, "val000003.jpg 2", "class 2 here and class 1 before"),
        ("synsets.txt", 3, "tench", "WordNet id"),
        ("synsets.txt", 3, "n1440764 tench", "WordNet id"),
    ],
)
def test_a_damaged_list_is_named_with_its_line(
    tmp_path: Path, list_name: str, line: int, text: str, message: str
) -> None:
    source = make_webvision(tmp_path / "s")
    edit(source / "info" / list_name, line, text)
    with pytest.raises(DataError, match=message) as caught:
        run(source, tmp_path / "out")
    assert f"{list_name}, line {line + 1}" in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["synsets.txt", "train_filelist_google.txt", "train_filelist_flickr.txt", "val_filelist.txt"]
)
def test_a_missing_list_is_named(tmp_path: Path, name: str) -> None:
    source = make_webvision(tmp_path / "s")
    (source / "info" / name).unlink()
    with pytest.raises(UserError, match=name) as caught:
        run(source, tmp_path / "out")
    assert caught.value.exit_code == 2


def test_archives_that_are_still_packed(tmp_path: Path) -> None:
    source = make_webvision(tmp_path / "s")
    (source / "flickr").rename(source / "elsewhere")
    (source / "flickr_resized_256.tar").touch()
    with pytest.raises(UserError, match=r"flickr is not here, but flickr_resized_256\.tar is(.|\n)*unpack"):
        run(source, tmp_path / "out")
    (source / "elsewhere").rename(source / "flickr")
    (source / "val_images_256").rename(source / "elsewhere")
    (source / "val_images_256.tar").touch()
    with pytest.raises(UserError, match=r"but val_images_256\.tar is(.|\n)*unpack"):
        run(source, tmp_path / "out")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "info.tar").touch()
    with pytest.raises(UserError, match=r"synsets\.txt: .*info\.tar is still packed(.|\n)*unpack"):
        run(tmp_path / "t", tmp_path / "out")
    with pytest.raises(UserError, match="no folder"):
        run(tmp_path / "t" / "info.tar", tmp_path / "out")


def test_classes_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_webvision(tmp_path / "s")
    with pytest.raises(UserError, match=r"50 classes are asked for, .* has 6"):
        run(source, tmp_path / "out", first=50)
    synsets = source / "info" / "synsets.txt"
    lines = synsets.read_text().splitlines()
    synsets.write_text("\n".join(lines[::-1]))
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == tuple(WNIDS[:2:-1])
    assert "not sorted" in capsys.readouterr().out
    synsets.write_text("\n".join([*lines[:5], lines[0]]))
    with pytest.raises(DataError, match="twice"):
        run(source, tmp_path / "other")
    synsets.write_text("\n".join(lines))
    google = source / "info" / "train_filelist_google.txt"
    google.write_text("\n".join(line for line in google.read_text().splitlines() if not line.endswith(" 1")))
    with pytest.raises(DataError, match=f"'{WNIDS[1]}' has no training image"):
        run(source, tmp_path / "other", google_only=True)


def test_links_to_another_disk_are_followed(tmp_path: Path) -> None:
    source = make_webvision(tmp_path / "s")
    (source / "google").rename(tmp_path / "disk")
    os.symlink(tmp_path / "disk", source / "google")
    assert run(source, tmp_path / "out").split("train").valid.all()


def test_a_changed_image_is_noticed(tmp_path: Path) -> None:
    source = make_webvision(tmp_path / "s")
    options: dict[str, Any] = {"first": 3, "google_only": False, "workers": 1}
    before = open_webvision(source, target=Target(16, "raw", 95), **options).fingerprint
    assert open_webvision(source, target=Target(16, "raw", 95), **options).fingerprint == before
    (source / "val_images_256" / "val000001.jpg").write_bytes(photo(1, (41, 30)))
    assert open_webvision(source, target=Target(16, "raw", 95), **options).fingerprint != before
