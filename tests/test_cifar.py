"""CIFAR: the official files, their archive, and damage."""

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_cases import small_batch

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources import cifar

# --- CIFAR ---------------------------------------------------------------------------------------------------------


def read_cifar_slowly(file: Path, key: bytes, rows: int) -> tuple[list[int], np.ndarray]:
    """Labels and planes straight from the bytes of an official file, without any pickle reader.

    Labels: one-byte integers (`K`) after the key, in groups between `(` and `e`. Pixels: the one long string.
    """
    data = file.read_bytes()
    at = data.index(b"U" + bytes([len(key)]) + key) + 2 + len(key)
    while data[at : at + 1] != b"(":  # the list and its place in the memo
        at += 1
    labels: list[int] = []
    while len(labels) < rows:
        if data[at : at + 1] == b"K":
            labels.append(data[at + 1])
            at += 1
        at += 1
    start = data.index(b"T" + struct.pack("<I", rows * 3072)) + 5
    return labels, np.frombuffer(data, np.uint8, rows * 3072, start).reshape(rows, 3072)


def check_against_slow_reading(split: Split, labels: list[int], planes: np.ndarray, first: int) -> None:
    rows = slice(first, first + len(labels))
    assert split.label[rows].tolist() == labels
    wanted = np.empty((len(labels), 32, 32, 3), np.uint8)
    for colour in range(3):
        for line in range(32):
            start = colour * 1024 + line * 32
            wanted[:, line, :, colour] = planes[:, start : start + 32]
    data = np.fromfile(split.path, np.uint8)
    seen = np.stack([data[at : at + 3072] for at in split.offset[rows]])
    assert np.array_equal(seen.reshape(wanted.shape), wanted)


