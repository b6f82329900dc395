"""What a run trains and tests on: which rows, which classes under which numbers, and which images from outside."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdrpl.config import Config
from fastdrpl.imagenet import class_split
from fastdrpl.labels import OUTSIDE, UNKNOWN, Labels
from fastdrpl.loaders.dataset import Dataset, Source, Split
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources.imagenet_small import class_order
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.transitions import Confusion, save_confusion
from fastdrpl.view import test_view as view_of_test
from fastdrpl.view import training_view

IDS = class_order()
INSIDE, OUTSIDE_CLASSES = class_split()


def split_of(name: str, label: np.ndarray, valid: np.ndarray | None = None) -> Split:
    """A split whose pixels nobody looks at."""
    valid = np.ones(len(label), bool) if valid is None else valid
    place = np.arange(len(label)) * 12
    return Split(
        name, Path(f"{name}.beton"), 2, 2, "raw", label, valid, place, np.full(len(label), 12), 1 << 20
    )


def dataset_of(
    train: Split, test: Split | None = None, names: tuple[str, ...] = IDS, checked: bool = True
) -> Dataset:
    splits = {split.name: split for split in (train, test) if split is not None}
    grey = (0.5, 0.5, 0.5)
    return Dataset(
        path=Path("data"), name="imagenet32", source=Source("imagenet32", "0", checked), class_names=names,
        superclass=None, superclass_names=None, mean=grey, std=grey, flip=True, pad=4, test_may_be_wrong=False,
        fingerprint="0", splits=splits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Dataset:
    """Every class of ImageNet: 4 images for training, 2 of them quarantined for the first, and 2 for testing."""
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), 4))
    valid = np.ones(4000, bool)
    valid[np.flatnonzero(label == INSIDE[0])[:2]] = False
    valid[np.flatnonzero(label == OUTSIDE_CLASSES[5])[:3]] = False
    test = np.random.default_rng(1).permutation(np.repeat(np.arange(1000), 2))
    return dataset_of(split_of("train", label, valid), split_of("test", test))


def paper(**changes: Any) -> Config:
    noise = changes.pop("noise", {})
    return Config(recipe="imagenet32", classes="paper", noise=NoiseConfig(**noise), **changes)


def test_the_view_holds_the_papers_classes_under_their_new_numbers(small: Dataset):
    view, split = training_view(paper(), small), small.split("train")
    labels = view.labels
    assert labels.class_names == tuple(IDS[k] for k in INSIDE) and view.notes == ()
    assert labels.class_names[0] == "n02708093"
    assert labels.source_row.tolist() == [
        row for row in range(4000) if split.valid[row] and split.label[row] in set(INSIDE.tolist())
    ]
    assert [IDS[split.label[row]] for row in labels.source_row] == [
        labels.class_names[k] for k in labels.given
    ]
    assert np.bincount(labels.given).tolist() == [2, *[4] * 99]
    assert np.array_equal(labels.truth, labels.given)


def test_the_test_view_is_relabelled_alike_and_never_noisy(small: Dataset):
    config = paper(noise={"kind": "uniform_ood", "ratio": 0.5})
    view, split = view_of_test(config, small), small.split("test")
    assert view is not None and len(view.labels) == 200
    assert view.labels.class_names == training_view(config, small).labels.class_names
    assert [IDS[split.label[row]] for row in view.labels.source_row] == [
        view.labels.class_names[k] for k in view.labels.given
    ]
    assert np.array_equal(view.labels.truth, view.labels.given)
    limited = view_of_test(dataclasses.replace(config, limit_test=30), small)
    assert limited is not None and len(limited.labels) == 30


def test_a_data_set_in_another_order_of_classes_gives_the_same_view(small: Dataset):
    names = tuple(sorted(IDS))
    number = np.array([names.index(name) for name in IDS])
    train = small.split("train")
    other = dataset_of(dataclasses.replace(train, label=number[train.label]), names=names)
    assert np.array_equal(other.split("train").label != train.label, number[train.label] != train.label)
    for noise in ({}, {"kind": "uniform_ood", "ratio": 0.4}):
        one, two = (training_view(paper(noise=noise), data).labels for data in (small, other))
        assert one.fingerprint == two.fingerprint


def test_all_classes_as_ever(small: Dataset):
    view = training_view(Config(recipe="imagenet32"), small)
    assert len(view.labels) == small.split("train").valid.sum() and view.labels.class_names == IDS
    assert np.array_equal(view.labels.given, small.split("train").label[view.labels.source_row])
    with pytest.raises(UserError, match="--classes paper"):
        training_view(Config(noise=NoiseConfig(kind="uniform_ood", ratio=0.1)), small)


def test_images_from_outside_are_readable_ones_of_the_other_classes(small: Dataset):
    split = small.split("train")
    seen: set[int] = set()
    for seed in range(60):
        labels = training_view(paper(noise={"kind": "uniform_ood", "ratio": 1.0, "seed": seed}), small).labels
        assert (labels.truth == OUTSIDE).all() and split.valid[labels.source_row].all()
        assert len(np.unique(labels.source_row)) == len(labels)
        seen |= set(split.label[labels.source_row].tolist())
    assert seen == set(OUTSIDE_CLASSES.tolist())


def test_a_limited_view_still_takes_images_from_anywhere_outside(small: Dataset):
    noise = {"kind": "uniform_ood", "ratio": 0.5}
    full = training_view(paper(), small).labels
    view = training_view(paper(limit=60, noise=noise), small)
    assert len(view.labels) == 60 and (view.labels.truth == OUTSIDE).sum() == 30
    kept = view.labels.truth != OUTSIDE
    assert set(view.labels.source_row[kept].tolist()) < set(full.source_row.tolist())
    others = training_view(paper(limit=60, noise=noise, seed=2), small).labels
    assert others.source_row.tolist() != view.labels.source_row.tolist()
    assert "classes have no image here" in view.notes[0]  # 60 images of 100 classes


def test_what_runs_out_is_said(tmp_path: Path):
    """Two images of each class outside, all labels alike: the likely classes are soon gone."""
    inside = np.repeat(INSIDE, 15)
    outside = np.repeat(OUTSIDE_CLASSES[:-3], 2)
    small = dataset_of(split_of("train", np.concatenate([inside, outside])))
    names = tuple(sorted(IDS))
    shares = np.full((1000, 1000), 1e-4)
    shares[:, :100] += 0.009
    save_confusion(Confusion(shares, names, ("net",), (0.1,), (1000,)), tmp_path / "c.npz")
    noise = {"kind": "nonuniform_ood", "ratio": 0.5, "confusion": tmp_path / "c.npz", "ood_direction": "row"}
    view = training_view(paper(noise=noise), small)
    assert view.labels.redrawn > 400
    assert (
        f"{view.labels.redrawn} of 750 images from outside" in view.notes[0]
        and "drawn again" in view.notes[0]
    )
    assert view.notes[1:] == ("3 of the 900 classes outside have no image here",)
    with pytest.raises(UserError, match="3000 images are to be replaced, but there are 0 outside"):
        training_view(
            paper(noise=noise | {"ratio": 1.0}), dataset_of(split_of("train", np.repeat(inside, 2)))
        )


def test_a_subset_may_lack_classes_but_not_all_of_them(small: Dataset):
    split = small.split("train")
    few = split_of("train", np.repeat([*INSIDE[:3], *OUTSIDE_CLASSES[:4]], 5))
    view = training_view(paper(noise={"kind": "uniform_ood", "ratio": 1.0}), dataset_of(few))
    assert view.notes[0] == "97 of the 100 classes have no image here" and len(view.labels.class_names) == 100
    none = split_of("train", np.repeat(OUTSIDE_CLASSES, 2))
    with pytest.raises(DataError, match="the train split has no image of the paper's classes"):
        training_view(paper(), dataset_of(none))
    unreadable = dataclasses.replace(split, valid=np.zeros(len(split), bool))
    with pytest.raises(DataError, match="no readable image"):
        training_view(paper(), dataset_of(unreadable))
    with pytest.raises(UserError, match="these data have 3 classes"):
        training_view(paper(), dataset_of(split_of("train", np.arange(3)), names=("a", "b", "c")))


# --- label files ---


@pytest.fixture
def exported(small: Dataset, tmp_path: Path) -> tuple[Path, Labels]:
    labels = training_view(paper(noise={"kind": "uniform_ood", "ratio": 0.4}), small).labels
    labels.save(tmp_path / "noise.npz")
    return tmp_path / "noise.npz", labels


def test_a_label_file_with_images_from_outside_comes_back(small: Dataset, exported: tuple[Path, Labels]):
    path, labels = exported
    assert (labels.truth == OUTSIDE).sum() == 159  # 40 % of 398
    assert training_view(paper(noise={"file": path}), small).labels.fingerprint == labels.fingerprint
    with pytest.raises(DataError, match="made for this data set"):
        training_view(Config(noise=NoiseConfig(file=path)), small)


@pytest.mark.parametrize(
    ("row", "why"),
    [(4000, "the data set has 4000 rows"), ("quarantined", "no readable image"), ("inside", "not outside")],
)
def test_a_label_file_that_shows_what_it_must_not(
    row: int | str, why: str, small: Dataset, exported: tuple[Path, Labels]
):
    path, labels = exported
    split = small.split("train")
    if row == "quarantined":
        row = int(np.flatnonzero(~split.valid)[-1])
    elif row == "inside":
        row = int(np.flatnonzero(split.valid & (split.label == INSIDE[7]))[0])
    rows = labels.source_row.copy()
    rows[np.flatnonzero(labels.truth == OUTSIDE)[3]] = row
    Labels(labels.given, labels.truth, rows, labels.class_names).save(path)
    with pytest.raises(UserError, match=f"the labels show row {row}, .*{why}"):
        training_view(paper(noise={"file": path}), small)


def test_other_data_refuse_rows_without_an_image(tmp_path: Path):
    """Outside the paper's classes there is no pool, and any readable row may be shown for an image from outside."""
    data = dataset_of(split_of("train", np.arange(20) % 2, np.arange(20) != 19), names=("a", "b"))
    rows, label = np.arange(19), np.arange(19) % 2
    truth = np.where(rows == 4, OUTSIDE, label)
    for shown, fine in ((7, True), (19, False), (20, False)):
        Labels(label, truth, np.where(rows == 4, shown, rows), ("a", "b")).save(tmp_path / "l.npz")
        config = Config(noise=NoiseConfig(file=tmp_path / "l.npz"))
        if fine:
            assert training_view(config, data).labels.source_row[4] == 7
        else:
            with pytest.raises(UserError, match=f"show row {shown}"):
                training_view(config, data)


def test_unchecked_labels_have_no_truth(small: Dataset):
    unchecked = dataclasses.replace(small, source=Source("folder", "0", False))
    assert (training_view(paper(), unchecked).labels.truth == UNKNOWN).all()
    noisy = training_view(paper(noise={"kind": "uniform_ood", "ratio": 0.5}), unchecked).labels
    assert set(noisy.truth.tolist()) >= {OUTSIDE, 0, 99} and UNKNOWN not in noisy.truth


def test_the_view_of_a_whole_imagenet_takes_seconds():
    label = np.random.default_rng(0).permutation(np.arange(1_281_167) % 1000)
    data = dataset_of(split_of("train", label))
    started = time.monotonic()
    view = training_view(paper(noise={"kind": "uniform_ood", "ratio": 0.4, "exact": "per_class"}), data)
    assert time.monotonic() - started < 15  # half a second on an idle core
    assert len(view.labels) == np.isin(label, INSIDE).sum()
