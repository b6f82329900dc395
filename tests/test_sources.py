"""What users download: read right, or refused with a reason; nothing in it is ever run."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdrpl.loaders.dataset import Split, open_dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.pickles import PickledArray, read_plain
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.printable import printable, storable
from fastdrpl.loaders.sources import cifar
from fastdrpl.loaders.sources.digits import enlarge
from fastdrpl.loaders.sources.folder import list_images, open_folder
from fastdrpl.loaders.sources.pictures import Span, Target, Unreadable, read_picture
from fastdrpl.loaders.sources.stratify import choose_test_rows


def read_image(split: Split, row: int) -> np.ndarray:
    nbytes = split.height * split.width * 3
    data = np.fromfile(split.path, np.uint8, nbytes, offset=int(split.offset[row]))
    return data.reshape(split.height, split.width, 3)


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


def small_batch(rows: int = 6, **changes: Any) -> bytes:
    random = np.random.default_rng(rows)
    content = {
        b"data": random.integers(0, 256, (rows, 3072), dtype=np.uint8),
        b"labels": [row % 10 for row in range(rows)],
    }
    return pickle.dumps(content | {key.encode(): value for key, value in changes.items()}, protocol=3)


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


# --- pickles -------------------------------------------------------------------------------------------------------


class Gadget:
    """Asks the reader to call something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def gadgets(marker: Path) -> list[bytes]:
    """Pickles that touch `marker` when a careless reader loads them."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    calls = [
        Gadget(os.system, touch),
        Gadget(os.popen, touch),
        Gadget(eval, code),
        Gadget(exec, code),
        Gadget(open, str(marker), "w"),
        Gadget(__import__, "antigravity"),
        Gadget(os.open, str(marker), os.O_CREAT | os.O_WRONLY),
        Gadget(Path.touch, marker),
        Gadget(np.ndarray, (3,)),
        Gadget(np.save, str(marker), 1),
        Gadget(getattr, "os", "system"),
    ]
    files = [
        pickle.dumps(what, protocol=p)
        for call in calls
        for p in (0, 2, 4)
        for what in (call, {b"data": [call]})
    ]
    text = str(marker).encode()
    by_hand = [
        b"cos\nsystem\n(S'touch " + text + b"'\ntR.",
        b"(S'touch " + text + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch " + text + b"'\no.",
        b'cbuiltins\nexec\n(S"' + code.encode() + b'"\ntR.',
        b"cnumpy\nndarray.__new__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'x'\ntR.",
        b"cnumpy\nload\n(S'" + text + b"'\nI00\nI01\ntR.",
        b"P1\n.",  # a persistent object
        b"\x82\x01.",  # an object of the extension registry
        b"cnumpy\nndarray\n}S'a'\nI1\nsb.",  # new attributes for a class
    ]
    return files + by_hand


def test_hostile_pickles_are_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    files = gadgets(marker)
    assert len(files) >= 30
    for data in files:
        with pytest.raises(DataError):
            read_plain(io.BytesIO(data), where="x")
        assert not marker.exists()
    pickle.Unpickler(io.BytesIO(files[0])).load()  # the files do what they claim
    assert marker.exists()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mangled_pickles_are_refused_or_plain(data: Any) -> None:
    broken = bytearray(small_batch(2))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(broken) - 1)))
        broken[at] = data.draw(st.integers(0, 255))
    try:
        content = read_plain(io.BytesIO(bytes(broken)), where="x")
    except DataError:
        return
    containers = (dict, list, tuple, set, frozenset, bytes, bytearray, str)
    inert = (type,)  # the reader's own classes, not called
    assert isinstance(content, (*containers, int, float, type(None), PickledArray, *inert))


def test_plain_content_is_read() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = {"a": [1, (2, "x")], b"b": array, "c": None}
    seen = read_plain(io.BytesIO(pickle.dumps(content, protocol=4)), where="x")
    assert np.array_equal(seen.pop(b"b").unpack(), array)
    assert seen == {"a": [1, (2, "x")], "c": None}


# --- digits and division -------------------------------------------------------------------------------------------


def test_enlarge_equals_pillow() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.float64)
    for small, large in zip(grey, enlarge(grey), strict=True):
        wanted = Image.fromarray(small.astype(np.float32), "F").resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(large - np.asarray(wanted)).max() <= 0.5 + 1e-3


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**64 - 1),
)
def test_test_rows_are_of_every_class_in_proportion(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(1).shuffle(labels)
    rows = choose_test_rows(labels, fraction, seed)
    assert np.array_equal(rows, np.unique(rows))
    chosen = np.bincount(labels[rows], minlength=len(counts))
    for n, k in zip(counts, chosen, strict=True):
        assert k < n and (abs(k - fraction * n) <= 0.5 + 1e-9 or k == n - 1)
    assert np.array_equal(rows, choose_test_rows(labels, fraction, seed))


# --- folders -------------------------------------------------------------------------------------------------------

RED = (200, 30, 40)


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def make_bad_tree(root: Path) -> tuple[dict[str, str], int]:
    """A folder with every kind of file; returns {bad file: part of its reason} and how many files are ignored."""
    for label in ("ant", "bee"):
        for number in range(3):
            save(root / label / f"{number}.jpg", Image.new("RGB", (50, 40), RED))
    ant, bee = root / "ant", root / "bee"
    save(ant / "grey.png", Image.new("L", (30, 30), 99))
    save(ant / "cmyk.jpg", Image.new("CMYK", (30, 30), (0, 255, 255, 0)))
    save(ant / "palette.gif", Image.new("P", (30, 30), 3))
    save(ant / "deep.png", Image.fromarray(np.full((30, 30), 51400, np.uint16)))
    save(ant / "wrong_extension.jpg", Image.new("RGB", (30, 30), RED), format="PNG")
    save(ant / "deeper" / "UPPER.JPG", Image.new("RGB", (30, 30), RED))
    frames = [Image.new("RGB", (30, 30), colour) for colour in (RED, (0, 0, 0))]
    save(bee / "animated.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    Path(os.fsdecode(os.fsencode(bee) + b"/caf\xe9 \n.png")).write_bytes((ant / "grey.png").read_bytes())
    sound = (ant / "0.jpg").read_bytes()
    (bee / "empty.jpg").touch()
    (bee / "cut.jpg").write_bytes(sound[: len(sound) // 2])
    (bee / "cut.png").write_bytes((ant / "grey.png").read_bytes()[:60])
    (bee / "text.png").write_text("not an image")
    Image.new("F", (5, 5)).save(bee / "float.tiff")
    (bee / "broken_link.png").symlink_to("nowhere.png")
    (bee / "loop.png").symlink_to("loop.png")
    os.mkfifo(bee / "pipe.png")
    (bee / "above").symlink_to(root, target_is_directory=True)
    (bee / "self").symlink_to("self")
    for name in ("Thumbs.db", "notes.txt", ".hidden.jpg"):
        (ant / name).write_bytes(sound)
    bad = {
        "bee/broken_link.png": "broken link",
        "bee/cut.jpg": "truncated",
        "bee/cut.png": "",
        "bee/empty.jpg": "empty",
        "bee/float.tiff": "mode F",
        "bee/loop.png": "damaged",
        "bee/pipe.png": "not a regular file",
        "bee/text.png": "not an image",
    }
    return bad, 3


def test_every_kind_of_bad_image_is_converted_or_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, ignored = make_bad_tree(tmp_path / "photos")
    (tmp_path / "photos" / "bee" / "above").unlink()
    config = PrepareConfig(kind="folder", source=tmp_path / "photos", out=tmp_path / "out", size=24)
    dataset = prepare(config)
    split, ids = dataset.split("train"), dataset.ids("train")
    assert ids is not None and len(ids) == len(split) == 6 + 8 + len(bad)  # valid + quarantined = found
    seen = {ids[row] for row in np.flatnonzero(~split.valid)}
    assert seen == set(bad)
    lines = (tmp_path / "out" / "quarantine.csv").read_text().splitlines()[1:]
    assert len(lines) == len(bad)
    for line in lines:
        row, name, where, reason = line.split(",", 3)
        assert (ids[int(row)], where) == (name, "train") and bad[name] in reason
        assert not read_image(split, int(row)).any()
    said = capsys.readouterr().out
    assert f"{ignored} other files were ignored: 1 .txt, 1 hidden, 1 of the system" in said
    assert "links that lead nowhere: bee/self\n" in said
    assert f"{len(bad)} of them quarantined" in said and "ant, bee" in said
    assert [name for name in ids if "caf" in name] == ["bee/caf\\xe9 \n.png"]
    for name, colour in (
        ("ant/0.jpg", RED),
        ("ant/grey.png", (99, 99, 99)),
        ("ant/cmyk.jpg", (255, 0, 0)),
        ("ant/deep.png", (200, 200, 200)),
        ("ant/wrong_extension.jpg", RED),
        ("ant/deeper/UPPER.JPG", RED),
        ("bee/animated.webp", RED),
    ):
        image = read_image(split, ids.index(name)).astype(int)
        assert np.abs(image - np.array(colour)).max() <= 6, name


def test_links_to_folders_above_end(tmp_path: Path) -> None:
    make_bad_tree(tmp_path / "photos")
    found = list_images(str(tmp_path / "photos" / "bee"))
    assert len(found.paths) == len(set(found.paths)) > 0
    assert found.ignored >= 1


def test_exif_rotation_is_applied_and_broken_exif_is_not_fatal(tmp_path: Path) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20] = 255  # white above
    for orientation, turned in (
        (3, np.rot90(upright, 2)),
        (6, np.rot90(upright, 1)),
        (8, np.rot90(upright, 3)),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(tmp_path / "turned.jpg", Image.fromarray(np.ascontiguousarray(turned)), exif=exif, quality=100)
        seen = read_picture(str(tmp_path / "turned.jpg"), 32).astype(int)
        assert seen[:14].min() > 240 and seen[18:].max() < 15, orientation
    save(tmp_path / "broken.jpg", Image.fromarray(upright), exif=b"Exif\0\0nonsense", quality=100)
    assert read_picture(str(tmp_path / "broken.jpg"), 32)[:14].min() > 240


def test_an_image_in_memory_or_inside_a_file_is_the_same_image(tmp_path: Path) -> None:
    save(
        tmp_path / "a.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    )
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "many").write_bytes(b"before" + data + b"after")
    wanted = read_picture(str(tmp_path / "a.png"), 16)
    assert np.array_equal(read_picture(data, 16), wanted)
    assert np.array_equal(read_picture(Span(str(tmp_path / "many"), 6, len(data)), 16), wanted)
    for place, reason in (
        (b"", "empty file"),
        (data[:50], "truncated|damaged"),
        (Span(str(tmp_path / "many"), 6, 1 << 40), "truncated"),
        (Span(str(tmp_path / "many"), 6, 0), "empty file"),
        (Span(str(tmp_path / "gone"), 6, 9), "no such file"),
        (bytes(300 << 20), "more than 256 MB"),
        (str(tmp_path), "not a regular file"),
    ):
        with pytest.raises(Unreadable, match=reason):
            read_picture(place, 16)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", Image.new("RGBA", (20, 20), (255, 0, 0, 0)))
    assert read_picture(str(tmp_path / "a.png"), 8).min() == 255


def test_reduction_is_antialiased_and_keeps_the_mean(tmp_path: Path) -> None:
    board = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    for name in ("board.png", "board.jpg"):
        save(tmp_path / name, Image.fromarray(board))
        seen = read_picture(str(tmp_path / name), 64).astype(float)
        assert abs(seen.mean() - 127.5) < 2 and seen.std() < 12, name


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_mangled_images_are_read_or_quarantined(tmp_path: Path, data: Any, kind: str) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 13, 3), dtype=np.uint8)).save(out, kind)
    broken = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, min(len(broken) - 1, 300)))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.img"
    path.write_bytes(bytes(broken[: data.draw(st.integers(1, len(broken)))]))
    try:
        image = read_picture(str(path), 16)
    except Unreadable as error:
        assert str(error)
        return
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8


def make_tree(root: Path, *folders: str, count: int = 3) -> Path:
    for folder in folders:
        for number in range(count):
            save(root / folder / f"{number}.png", Image.new("RGB", (8, 8), (number, 0, 0)))
    return root


FILES: dict[str, bytes | None] = {}  # what may lie in a class folder: content, or None for a broken link


def fill_files() -> None:
    for kind in ("PNG", "JPEG", "GIF"):
        out = io.BytesIO()
        Image.new("RGB", (9, 7), RED).save(out, kind)
        FILES[kind] = out.getvalue()
    FILES.update(cut=FILES["JPEG"][:200], empty=b"", text=b"text", link=None)  # type: ignore[index]


fill_files()


@settings(max_examples=60, deadline=None)
@given(
    tree=st.dictionaries(
        st.sampled_from(["a", "b", "c d", "\udce9", "e/f", ".g", 'h,"i']),
        st.lists(
            st.tuples(st.sampled_from(sorted(FILES)), st.sampled_from([".png", ".JPG", ".txt", ""])),
            max_size=4,
        ),
        max_size=5,
    ),
    fraction=st.sampled_from([0.0, 0.3]),
    store=st.sampled_from(["raw", "jpeg"]),
    repaired=st.booleans(),
)
def test_any_tree_adds_up_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    tree: dict[str, list[tuple[str, str]]],
    fraction: float,
    store: Any,
    repaired: bool,
) -> None:
    if repaired:  # every class has sound images: such a tree must be taken
        sound = [("PNG", ".png")] * 3
        tree = {folder: files + sound for folder, files in (tree | {"x": [], "y": []}).items()}
    root = tmp_path_factory.mktemp("tree")
    images = 0
    (root / "s").mkdir()
    for folder, files in tree.items():
        here = root / "s" / folder
        here.mkdir(parents=True, exist_ok=True)
        for number, (what, extension) in enumerate(files):
            content, path = FILES[what], here / f"{number}{extension}"
            path.symlink_to("nowhere") if content is None else path.write_bytes(content)
            images += extension in (".png", ".JPG") and folder != ".g"
    config = PrepareConfig(
        kind="folder", source=root / "s", out=root / "o", size=8, test_fraction=fraction, store=store
    )
    try:
        dataset = prepare(config, quiet=True)
    except UserError as error:
        assert error.exit_code in (2, 3) and not (root / "o").exists() and not repaired
        return
    rows = sum(len(split) for split in dataset.splits.values())
    bad = len((root / "o" / "quarantine.csv").read_text().splitlines()) - 1
    valid = sum(int(split.valid.sum()) for split in dataset.splits.values())
    assert rows == images == valid + bad
    for folder, files in tree.items():
        for number, (what, extension) in enumerate(files):
            for name in dataset.splits:
                ids = dataset.ids(name) or ()
                wanted = os.fsencode(f"{folder}/{number}{extension}").decode("utf-8", "backslashreplace")
                if wanted in ids:
                    assert dataset.split(name).valid[ids.index(wanted)] == (what in ("PNG", "JPEG", "GIF"))


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
