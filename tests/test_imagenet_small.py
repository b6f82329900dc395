"""ImageNet32 and ImageNet64: every published layout gives the same bytes, and a wrong one is named."""

import hashlib
import io
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.generate_imagenet import draw_labels, generate, walk_pixels, write_pickle
from fastdrpl.loaders.archives import extract
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources import imagenet_small
from fastdrpl.loaders.sources.imagenet_batches import Place, scan_batch
from fastdrpl.loaders.sources.imagenet_small import class_order, open_imagenet_small

ROOT = Path(__file__).resolve().parent.parent
IMAGES, VAL = 2_030, 70  # batches of 203 images
NAMES = [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 32x32 images in the four layouts that can be downloaded, and 64x64 ones."""
    folder = tmp_path_factory.mktemp("sources")
    made = {
        layout: generate(folder / layout, images=IMAGES, val=VAL, size=32, layout=layout)
        for layout in ("pickle", "npz", "zip", "npz-zip")
    }
    return made | {"64": generate(folder / "64", images=IMAGES, val=VAL, size=64)}


def batch_file(source: Path, name: str) -> Path:
    (path,) = source.rglob(name)
    return path


def load_whole(source: Path, name: str) -> dict[str, Any]:
    """A batch by the standard reader, which ours must agree with; the file was made by this test."""
    content: dict[str, Any] = pickle.loads(batch_file(source, name).read_bytes())
    return content


def load(source: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Planes and labels of a batch."""
    content = load_whole(source, name)
    return content["data"], np.array(content["labels"])


def copy(source: Path, out: Path, change: Callable[[str, dict[str, Any]], None] | None = None) -> Path:
    """All batches of a pickled source in one folder, changed."""
    out.mkdir()
    for name in NAMES:
        path = batch_file(source, name)
        if change is None:
            os.link(path, out / name)
            continue
        content = load_whole(source, name)
        change(name, content)
        (out / name).write_bytes(pickle.dumps(content, protocol=3))
    return out


def prepare_small(source: Path, out: Path, kind: Any = "imagenet32") -> Dataset:
    return prepare(PrepareConfig(kind=kind, source=source, out=out, subset=True), quiet=True)


def read_all(dataset: Dataset, split: str) -> np.ndarray:
    part = dataset.split(split)
    data = np.fromfile(part.path, np.uint8)
    nbytes = part.height * part.width * 3
    return np.stack([data[at : at + nbytes] for at in part.offset]).reshape(-1, part.height, part.width, 3)


# --- the classes -----------------------------------------------------------------------------------------------------


def test_the_class_order_is_that_of_map_clsloc() -> None:
    order = class_order()
    assert len(order) == len(set(order)) == 1000
    known = {0: "n02119789", 521: "n02708093", 737: "n07715103", 740: "n07717410", 660: "n03761084"}
    known |= {411: "n01824575", 999: "n03255030"}
    assert {k: order[k] for k in known} == known
    assert sorted(order)[:2] == ["n01440764", "n01443537"] and sorted(order)[-1] == "n15075141"
    digest = hashlib.sha256("\n".join(order).encode()).hexdigest()
    assert digest == "930a31901625f2149f8bab016254025ad225daf9efafa3f00011daf6f5f919f9"


def test_class_names_of_a_prepared_set_are_the_ids_in_that_order(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    dataset = prepare_small(sources["pickle"], tmp_path / "out")
    assert dataset.class_names == class_order()
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (dataset.flip, dataset.pad, dataset.name) == (True, 4, "imagenet32")
    labels = np.concatenate([load(sources["pickle"], name)[1] for name in NAMES[:-1]])
    assert np.array_equal(dataset.split("train").label, labels - 1)
    assert np.array_equal(dataset.split("test").label, load(sources["pickle"], "val_data")[1] - 1)


@pytest.mark.parametrize("good", [True, False])
def test_a_list_beside_the_data_is_compared(sources: dict[str, Path], tmp_path: Path, good: bool) -> None:
    source = copy(sources["pickle"], tmp_path / "in")
    order = list(class_order() if good else sorted(class_order()))
    (source / "map_clsloc.txt").write_text("".join(f"{name} {k + 1} x\n" for k, name in enumerate(order)))
    if good:
        prepare_small(source, tmp_path / "out")
    else:
        with pytest.raises(DataError, match=r"class 1 is n01440764.*n02119789"):
            prepare_small(source, tmp_path / "out")


# --- the layouts -----------------------------------------------------------------------------------------------------


def write_npz(out: Path, source: Path, write: Callable[..., None]) -> None:
    for name in NAMES:
        data, labels = load(source, name)
        write(out / f"{name}.npz", data=data, labels=labels, mean=np.zeros(3))


def python_2(name: str, data: np.ndarray, labels: np.ndarray) -> bytes:
    """A pickle as Python 2 with numpy 1 writes it."""
    shape = b"".join(b"J" + struct.pack("<i", side) for side in data.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
        + shape
        + b"\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", data.nbytes)
        + data.tobytes()
        + b"tb"
    )
    numbers = b"]q\x01(" + b"".join(b"M" + struct.pack("<H", label) for label in labels) + b"e"
    return b"\x80\x02}q\x00(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def as_array(name: str, content: dict[str, Any]) -> None:
    content["labels"] = np.array(content["labels"], np.int32)


def as_numpy_numbers(name: str, content: dict[str, Any]) -> None:
    content["labels"] = [np.int64(label) for label in content["labels"]]


def pixels_last(name: str, content: dict[str, Any]) -> None:
    content["data"] = content.pop("data")


MAKERS: dict[str, Callable[[dict[str, Path], Path], Path]] = {
    **{layout: (lambda s, _, layout=layout: s[layout]) for layout in ("pickle", "npz", "zip", "npz-zip")},
    "one folder": lambda s, out: copy(s["pickle"], out),
    "labels in an array": lambda s, out: copy(s["pickle"], out, as_array),
    "numbers of numpy": lambda s, out: copy(s["pickle"], out, as_numpy_numbers),
    "pixels last": lambda s, out: copy(s["pickle"], out, pixels_last),
}


def make(maker: str, sources: dict[str, Path], out: Path) -> Path:
    if maker in MAKERS:
        return MAKERS[maker](sources, out)
    out.mkdir()
    if maker == "packed npz":
        write_npz(out, sources["pickle"], np.savez_compressed)
    elif maker == "packed npz in a stored zip":
        write_npz(out, sources["pickle"], np.savez_compressed)
        with zipfile.ZipFile(out / "ImageNet32_npz.zip", "w") as archive:
            for path in sorted(out.glob("*.npz")):
                archive.write(path, path.name)
                path.unlink()
    elif maker == "half unpacked":
        extract(sources["zip"] / "Imagenet32_val.zip", out / "val")
        shutil.copy(sources["zip"] / "Imagenet32_train.zip", out)
    elif maker == "python 2":
        for name in NAMES:
            (out / name).write_bytes(python_2(name, *load(sources["pickle"], name)))
    else:
        protocol = int(maker.removeprefix("protocol "))
        for name in NAMES:
            content = load_whole(sources["pickle"], name)
            (out / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return out


LAYOUTS = [*MAKERS, "packed npz", "packed npz in a stored zip", "half unpacked", "python 2"]
LAYOUTS += [f"protocol {protocol}" for protocol in (2, 4, 5)]


@pytest.fixture(scope="module")
def wanted(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The prepared files; the pixels were compared with an independent reading."""
    out = tmp_path_factory.mktemp("wanted") / "out"
    dataset = prepare_small(sources["pickle"], out)
    planes = np.concatenate([load(sources["pickle"], name)[0] for name in NAMES[:-1]])
    seen = read_all(dataset, "train")
    for y, x, colour in ((0, 0, 0), (0, 1, 1), (31, 31, 2), (7, 20, 0)):
        assert np.array_equal(seen[:, y, x, colour], planes[:, colour * 1024 + y * 32 + x])
    assert np.array_equal(seen, planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    planes = load(sources["pickle"], "val_data")[0]
    assert np.array_equal(read_all(dataset, "test"), planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return {name: (out / name).read_bytes() for name in ("train.beton", "test.beton")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bytes(
    sources: dict[str, Path], wanted: dict[str, bytes], tmp_path: Path, layout: str
) -> None:
    source = make(layout, sources, tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    prepare_small(source, tmp_path / "out")
    for name, data in wanted.items():
        assert (tmp_path / "out" / name).read_bytes() == data
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before  # nothing unpacked there


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_goes_on_from_any_row(sources: dict[str, Path], tmp_path: Path, layout: str) -> None:
    source = make(layout, sources, tmp_path / "in")
    part = open_imagenet_small("imagenet32", source, subset=True).parts["train"]
    whole = np.concatenate([piece.images for piece in part.read(0)])
    assert len(whole) == IMAGES == len(part.labels)
    for start in (1, 202, 203, 204, 1000, IMAGES - 1):
        assert np.array_equal(np.concatenate([piece.images for piece in part.read(start)]), whole[start:])
    assert not list(part.read(IMAGES))


def test_imagenet64(sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PrepareConfig(kind="imagenet64", source=sources["64"], out=tmp_path / "out", subset=True)
    dataset = prepare(config)
    said = capsys.readouterr().out
    assert "Layout: 10 + 1 published batch files, pickled" in said
    assert "A subset: 2,030 training and 70 validation images; the whole set has 1,281,167 and 50,000" in said
    assert (dataset.pad, dataset.split("train").height) == (8, 64)
    planes = load(sources["64"], "val_data")[0]
    assert np.array_equal(read_all(dataset, "test"), planes.reshape(-1, 3, 64, 64).transpose(0, 2, 3, 1))
    prepare(config)
    assert "verified" in capsys.readouterr().out


def test_counts_are_checked(sources: dict[str, Path], tmp_path: Path) -> None:
    whole = open_imagenet_small("imagenet32", sources["npz"], subset=False, rows=(IMAGES, VAL))
    assert not any("subset" in note for note in whole.notes) and not whole.may_lack_classes
    with pytest.raises(DataError, match=r"2,030 training and 70 validation(.|\n)*--subset"):
        prepare(PrepareConfig(kind="imagenet32", source=sources["npz"], out=tmp_path / "out"), quiet=True)
    with pytest.raises(DataError, match="the whole set has 2,029") as caught:
        open_imagenet_small("imagenet32", sources["npz"], subset=True, rows=(IMAGES - 1, VAL))
    assert "--subset" not in str(caught.value)
    with pytest.raises(UserError, match="subset is for kind"):
        prepare(PrepareConfig(kind="digits", out=tmp_path / "out", subset=True), quiet=True)


def test_a_part_may_lack_batches_and_classes(sources: dict[str, Path], tmp_path: Path) -> None:
    source = copy(sources["pickle"], tmp_path / "in")
    for name in NAMES[1:-1]:
        (source / name).unlink()
    dataset = prepare_small(source, tmp_path / "out")
    assert len(dataset.split("train")) == 203 and len(dataset.class_names) == 1000
    assert len(np.unique(dataset.split("train").label)) < 1000


# --- wrong input -----------------------------------------------------------------------------------------------------


def set_labels(number: int, value: int) -> Callable[[str, dict[str, Any]], None]:
    def change(name: str, content: dict[str, Any]) -> None:
        if name == "train_data_batch_3":
            content["labels"][number] = value

    return change


def count_from_0(name: str, content: dict[str, Any]) -> None:
    content["labels"] = [label - 1 for label in content["labels"]]


def replace_in_3(**changes: Any) -> Callable[[str, dict[str, Any]], None]:
    def change(name: str, content: dict[str, Any]) -> None:
        if name == "train_data_batch_3":
            content.update({key: make(content) for key, make in changes.items()})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_labels(5, 0), "label 0 of image 5"),
        (set_labels(5, 1001), "label 1001 of image 5"),
        (set_labels(5, 2**70), "larger"),
        (set_labels(5, "7"), "whole numbers"),  # type: ignore[arg-type]
        (set_labels(5, True), "whole numbers"),
        (count_from_0, "count from 0"),
        (replace_in_3(labels=lambda c: c["labels"][:-1]), "203 images but 202 labels"),
        (replace_in_3(labels=lambda c: {}), "whole numbers"),
        (replace_in_3(labels=lambda c: np.zeros((203, 1), np.int64)), "one row"),
        (replace_in_3(labels=lambda c: np.zeros(203)), "f8"),
        (replace_in_3(data=lambda c: c["data"].astype(np.int16)), "C order"),
        (replace_in_3(data=lambda c: np.asfortranarray(c["data"])), "C order"),
        (replace_in_3(data=lambda c: c["data"].reshape(-1, 3, 32, 32)), "shape"),
        (replace_in_3(data=lambda c: c["data"].tobytes()), "no array"),
        (replace_in_3(data=lambda c: c["data"][:0], labels=lambda c: []), "without pixels"),
        (replace_in_3(data=lambda c: np.array([None], object)), "without bytes"),
        (replace_in_3(data=lambda c: np.zeros((203, 12), np.uint8)), "several image sizes.*12 bytes"),
    ],
)
def test_a_wrong_batch_is_named(
    sources: dict[str, Path], tmp_path: Path, change: Callable[[str, dict[str, Any]], None], message: str
) -> None:
    source = copy(sources["pickle"], tmp_path / "in", change)
    with pytest.raises(UserError, match=message) as caught:
        prepare_small(source, tmp_path / "out")
    assert "train_data_batch_" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.ones(3, np.int64)}, r"no data\.npy"),
        ({"data": np.ones((3, 3072), np.uint8)}, r"no labels\.npy"),
        ({"data": np.ones((3, 3072), np.uint16), "labels": np.ones(3, int)}, "<u2"),
        ({"data": np.ones((3072, 3), np.uint8).T, "labels": np.ones(3, int)}, "C order"),
        ({"data": np.ones((3, 3072), np.uint8), "labels": np.ones(3)}, "<f8"),
        ({"data": np.ones((3, 3072), np.uint8), "labels": np.array([1, None, 2])}, r"\|O"),
        ({"data": np.ones((3, 3072), np.uint8), "labels": np.ones((3, 1), int)}, r"shape \(3, 1\)"),
        ({"data": np.ones((3, 3072), np.uint8), "labels": np.ones(4, int)}, "3 images but 4"),
        ({"data": np.ones((3, 3072), np.uint8), "labels": np.zeros(3, int)}, "label 0 of image 0"),
    ],
)
def test_a_wrong_npz_is_named(
    sources: dict[str, Path], tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "train_data_batch_1.npz", **arrays)  # type: ignore[arg-type]
    shutil.copy(batch_file(sources["npz"], "val_data.npz"), tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        prepare_small(tmp_path, tmp_path / "out")
    assert "train_data_batch_1.npz" in str(caught.value)


@pytest.mark.parametrize("layout", ["pickle", "npz", "zip"])
@pytest.mark.parametrize("name", ["train_data_batch_7", "val_data"])
def test_one_batch_copied_over_another_is_refused(
    sources: dict[str, Path], tmp_path: Path, layout: str, name: str
) -> None:
    if layout == "zip":
        for part in ("train", "val"):
            extract(sources["zip"] / f"Imagenet32_{part}.zip", tmp_path / part)
        files = {path.name: path.read_bytes() for path in tmp_path.rglob("*_data*")}
        source = tmp_path / "in"
        source.mkdir()
        with zipfile.ZipFile(source / "imagenet32.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file, data in (files | {name: files["train_data_batch_2"]}).items():
                archive.writestr(file, data)
    else:
        end = ".npz" if layout == "npz" else ""
        source = shutil.copytree(sources[layout], tmp_path / "in")
        shutil.copy(batch_file(source, "train_data_batch_2" + end), batch_file(source, name + end))
    with pytest.raises(DataError, match=f"train_data_batch_2 and {name} hold the same images") as caught:
        prepare_small(source, tmp_path / "out")
    assert "copy of the other" in str(caught.value) and not (tmp_path / "out").exists()


def test_wrong_layouts_are_user_errors(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="imagenet64") as caught:
        prepare_small(sources["64"], tmp_path / "out")
    assert "64x64, wanted 32x32" in str(caught.value)
    with pytest.raises(UserError, match="imagenet32"):
        prepare_small(sources["npz-zip"], tmp_path / "out", "imagenet64")

    both = copy(sources["pickle"], tmp_path / "both")
    os.link(batch_file(sources["npz"], "val_data.npz"), both / "val_data.npz")
    with pytest.raises(UserError, match="both published layouts"):
        prepare_small(both, tmp_path / "out")

    sizes = copy(sources["pickle"], tmp_path / "sizes")
    (sizes / "val_data").unlink()
    os.link(batch_file(sources["64"], "val_data"), sizes / "val_data")
    with pytest.raises(UserError, match=r"several image sizes: 32x32.*64x64"):
        prepare_small(sizes, tmp_path / "out")
    (sizes / "more").mkdir()
    os.link(batch_file(sources["pickle"], "val_data"), sizes / "more" / "val_data")
    with pytest.raises(UserError, match="val_data is here twice"):
        prepare_small(sizes, tmp_path / "out")

    lacking = copy(sources["pickle"], tmp_path / "lacking")
    (lacking / "train_data_batch_7").unlink()
    with pytest.raises(UserError, match="missing: train_data_batch_7"):
        prepare(PrepareConfig(kind="imagenet32", source=lacking, out=tmp_path / "out"), quiet=True)
    (lacking / "val_data").unlink()
    with pytest.raises(UserError, match="missing: train_data_batch_7, val_data"):
        prepare_small(lacking, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no train_data_batch_1"):
        prepare_small(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="no folder"):
        prepare_small(sources["zip"] / "Imagenet32_val.zip", tmp_path / "out")


class Touch:
    """Creates a file when a careless reader loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_hostile_batch_is_never_run(sources: dict[str, Path], tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    source = copy(sources["pickle"], tmp_path / "in")
    data, labels = load(source, "train_data_batch_3")
    for content in (
        Touch(marker),
        {"data": data, "labels": labels.tolist(), "mean": Touch(marker)},
        {"data": data, "labels": [Touch(marker)] * 203},
    ):
        (source / "train_data_batch_3").unlink()
        (source / "train_data_batch_3").write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(DataError, match=r"mkdir(.|\n)*train_data_batch_3"):
            prepare_small(source, tmp_path / "out")
        assert not marker.exists()
    np.savez(tmp_path / "val_data.npz", data=np.array([Touch(marker)]), labels=np.ones(1, int))
    with pytest.raises(DataError, match=r"val_data\.npz"):
        scan(tmp_path / "val_data.npz")
    assert not marker.exists()


def scan(path: Path) -> int:
    """Scan and read one file; returns the bytes of its pixels."""
    batch = scan_batch(Place(path, size=path.stat().st_size), npz=path.suffix == ".npz")
    return sum(piece.nbytes for piece in batch.read(0))


class Files(dict[str, bytes]):
    """Contents of files by name; short when a failed test shows it."""

    def __repr__(self) -> str:
        return f"Files({list(self)})"


@pytest.fixture(scope="module")
def single(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small batch in every way of storing it."""
    data, labels = (array[:3] for array in load(sources["pickle"], "val_data"))
    stored = Files({"python 2": python_2("", data, labels)})
    for protocol in (2, 3, 4, 5):
        content = {"data": data, "labels": labels.tolist(), "mean": np.zeros(3072)}
        stored[f"protocol {protocol}"] = pickle.dumps(content, protocol=protocol)
    for name, write in (("stored.npz", np.savez), ("packed.npz", np.savez_compressed)):
        file = io.BytesIO()
        write(file, data=data, labels=labels)
        stored[name] = file.getvalue()
    return stored


def test_every_cut_is_found(single: dict[str, bytes], tmp_path: Path) -> None:
    for name, whole in single.items():
        path = tmp_path / f"cut{Path(name).suffix}"
        path.write_bytes(whole)
        assert scan(path) == 3 * 3072
        for stop in {len(whole) * part // 60 for part in range(60)} | {len(whole) - 1}:
            path.write_bytes(whole[:stop])
            with pytest.raises(DataError, match="cut"):
                scan(path)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["python 2", *(f"protocol {p}" for p in (2, 3, 4, 5)), "stored.npz", "packed.npz"]),
    data=st.data(),
)
def test_mangled_batches_are_refused_or_whole(
    single: dict[str, bytes], tmp_path: Path, name: str, data: Any
) -> None:
    broken = bytearray(single[name])
    for _ in range(data.draw(st.integers(1, 3))):
        # mostly where the structure is, not in the pixels
        near = st.one_of(st.integers(0, 400), st.integers(len(broken) - 700, len(broken) - 1))
        broken[data.draw(near)] = data.draw(st.integers(0, 255))
    path = tmp_path / f"mangled{Path(name).suffix}"
    path.write_bytes(broken)
    try:
        nbytes = scan(path)
    except DataError as error:
        assert "mangled" in str(error)
        return
    assert nbytes % 3 == 0 and nbytes <= 2 * len(broken)


def test_an_npz_that_points_before_its_begin_is_damaged(single: dict[str, bytes], tmp_path: Path) -> None:
    data = bytearray(single["stored.npz"])
    struct.pack_into("<I", data, data.rindex(b"PK\5\6") + 16, len(data))  # where its directory is
    (tmp_path / "moved.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"damaged(.|\n)*moved\.npz"):
        scan(tmp_path / "moved.npz")


def test_a_changed_byte_of_an_npz_is_found_when_it_is_read(single: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("stored.npz", "packed.npz"):
        data = bytearray(single[name])
        data[2000] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=r"check sum|damaged"):
            scan(tmp_path / name)


def test_a_zip_bomb_or_a_link_as_batch_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(sources["zip"] / "Imagenet32_train.zip", tmp_path)
    with zipfile.ZipFile(tmp_path / "Imagenet32_val.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../val_data", b"x")
    with pytest.raises(DataError, match=r"leads out(.|\n)*Imagenet32_val\.zip, member '\.\./val_data'"):
        prepare_small(tmp_path, tmp_path / "out")
    (tmp_path / "Imagenet32_val.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(DataError, match=r"Imagenet32_val\.zip"):
        prepare_small(tmp_path, tmp_path / "out")


# --- size, changes and kills -----------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write_pickle(source / "train_data_batch_1", draw_labels(0, 20_000, 0), 64, 0)
    shutil.copy(batch_file(sources["64"], "val_data"), source)
    assert (source / "train_data_batch_1").stat().st_size > 240_000_000
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from fastdrpl.loaders.prepare import PrepareConfig, prepare\n"
        f"source, out = Path({str(source)!r}), Path({str(tmp_path / 'out')!r})\n"
        "prepare(PrepareConfig(kind='imagenet64', source=source, out=out, subset=True), quiet=True)\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "print([name for name in ('torch', 'numba', 'PIL') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, loaded = done.stdout.splitlines()
    assert int(peak) < 120_000  # KiB: half of the file
    assert loaded == "[]"
    shutil.rmtree(tmp_path / "out")
    source.joinpath("train_data_batch_1").unlink()


@pytest.mark.parametrize("what", ["label", "pixel", "name"])
def test_a_changed_source_is_noticed(sources: dict[str, Path], tmp_path: Path, what: str) -> None:
    source = copy(sources["pickle"], tmp_path / "in")
    prepare_small(source, tmp_path / "out")
    prepare_small(source, tmp_path / "out")

    def change(name: str, content: dict[str, Any]) -> None:
        if name == "train_data_batch_3" and what == "label":
            content["labels"][7] = content["labels"][7] % 1000 + 1
        if name == "train_data_batch_3" and what == "pixel":
            content["data"][-1, -1] ^= 1

    changed = copy(sources["pickle"], tmp_path / "changed", change)
    if what == "name":
        (changed / "train_data_batch_3").rename(changed / "third")
        (changed / "train_data_batch_4").rename(changed / "train_data_batch_3")
        (changed / "third").rename(changed / "train_data_batch_4")
    with pytest.raises(UserError, match="files differ"):
        prepare_small(changed, tmp_path / "out")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from fastdrpl.loaders import prepare
prepare.SECONDS_BETWEEN_ENTRIES = 0.0
prepare.prepare(prepare.PrepareConfig(kind="imagenet64", source=Path({source!r}), out=Path({out!r}), subset=True))
"""


@pytest.mark.parametrize("layout", ["pickle", "npz-zip"])
def test_killed_in_the_middle_and_resumed_ends_in_the_same_bytes(tmp_path: Path, layout: Any) -> None:
    images = 6_000 if layout == "pickle" else 2_500
    source = generate(tmp_path / "in", images=images, val=200, size=64, layout=layout)
    prepare_small(source, tmp_path / "whole", "imagenet64")
    out, journal = tmp_path / "out", tmp_path / ".out.preparing" / "journal"
    script = KILLED.format(root=str(ROOT), source=str(source), out=str(out))
    command = [sys.executable, "-c", script]
    kills, done_rows = 0, []
    for entries in (2, 4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if journal.exists() and journal.read_bytes().count(b"\n") >= entries:
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.0005)
            process.wait()
            kills += process.returncode == -signal.SIGKILL
        done_rows.append(journal.read_bytes())
    assert kills == 2 and not out.exists() and b'"finished"' not in done_rows[0]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Continuing an unfinished prepare" in done.stdout
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not journal.parent.exists()


# --- photos ----------------------------------------------------------------------------------------------------------

WNIDS = ("n02119789", "n01440764", "n15075141")  # classes 0, 391 and 850


def make_photos(folder: Path, wnids: tuple[str, ...] = WNIDS) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for wnid in wnids:
            (folder / split / wnid).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (96, 128, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / wnid / f"{wnid}_{number}.png")
    return folder


def test_photos_are_shrunk_with_the_box_filter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_photos(tmp_path / "in")
    config = PrepareConfig(kind="imagenet32", source=source, out=tmp_path / "out", subset=True, workers=1)
    dataset = prepare(config)
    said = capsys.readouterr().out
    assert "box filter" in said and "may differ" in said and "A subset: 12 training and 6 validation" in said
    assert dataset.class_names == class_order() and (dataset.pad, dataset.flip) == (4, True)
    assert dataset.source.labels_checked
    wanted = [class_order().index(wnid) for wnid in WNIDS]
    assert sorted(np.unique(dataset.split("train").label)) == sorted(wanted)
    ids, pixels = dataset.ids("train"), read_all(dataset, "train")
    assert ids is not None
    for row, path in enumerate(ids):
        assert class_order()[dataset.split("train").label[row]] == Path(path).parent.name
        with Image.open(source / path) as image:
            photo = np.asarray(image).astype(np.float64)
        mean = photo.reshape(32, 3, 32, 4, 3).mean(axis=(1, 3))  # 96 x 128 to 32 x 32: boxes of 3 x 4
        assert np.abs(pixels[row] - mean).max() <= 1


def test_all_classes_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_photos(tmp_path / "in")
    with pytest.raises(UserError, match=r"997 of the 1000 classes(.|\n)*--subset"):
        open_imagenet_small("imagenet32", source, subset=False)
    monkeypatch.setattr(imagenet_small, "class_order", lambda: WNIDS)
    whole = open_imagenet_small("imagenet64", source, subset=False, rows=(12, 6), workers=1)
    assert whole.class_names == WNIDS and (whole.height, whole.pad) == (64, 8)
    with pytest.raises(DataError, match="12 training and 6 validation images; the whole set has 13"):
        open_imagenet_small("imagenet64", source, subset=False, rows=(13, 6))
    (source / "train_data_batch_1").touch()
    with pytest.raises(UserError, match="both photos"):
        open_imagenet_small("imagenet64", source, subset=False, rows=(12, 6))


def test_photos_of_other_classes_and_without_validation_are_refused(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", (*WNIDS, "n99999999"))
    with pytest.raises(UserError, match="n99999999"):
        open_imagenet_small("imagenet32", source, subset=True)
    shutil.rmtree(source / "train" / "n99999999")
    shutil.rmtree(source / "val")
    with pytest.raises(UserError, match="no validation"):
        open_imagenet_small("imagenet32", source, subset=True)


def test_the_test_folder_never_stands_for_the_validation_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_photos(tmp_path / "in")
    shutil.copytree(source / "val" / WNIDS[0], source / "test" / WNIDS[0])
    config = PrepareConfig(kind="imagenet32", source=source, out=tmp_path / "out", subset=True, workers=1)
    ids = prepare(config).ids("test")
    assert ids is not None and len(ids) == 6 and all(name.startswith("val/") for name in ids)
    assert "`test`" not in capsys.readouterr().out
    shutil.rmtree(source / "val")
    with pytest.raises(UserError, match=r"no validation images(.|\n)*add val/"):
        open_imagenet_small("imagenet32", source, subset=True)


@pytest.mark.parametrize("place", ["train_data_batch_1", "batches/val_data", "a/b/train_data_batch_2.npz"])
@pytest.mark.parametrize("above", ["", "ILSVRC/Data/CLS-LOC"])
def test_batch_files_anywhere_beside_photos_are_noticed(tmp_path: Path, place: str, above: str) -> None:
    make_photos(tmp_path / "in" / above)
    (tmp_path / "in" / above / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "in" / above / place).touch()
    with pytest.raises(UserError, match="both photos and a batch file") as caught:
        open_imagenet_small("imagenet32", tmp_path / "in", subset=True)
    assert place in str(caught.value)


@pytest.mark.parametrize("above", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"])
def test_photos_are_found_where_the_official_archive_has_them(tmp_path: Path, above: str) -> None:
    make_photos(tmp_path / "in" / above)
    (tmp_path / "in" / above / "test").mkdir()
    (tmp_path / "in" / above / "test" / "ILSVRC2012_test_00000001.JPEG").touch()
    found = open_imagenet_small("imagenet32", tmp_path / "in", subset=True, workers=1)
    given = open_imagenet_small("imagenet32", tmp_path / "in" / above, subset=True, workers=1)
    assert found.fingerprint == given.fingerprint and len(found.parts["test"].labels) == 6
    make_photos(tmp_path / "in")
    with pytest.raises(UserError, match="two places"):
        open_imagenet_small("imagenet32", tmp_path / "in", subset=True)


def test_validation_images_in_one_folder_say_how_to_sort_them(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in")
    lines, numbers = ["ImageId,PredictionString"], {}
    for path in sorted((source / "val").rglob("*.png")):
        name = f"ILSVRC2012_val_{len(lines):08}"
        numbers[name] = path.parent.name
        lines.insert(1, f"{name},{path.parent.name} 85 1 499 272 {path.parent.name} 1 2 3 4")
        with Image.open(path) as image:
            image.save(source / "val" / f"{name}.JPEG")
    for wnid in WNIDS:
        shutil.rmtree(source / "val" / wnid)
    with pytest.raises(UserError, match="6 validation images lie in no class folder") as caught:
        open_imagenet_small("imagenet32", source, subset=True)
    said = str(caught.value)
    assert (
        "val/<WordNet id>/" in said and "LOC_val_solution.csv" in said and "ILSVRC2012_val_00000001" in said
    )
    (source / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    command = said[said.index("tail ") :]
    subprocess.run(["bash", "-c", command], cwd=source, check=True)  # what it says to do does it
    opened = open_imagenet_small("imagenet32", source, subset=True, workers=1)
    test = opened.parts["test"]
    assert test.ids is not None and len(test.ids) == 6
    for name, label in zip(test.ids, test.labels.tolist(), strict=True):
        assert numbers[Path(name).stem] == opened.class_names[label]


# --- the generator ---------------------------------------------------------------------------------------------------


def test_generated_images_look_like_photos_and_differ() -> None:
    pixels = np.concatenate([piece.copy() for piece in walk_pixels(1200, 32, 1)])
    assert len(np.unique(pixels, axis=0)) == 1200
    images = pixels.reshape(-1, 3, 32, 32).astype(np.float64)
    beside = np.mean([np.corrcoef(i[:, :, 1:].ravel(), i[:, :, :-1].ravel())[0, 1] for i in images[:200]])
    assert beside > 0.8 and images.std() > 30
    packed = len(zipfile.zlib.compress(pixels.tobytes(), 6)) / pixels.nbytes  # type: ignore[attr-defined]
    assert 0.6 < packed <= 1.0
