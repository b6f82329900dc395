"""Small ImageNet32 and 64 as the official batch files, and how they are changed and prepared."""

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

from bench.generate_imagenet import generate
from fastdrpl.loaders.archives import extract
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare

IMAGES, VAL = 2_030, 70  # batches of 203 images
NAMES = [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]


def generate_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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


def make_wanted(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
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
