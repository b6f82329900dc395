"""Tar shards as the `webdataset` library writes them; hostile and damaged ones are refused, none is unpacked."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from need import need
from tar_shard_cases import hostile, photo, run, sample, write_shard

from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources import tar_shards
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.stratify import choose_test_rows


def greys(dataset: Dataset, split: str) -> list[int]:
    table = dataset.split(split)
    data = np.fromfile(table.path, np.uint8)
    return [int(data[at]) for at in table.offset]


# --- what the library writes ---------------------------------------------------------------------------------------


def test_what_the_library_writes_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    library, source = need("webdataset"), tmp_path / "s"
    source.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (80, 12, 12, 3), dtype=np.uint8)
    with library.ShardWriter(str(source / "s-%06d.tar"), maxcount=30, verbose=0) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"some/dir/{number:06}", "png": image, "cls": number % 12})
    dataset = run(source, tmp_path / "out", size=12, workers=2)
    split, ids = dataset.split("train"), dataset.ids("train")
    assert dataset.class_names == tuple(str(label) for label in range(12)) and ids is not None
    data = np.fromfile(split.path, np.uint8)
    shards = sorted(str(path) for path in source.glob("*.tar"))
    assert len(shards) == 3
    rows = 0
    for row, theirs in enumerate(library.WebDataset(shards, shardshuffle=False).decode("rgb8")):
        pixels = data[split.offset[row] : split.offset[row] + 12 * 12 * 3].reshape(12, 12, 3)
        assert np.array_equal(pixels, theirs["png"]) and np.array_equal(pixels, images[row])
        assert split.label[row] == theirs["cls"] and ids[row] == f"s-{row // 30:06}.tar/{theirs['__key__']}"
        rows += 1
    assert rows == len(split) == 80  # more than one process decodes


@pytest.mark.parametrize("compress", [False, True])
def test_compressed_shards_and_json_labels(tmp_path: Path, compress: bool) -> None:
    library, source = need("webdataset"), tmp_path / "s"
    source.mkdir()
    name = "s-%06d.tar" + (".gz" if compress else "")
    with library.ShardWriter(str(source / name), maxcount=7, compress=compress or None, verbose=0) as writer:
        for number in range(20):
            label = "dog" if number % 2 else "cat"
            writer.write(
                {"__key__": f"{number:03}", "jpg": photo(4 * number, "JPEG"), "json": {"label": label}}
            )
    dataset = run(source, tmp_path / "out")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.split("train").label.tolist() == [0, 1] * 10
    assert np.abs(np.array(greys(dataset, "train")) - 4 * np.arange(20)).max() <= 1


# --- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["prefix", "folders", "validation", "words", "three"])
def test_splits_by_name_and_by_folder(tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        "prefix": ["train-000.tar", "train-001.tar", "test-000.tar"],
        "folders": ["train/a.tar", "train/b.tar", "val/a.tar"],
        "validation": ["Train_0.tar", "Train_1.tar", "validation_0.tar"],
        "words": ["birds-train-0.tar", "birds-train-1.tar", "birds-validation-0.tar.gz"],
        "three": ["train0.tar", "train1.tar", "test0.tar", "val0.tar"],
    }[style]
    for number, name in enumerate(names):
        write_shard(tmp_path / "s" / name, [m for k in range(6 * number, 6 * number + 6) for m in sample(k)])
    (tmp_path / "s" / "train-000.idx").write_text("not a shard")
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert greys(dataset, "train") == [4 * k for k in range(12)]
    assert greys(dataset, "test") == [4 * k for k in range(12, 18)]
    assert dataset.ids("test") == tuple(f"{names[2]}/{k:06}" for k in range(12, 18))
    assert not dataset.test_may_be_wrong and not dataset.source.labels_checked and dataset.name == "s"
    assert ("`val` is not used" in capsys.readouterr().out) == (style == "three")
    with pytest.raises(UserError, match="without a test set"):
        run(tmp_path / "s", tmp_path / "other", test_fraction=0.5)


@pytest.mark.parametrize(
    "names",
    [
        ["birds_training-0.tar", "birds_valid-0.tar"],
        ["Training Set/a.tar", "Dev/b.tar"],
        ["TRAIN0.tar", "DevSet/0.tar"],
    ],
)
def test_other_words_for_splits(tmp_path: Path, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(names):
        write_shard(tmp_path / "s" / name, [m for k in range(6 * number, 6 * number + 6) for m in sample(k)])
    write_shard(tmp_path / "s" / "more birds" / "a.tar", sample(99))
    dataset = run(tmp_path / "s", tmp_path / "out")
    assert greys(dataset, "train") == [4 * k for k in range(6)]
    assert greys(dataset, "test") == [4 * k for k in range(6, 12)]
    assert "the 1 shards in more birds/ are not used" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz", "ALL.TGZ", "really_gzip.tar", "bz2.tar"])
def test_one_file_with_a_fraction_for_testing(tmp_path: Path, name: str) -> None:
    mode = "w:bz2" if name == "bz2.tar" else "w" if name == "all.tar" else "w:gz"
    source = write_shard(tmp_path / name, [m for k in range(30) for m in sample(k)], mode)
    before = sorted(tmp_path.rglob("*"))
    dataset = run(source, tmp_path / "out", test_fraction=0.2, seed=9)
    wanted = choose_test_rows(np.arange(30) % 3, 0.2, 9)
    assert greys(dataset, "test") == [4 * k for k in wanted]
    assert greys(dataset, "train") == [4 * k for k in range(30) if k not in wanted]
    assert dataset.test_may_be_wrong and dataset.ids("test") == tuple(f"{name}/{k:06}" for k in wanted)
    assert [
        path for path in sorted(tmp_path.rglob("*")) if tmp_path / "out" not in (path, *path.parents)
    ] == before


def test_reading_can_start_at_any_row_of_any_shard(tmp_path: Path) -> None:
    for number in range(5):
        mode = "w:gz" if number in (1, 3) else "w"
        write_shard(
            tmp_path / f"{number}.tar",
            [m for k in range(7 * number, 7 * number + 7) for m in sample(k)],
            mode,
        )
    opened = tar_shards.open_webdataset(
        tmp_path, target=Target(8, "raw", 95), test_fraction=0.0, classes=None, workers=1, seed=1
    )
    part = opened.parts["train"]
    for start in range(36):
        images = [image for piece in part.read(start) for image in piece.images]
        assert [int(np.asarray(image)[0, 0, 0]) for image in images] == [4 * k for k in range(start, 35)]


def test_members_in_any_order_and_of_any_format(tmp_path: Path) -> None:
    writing = {"format": tarfile.PAX_FORMAT}
    long = "directory/" * 30 + "name" * 20
    members = [
        ("b.json", json.dumps({"cls": 5, "caption": "x"}).encode()),
        ("a.cls", b" 3\n"),
        ("b.jpg", photo(40, "JPEG")),
        ("./a.PNG", photo(10)),
        ("a.seg.png", photo(99)),  # another kind of member, not a second image
        ("dir.with.dots/c.webp", photo(70, "WEBP")),
        ("dir.with.dots/c.json", b'{"label": "7", "cls": 1}'),
        ("dir.with.dots/c.cls", b"5"),
        (f"{long}.png", photo(100)),
        (f"{long}.cls", b"3"),
        ("caf\u00e9.png", photo(120)),
        ("caf\u00e9.cls", b"3"),
        ("README", b"no extension"),
        (".hidden.png", photo(1)),
        ("._a.png", photo(1)),
        ("lonely.cls", b"3"),
        ("words.txt", b"no image"),
    ]
    dataset = run(write_shard(tmp_path / "x.tar", members, **writing), tmp_path / "out")
    assert dataset.class_names == ("3", "5") and dataset.split("train").label.tolist() == [1, 0, 1, 0, 0]
    assert dataset.ids("train") == tuple(
        f"x.tar/{key}" for key in ("b", "a", "dir.with.dots/c", long, "caf\u00e9")
    )
    assert np.abs(np.array(greys(dataset, "train")) - [40, 10, 70, 100, 120]).max() <= 2


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_shard(tmp_path / "x.tar", [*sample(0), *sample(1), ("only.cls", b"1"), ("text.txt", b"")])
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.cls", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert len(run(path, tmp_path / "out").split("train")) == 2
    said = capsys.readouterr().out
    assert "1 shards (1 for training) with 2 images" in said and "2 samples without an image" in said
    assert "3 links and other members" in said


@pytest.mark.parametrize("packed", [False, True])
def test_bad_images_are_quarantined(tmp_path: Path, packed: bool) -> None:
    members = [
        *sample(0),
        ("cut.jpg", photo(50, "JPEG", (90, 90))[:400]),
        ("cut.cls", b"1"),
        *sample(1),
        ("empty.png", b""),
        ("empty.cls", b"2"),
        ("text.png", b"<html>"),
        ("text.cls", b"0"),
        *sample(2),
    ]
    source = write_shard(tmp_path / "x.tar", members, "w:gz" if packed else "w")
    dataset = run(source, tmp_path / "out")
    split = dataset.split("train")
    assert split.valid.tolist() == [True, False, True, False, False, True]
    text = (tmp_path / "out" / "quarantine.csv").read_text()
    assert all(
        part in text for part in ("x.tar/cut,train,truncated", "/empty,train,empty", "/text,train,not an")
    )


def test_labels_are_named_and_ordered_by_a_list(tmp_path: Path) -> None:
    members = [m for k, label in enumerate(["été", "ant", "10", "ant"]) for m in sample(k, label)]
    source = write_shard(tmp_path / "x.tar", members)
    assert run(source, tmp_path / "out").class_names == ("10", "ant", "été")
    (tmp_path / "classes.txt").write_text("été\n10\nant\n")
    dataset = run(source, tmp_path / "again", classes=tmp_path / "classes.txt")
    assert dataset.class_names == ("été", "10", "ant") and dataset.split("train").label.tolist() == [
        0,
        2,
        1,
        2,
    ]


def test_many_shards_are_scanned_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "s"
    for number in range(4):
        write_shard(
            source / f"{number}.tar", [m for k in range(9 * number, 9 * number + 9) for m in sample(k)]
        )
    one = run(source, tmp_path / "one", workers=1)
    monkeypatch.setattr(tar_shards, "MUCH", 0)
    two = run(source, tmp_path / "two", workers=2)
    assert one.fingerprint == two.fingerprint
    (source / "2.tar").write_bytes(hostile("cut between members"))
    with pytest.raises(DataError, match=r"2\.tar") as caught:
        run(source, tmp_path / "three", workers=2)
    assert caught.value.exit_code == 3
