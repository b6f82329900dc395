"""labels.parquet: a row per sample, what it was given, what the network suggests, and how doubtful the label is."""

import io
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from fastdrpl.errors import DataError
from fastdrpl.files import write_atomic
from fastdrpl.labels import Labels

SCHEMA_VERSION = 1


def build_table(
    labels: Labels,
    files: tuple[str, ...] | None,
    suggested: np.ndarray,
    p_noisy: np.ndarray,
    labelled: np.ndarray,
    losses: dict[str, np.ndarray],
) -> pyarrow.Table:
    """Columns of length N: index, row, file, given, given_name, suggested, suggested_name, p_noisy, labelled,
    loss_<stage>, truth, truth_name, is_noisy; null where something is not known. `files` is by row."""
    names = np.array(
        [*labels.class_names, None, None], dtype=object
    )  # -1 unknown and -2 outside have no name
    noisy, known = labels.is_noisy
    columns: dict[str, pyarrow.Array] = {
        "index": pyarrow.array(np.arange(len(labels))),
        "row": pyarrow.array(labels.source_row),
        "file": pyarrow.array(
            [None if files is None else printable(files[row]) for row in labels.source_row], pyarrow.string()
        ),
        "given": pyarrow.array(labels.given),
        "given_name": pyarrow.array(names[labels.given], pyarrow.string()),
        "suggested": pyarrow.array(suggested),
        "suggested_name": pyarrow.array(names[suggested], pyarrow.string()),
        "p_noisy": pyarrow.array(p_noisy),
        "labelled": pyarrow.array(labelled),
    }
    for stage, values in losses.items():
        columns[f"loss_{stage}"] = pyarrow.array(values)
    columns["truth"] = pyarrow.array(labels.truth, mask=~known)
    columns["truth_name"] = pyarrow.array(names[labels.truth], pyarrow.string())
    columns["is_noisy"] = pyarrow.array(noisy, mask=~known)
    metadata = {"fastdrpl_schema": str(SCHEMA_VERSION)}
    return pyarrow.table(columns, metadata=metadata)


def printable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are none are shown escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_table(path: Path, table: pyarrow.Table) -> None:
    """Write a parquet file, whole or not at all."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    write_atomic(path, file.getvalue())


def read_table(path: Path) -> pyarrow.Table:
    """The table of a run. Raises `DataError` if it is missing or damaged."""
    try:
        return pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"cannot read the table of labels: {error}", where=str(path)) from error
