"""Corrected labels, read for training: only with the images that they were made for."""

from pathlib import Path

import numpy as np

from fastdrpl.errors import DataError
from fastdrpl.fixing.origin import Origin, origin_of_file
from fastdrpl.labels import Labels, load_labels
from fastdrpl.loaders.dataset import Dataset


def load_corrected(
    path: Path, dataset: Dataset, class_names: tuple[str, ...]
) -> tuple[Labels, Origin | None]:
    """The labels of a file in the form of `Labels.save`, and the run that they come from, if the file says so.

    Raises `UserError` for a missing file, `DataError` for a damaged one or one for other images or classes.
    """
    labels = load_labels(path, class_names=class_names)
    origin = origin_of_file(path)
    if origin is not None and origin.data != dataset.fingerprint:
        raise DataError(
            "the labels were made for other prepared data",
            where=f"{path} and {dataset.path}",
            fix=f"give --data the prepared folder that the run {origin.run} was trained on",
        )
    rows = labels.source_row
    order = np.argsort(rows, kind="stable")
    twice = np.flatnonzero(np.diff(rows[order]) == 0)
    if len(twice):
        raise DataError(
            f"row {rows[order][twice[0]]} has two lines in the label file",
            where=str(path),
            fix="leave one of them out",
        )
    return labels, origin
