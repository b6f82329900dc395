"""Batch files of ImageNet32 and 64 that are wrong, damaged or hostile."""

import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagenet_small_cases import batch_file, copy, generate_sources, load, prepare_small, python_2

from fastdrpl.loaders.archives import extract
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources.imagenet_batches import Place, scan_batch


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return generate_sources(tmp_path_factory)


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
