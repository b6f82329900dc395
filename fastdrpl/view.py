"""What a run trains and tests on: a prepared dataset, chosen rows of it and their labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrpl.config import Config
from fastdrpl.errors import DataError, UserError
from fastdrpl.fixing.corrected import load_corrected
from fastdrpl.fixing.origin import Origin
from fastdrpl.folder import RunFolder
from fastdrpl.imagenet import split_classes
from fastdrpl.kernels.philox import permutation
from fastdrpl.label_files import is_foreign
from fastdrpl.labels import OUTSIDE, UNKNOWN, Labels
from fastdrpl.loaders.dataset import Dataset, Split, open_dataset
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.noise import Pool, draw_noise
from fastdrpl.noise_config import NoiseConfig


@dataclass(frozen=True)
class View:
    """A split and the labels of the rows that are used; sample index = position in `labels`.

    The class names of a view are those of its labels: with `classes = "paper"` fewer than the data set has.
    """

    split: Split
    labels: Labels
    notes: tuple[str, ...] = ()  # lines for the user
    origin: Origin | None = None  # of labels that were corrected


@dataclass(frozen=True)
class _Classes:
    """Which classes of a data set a view has, and under which number."""

    names: tuple[str, ...]  # C names
    number: np.ndarray  # of each class of the data set, int64: 0..C-1, or -1 if it is outside
    outside: np.ndarray  # classes of the data set that are outside, int64


def training_view(config: Config, dataset: Dataset) -> View:
    """The training samples with the labels that the run is told.

    The labels of the data set count as right where its source says so, or where the run asks for noise to be
    added; else the truth is unknown. Raises `UserError` or `DataError` where the noise does not fit the data.
    """
    split, classes = dataset.split("train"), _classes(config, dataset)
    pool = _pool(split, classes, dataset.class_names) if len(classes.outside) else None
    if config.labels is not None and not is_foreign(config.labels):
        return _corrected_view(config.labels, config, dataset, classes, pool)
    noise = config.noise if config.labels is None else NoiseConfig(file=config.labels)
    rows = _rows(split, classes, config.limit, config.seed, view=0)
    label = classes.number[split.label[rows]]
    adds_noise = noise.kind != "none"
    truth = label if dataset.source.labels_checked or adds_noise else np.full_like(label, UNKNOWN)
    labels = draw_noise(
        truth,
        rows,
        classes.names,
        noise,
        given=label,
        superclass=dataset.superclass,
        pool=pool,
        total=len(split),
        ids=dataset.ids("train") if noise.file is not None else None,
    )
    _check_rows(labels, rows, split, pool, str(noise.file))
    return View(split, labels, (*_notes(labels, pool), *_file_notes(noise, labels, label)))


def _corrected_view(
    path: Path, config: Config, dataset: Dataset, classes: _Classes, pool: Pool | None
) -> View:
    """The samples of a label file, as it has them: those that it leaves out are in no view."""
    split = dataset.split("train")
    labels, origin = load_corrected(path, dataset, classes.names)
    here = np.flatnonzero(split.valid & (classes.number[split.label] >= 0))
    outside = np.flatnonzero(split.valid) if pool is None else pool.rows
    shown = labels.source_row
    lost = np.where(labels.truth == OUTSIDE, ~np.isin(shown, outside), ~np.isin(shown, here))
    if lost.any():
        raise DataError(
            f"the labels are for row {shown[lost.argmax()]}, which is no training image of this data set "
            f"({len(here):,} of its {len(split):,} rows are)",
            where=str(path),
            fix="use the label file that was made for this data set",
        )
    labels = _limited(labels, config)
    label = classes.number[split.label[labels.source_row]]
    notes = [*_notes(labels, pool), *_file_notes(NoiseConfig(file=path), labels, label)]
    if origin is not None and origin.dropped:
        notes.append(f"{len(origin.dropped):,} images were dropped by `fastdrpl fix` and are not trained on")
    return View(split, labels, tuple(notes), origin)


def _limited(labels: Labels, config: Config) -> Labels:
    if not 0 < config.limit < len(labels):
        return labels
    chosen = _drawn(len(labels), config.limit, config.seed, view=0)
    return Labels(labels.given[chosen], labels.truth[chosen], labels.source_row[chosen], labels.class_names)


def test_view(config: Config, dataset: Dataset) -> View | None:
    """The test samples, whose labels are never touched; None if the data set has no test split."""
    if not dataset.has("test"):
        return None
    split, classes = dataset.split("test"), _classes(config, dataset)
    rows = _rows(split, classes, config.limit_test, config.seed, view=1)
    label = classes.number[split.label[rows]]
    return View(split, Labels(label, label, rows, classes.names))


def _classes(config: Config, dataset: Dataset) -> _Classes:
    """All classes of the data set, or the paper's 100 of ImageNet under their new numbers."""
    names = dataset.class_names
    if config.classes == "all":
        return _Classes(names, np.arange(len(names)), np.empty(0, np.int64))
    inside, outside = split_classes(names)
    number = np.full(len(names), -1, np.int64)
    number[inside] = np.arange(len(inside))
    return _Classes(tuple(names[k] for k in inside), number, outside)


