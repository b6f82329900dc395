"""What a run trains and tests on: a prepared dataset, chosen rows of it and their labels."""

from dataclasses import dataclass

import numpy as np

from fastdrpl.config import Config
from fastdrpl.console import say
from fastdrpl.errors import DataError, UserError
from fastdrpl.folder import RunFolder
from fastdrpl.kernels.philox import permutation
from fastdrpl.labels import UNKNOWN, Labels
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.dataset import Dataset, Split, open_dataset
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.loaders.progress import Progress
from fastdrpl.machine import Machine
from fastdrpl.noise import draw_noise

UNCHECKED = ("folder",)  # kinds of source whose labels nobody vouches for


@dataclass(frozen=True)
class View:
    """A split and the labels of the rows that are used; sample index = position in `labels`."""

    split: Split
    labels: Labels


def training_view(config: Config, dataset: Dataset) -> View:
    """The training samples with the labels that the run is told.

    The labels of the data set count as right where its source says so, or where the run asks for noise to be
    added; else the truth is unknown. Raises `UserError` or `DataError` where the noise does not fit the data.
    """
    split = dataset.split("train")
    rows = _rows(split, config.limit, config.seed, view=0)
    label = split.label[rows]
    adds_noise = config.noise.kind != "none"
    truth = label if dataset.source.kind not in UNCHECKED or adds_noise else np.full_like(label, UNKNOWN)
    labels = draw_noise(
        truth, rows, dataset.class_names, config.noise, given=label, superclass=dataset.superclass
    )
    outside = np.flatnonzero(labels.source_row >= len(split))
    if len(outside):
        raise UserError(
            f"the labels show row {labels.source_row[outside[0]]}, the data set has {len(split)} rows",
            where=str(config.noise.file),
            fix="use the label file that was made for this data set",
        )
    return View(split, labels)


def test_view(config: Config, dataset: Dataset) -> View | None:
    """The test samples, whose labels are never touched; None if the data set has no test split."""
    if not dataset.has("test"):
        return None
    split = dataset.split("test")
    rows = _rows(split, config.limit_test, config.seed, view=1)
    label = split.label[rows]
    return View(split, Labels(label, label, rows, dataset.class_names))


def _rows(split: Split, limit: int, seed: int, *, view: int) -> np.ndarray:
    """The valid rows of a split, or `limit` of them drawn by the seed; in order."""
    rows = np.flatnonzero(split.valid)
    if not len(rows):
        raise DataError(
            f"the {split.name} split has no readable image",
            where=str(split.path),
            fix="see quarantine.csv beside it",
        )
    if not 0 < limit < len(rows):
        return rows
    drawn = permutation(Pass(seed, 0, 0, Purpose.limit, view).stream, len(rows))[:limit]
    return rows[np.sort(drawn)]


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


def open_loader(config: Config, view: View, machine: Machine) -> Loader:
    """The loader that a configuration asks for; `auto` says why it chose."""
    # Imported here: the worker loader brings torch's worker processes, the resident one may decode a whole set.
    from fastdrpl.loaders.resident import ResidentLoader, resident_bytes
    from fastdrpl.loaders.worker import WorkerLoader

    choice, rows = config.engine.loader, view.labels.source_row
    if choice == "auto":
        need, free = resident_bytes(view.split, rows, machine.device)
        choice = "resident" if need <= free else "worker"
        if machine.main:
            why = f"take {need / 2**30:.2f} GiB of {free / 2**30:.1f} free" if need else "are memory-mapped"
            say(f"loader {choice}: the {view.split.name} images {why}")
    if choice == "worker":
        return WorkerLoader(view.split, rows, machine.device, config.engine.workers)
    with Progress(
        f"decoding {view.split.name}", None, quiet=not machine.main or view.split.store == "raw"
    ) as bar:
        return ResidentLoader(
            view.split, rows, machine.device, progress=lambda done, total: bar.advance(done - bar.done)
        )
