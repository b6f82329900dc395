"""ImageNet32 and 64 made from the photos themselves."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from imagenet_small_cases import generate_sources, make_wanted, read_all
from PIL import Image

from bench.generate_imagenet import walk_pixels
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.sources import imagenet_small
from fastdrpl.loaders.sources.imagenet_small import class_order, open_imagenet_small


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return generate_sources(tmp_path_factory)


@pytest.fixture(scope="module")
def wanted(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_wanted(sources, tmp_path_factory)


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