def _pool(split: Split, classes: _Classes, names: tuple[str, ...]) -> Pool:
    """The readable images of the classes outside."""
    position = np.full(len(names), -1, np.int64)
    position[classes.outside] = np.arange(len(classes.outside))
    rows = np.flatnonzero(split.valid & (position[split.label] >= 0))
    return Pool(rows, position[split.label[rows]], tuple(names[k] for k in classes.outside))


def _rows(split: Split, classes: _Classes, limit: int, seed: int, *, view: int) -> np.ndarray:
    """The valid rows of the view's classes, or `limit` of them drawn by the seed; in order."""
    rows = np.flatnonzero(split.valid & (classes.number[split.label] >= 0))
    if not len(rows):
        what, fix = "readable image", "see quarantine.csv beside it"
        if split.valid.any():
            what, fix = "image of the paper's classes", "prepare all of ImageNet, or use --classes all"
        raise DataError(f"the {split.name} split has no {what}", where=str(split.path), fix=fix)
    return rows[_drawn(len(rows), limit, seed, view=view)] if 0 < limit < len(rows) else rows


def _drawn(count: int, limit: int, seed: int, *, view: int) -> np.ndarray:
    """`limit` of `count` positions, drawn by the seed; in order."""
    return np.sort(permutation(Pass(seed, 0, 0, Purpose.limit, view).stream, count)[:limit])


def _check_rows(labels: Labels, rows: np.ndarray, split: Split, pool: Pool | None, file: str) -> None:
    """Labels from a file may show other rows than their own: each must hold an image, and one from outside."""
    shown = labels.source_row[labels.source_row != rows]
    wrong = shown[~np.isin(shown, np.flatnonzero(split.valid) if pool is None else pool.rows)]
    if not len(wrong):
        return
    row = int(wrong[0])
    if row >= len(split):
        why = f"the data set has {len(split)} rows"
    elif not split.valid[row]:
        why = "which has no readable image"
    else:
        why = "whose class is not outside"
    fix = "use the label file that was made for this data set"
    raise UserError(f"the labels show row {row}, {why}", where=file, fix=fix)


def _notes(labels: Labels, pool: Pool | None) -> tuple[str, ...]:
    """What a user would not expect."""
    notes = []
    swapped = int(np.count_nonzero(labels.truth == OUTSIDE))
    if labels.redrawn:
        notes.append(
            f"{labels.redrawn} of {swapped} images from outside are of a class that was drawn again: "
            "the first one drawn had no image left"
        )
    if pool is not None:
        empty = len(labels.class_names) - len(np.unique(labels.given))
        if empty:
            notes.append(f"{empty} of the {len(labels.class_names)} classes have no image here")
        without = len(pool.class_names) - len(np.unique(pool.label))
        if swapped and without:
            notes.append(f"{without} of the {len(pool.class_names)} classes outside have no image here")
    return tuple(notes)


def _file_notes(noise: NoiseConfig, labels: Labels, label: np.ndarray) -> list[str]:
    """The noise that a label file brings: by the truth where it is known, else by the labels of the data set."""
    if noise.file is None:
        return []
    name = f"{noise.file}" + (f" ({noise.file_column})" if noise.file_column else "")
    noisy, known = labels.is_noisy
    if known.any():
        return [f"labels of {name}: {noisy.sum() / known.sum():.2%} of {known.sum():,} are wrong"]
    return [
        f"labels of {name}: {np.mean(labels.given != label):.2%} of {len(label):,} differ from the data set's"
    ]


def open_data(config: Config, folder: RunFolder) -> Dataset:
    """The prepared dataset of a run; the embedded digits are prepared inside the run folder.

    Raises `UserError` where a recipe needs --data, `DataError` for a damaged data set.
    """
    if config.data is not None:
        return open_dataset(config.data)
    if config.recipe != "digits":
        raise UserError(
            f"the recipe {config.recipe!r} needs a prepared dataset",
            where="--data",
            fix=f"`fastdrpl prepare {config.recipe} --source DIR --out data/{config.recipe}`, "
            f"then --data data/{config.recipe}",
        )
    if not folder.prepared.exists():
        from fastdrpl.loaders.prepare import PrepareConfig, prepare

        prepare(PrepareConfig(kind="digits", out=folder.prepared))  # the same test images for every seed
    return open_dataset(folder.prepared)