def test_real_cifar_10_equals_an_independent_reading(real_cifar: Path, tmp_path: Path) -> None:
    dataset = prepare(PrepareConfig(kind="cifar10", source=real_cifar, out=tmp_path / "out"), quiet=True)
    folder = real_cifar / "cifar-10-batches-py"
    for number in range(5):
        labels, planes = read_cifar_slowly(folder / f"data_batch_{number + 1}", b"labels", 10_000)
        check_against_slow_reading(dataset.split("train"), labels, planes, number * 10_000)
    labels, planes = read_cifar_slowly(folder / "test_batch", b"labels", 10_000)
    check_against_slow_reading(dataset.split("test"), labels, planes, 0)
    assert dataset.class_names == tuple(
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    )
    assert (dataset.mean, dataset.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert np.bincount(dataset.split("train").label).tolist() == [5000] * 10
    assert dataset.superclass is None


def test_real_cifar_100_keeps_the_superclasses(real_cifar: Path, tmp_path: Path) -> None:
    folder = real_cifar / "cifar-100-python"  # this time the unpacked folder itself
    dataset = prepare(PrepareConfig(kind="cifar100", source=folder, out=tmp_path / "out"), quiet=True)
    labels, planes = read_cifar_slowly(folder / "test", b"fine_labels", 10_000)
    coarse, _ = read_cifar_slowly(folder / "test", b"coarse_labels", 10_000)
    check_against_slow_reading(dataset.split("test"), labels, planes, 0)
    assert dataset.superclass is not None and dataset.superclass_names is not None
    assert [dataset.superclass[label] for label in labels] == coarse
    assert sorted(Counter(dataset.superclass).values()) == [5] * 20
    fruit = dataset.superclass_names.index("fruit_and_vegetables")
    members = {name for name, up in zip(dataset.class_names, dataset.superclass, strict=True) if up == fruit}
    assert members == {"apple", "mushroom", "orange", "pear", "sweet_pepper"}


@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_damaged_official_file_is_named(real_cifar: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (real_cifar / folder.name).iterdir():
        os.symlink(path, folder / path.name)
    data = bytearray((folder / "data_batch_3").read_bytes())
    (folder / "data_batch_3").unlink()
    if damage == "flip":
        data[20_000_000] ^= 1
    if damage != "missing":
        (folder / "data_batch_3").write_bytes(data[:-1000] if damage == "cut" else data)
    with pytest.raises(UserError, match="data_batch_3") as caught:
        prepare(PrepareConfig(kind="cifar10", source=tmp_path, out=tmp_path / "out"), quiet=True)
    assert caught.value.exit_code == (2 if damage == "missing" else 3)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A CIFAR-10 of 5 x 10 + 10 images, made official."""
    files = {f"data_batch_{number}": small_batch(10) for number in range(1, 6)} | {
        "test_batch": small_batch(10)
    }
    files["batches.meta"] = pickle.dumps({b"label_names": [b"class %d" % k for k in range(10)]}, protocol=3)
    make_official(files, monkeypatch)
    return files


def make_official(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    official = cifar.OFFICIAL["cifar10"]
    digests = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    changed = dataclasses.replace(
        official,
        train={name: digests[name] for name in official.train},
        test={"test_batch": digests["test_batch"]},
        meta={"batches.meta": digests["batches.meta"]},
        rows=(50, 10),
    )
    monkeypatch.setitem(cifar.OFFICIAL, "cifar10", changed)


def write_archive(path: Path, files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member in extra or []:
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def hostile_members() -> list[tarfile.TarInfo]:
    members = [tarfile.TarInfo(name) for name in ("../evil", "/tmp/evil", "link", "hard", "device", "pipe")]
    kinds = [
        tarfile.REGTYPE,
        tarfile.REGTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
    ]
    for member, kind in zip(members, kinds, strict=True):
        member.type, member.linkname = kind, "/etc/passwd"
    return members


def test_the_archive_gives_the_same_dataset_and_nothing_else_is_unpacked(
    small_cifar: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "unpacked" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, data in small_cifar.items():
        (folder / name).write_bytes(data)
    (tmp_path / "packed").mkdir()
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    write_archive(archive, small_cifar, hostile_members())
    before = sorted(tmp_path.rglob("*"))
    prints = {
        prepare(
            PrepareConfig(kind="cifar10", source=source, out=tmp_path / f"out{number}"), quiet=True
        ).fingerprint
        for number, source in enumerate((folder, folder.parent, archive, archive.parent))
    }
    assert len(prints) == 1
    made = [path for path in tmp_path.rglob("*") if path not in before]
    assert all(path.relative_to(tmp_path).parts[0].startswith("out") for path in made)


@pytest.mark.parametrize("damage", ["cut", "no gzip", "missing", "many", "bomb"])
def test_a_damaged_archive_is_refused(small_cifar: dict[str, bytes], tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    if damage == "missing":
        del small_cifar["data_batch_4"]
    extra = [tarfile.TarInfo(f"x{number}") for number in range(200)] if damage == "many" else []
    write_archive(archive, small_cifar, extra)
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:-3000])
    elif damage == "no gzip":
        archive.write_bytes(b"<html>404</html>" * 100)
    elif damage == "bomb":
        bomb = tarfile.TarInfo("zeros")
        bomb.size = 1 << 32
        packer = zlib.compressobj(wbits=31)
        archive.write_bytes(packer.compress(bomb.tobuf() + bytes(1 << 24)) + packer.flush())
    with pytest.raises(DataError, match=r"archive") as caught:
        prepare(PrepareConfig(kind="cifar10", source=archive, out=tmp_path / "out"), quiet=True)
    assert str(archive) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2, 10, 4, 5]}, "label 10 of image 3"),
        ({"labels": [0, 1, 2, -1, 4, 5]}, "label -1"),
        ({"labels": [0, 1, 2, 2**70, 4, 5]}, "damaged"),
        ({"labels": [0, 1]}, "6 images but 2 labels"),
        ({"labels": [0, 1, 2, 3, 4, "5"]}, "whole numbers"),
        ({"labels": {}}, "whole numbers"),
        ({"data": np.zeros((6, 3071), np.uint8)}, "shape"),
        ({"data": np.zeros((6, 3072), np.int16)}, "bytes in C order"),
        ({"data": np.asfortranarray(np.ones((6, 3072), np.uint8))}, "C order"),
        ({"data": b"abc"}, "no array"),
        ({"data": np.array([None, {}], dtype=object)}, "array"),
    ],
)
def test_a_batch_with_the_right_md5_and_wrong_content_is_refused(
    small_cifar: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    files = small_cifar | {"data_batch_2": small_batch(6, **changes)}
    make_official(files, monkeypatch)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        prepare(PrepareConfig(kind="cifar10", source=tmp_path, out=tmp_path / "out"), quiet=True)
    assert "data_batch_2" in str(caught.value) and not (tmp_path / "out").exists()


def test_no_cifar_here_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar-10-batches-py .* cifar-10-python\.tar\.gz"):
        prepare(PrepareConfig(kind="cifar10", source=tmp_path, out=tmp_path / "out"), quiet=True)
