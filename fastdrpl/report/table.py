"""labels.parquet and labels.csv: a row per sample, its label, what the network suggests, how doubtful the label is."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from fastdrpl.errors import DataError
from fastdrpl.files import write_atomic
from fastdrpl.labels import Labels
from fastdrpl.report.ranking import rank_labels

SCHEMA_VERSION = 2  # 1 had no p_suggested, p_given, rank and score, and truth columns throughout
_TRUTH = ("truth", "truth_name", "is_noisy")


@dataclass(frozen=True)
class Said:
    """What the final network says of the samples, without augmentation."""

    suggested: np.ndarray  # (N,) int64: the most probable class
    p_suggested: np.ndarray  # (N,) float: what that is given
    p_given: np.ndarray  # (N,) float: what the given label is given


def build_table(
    labels: Labels,
    files: tuple[str, ...] | None,
    said: Said,
    p_noisy: np.ndarray,
    labelled: np.ndarray,
    losses: dict[str, np.ndarray],
) -> pyarrow.Table:
    """Columns of length N: index, row, file, given, given_name, suggested, suggested_name, p_suggested, p_given,
    p_noisy, labelled, rank, score, loss_<stage>; where some truth is known also truth, truth_name, is_noisy.

    null where something is not known. `files` is by row; `losses` by stage, in the order of the stages.
    """
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
        "suggested": pyarrow.array(said.suggested),
        "suggested_name": pyarrow.array(names[said.suggested], pyarrow.string()),
        "p_suggested": pyarrow.array(said.p_suggested),
        "p_given": pyarrow.array(said.p_given),
        "p_noisy": pyarrow.array(p_noisy),
        "labelled": pyarrow.array(labelled),
    }
    with np.errstate(divide="ignore"):  # an infinite loss comes first
        last = -np.log(np.asarray(said.p_given, np.float64))
    columns["rank"], columns["score"] = map(pyarrow.array, rank_labels(p_noisy, [*losses.values(), last]))
    for stage, values in losses.items():
        columns[f"loss_{stage}"] = pyarrow.array(values)
    if known.any():
        columns["truth"] = pyarrow.array(labels.truth, mask=~known)
        columns["truth_name"] = pyarrow.array(names[labels.truth], pyarrow.string())
        columns["is_noisy"] = pyarrow.array(noisy, mask=~known)
    return pyarrow.table(columns, metadata={"fastdrpl_schema": str(SCHEMA_VERSION)})


def printable(name: str) -> str:
    """A file name as valid UTF-8: bytes that are none are shown escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_table(path: Path, table: pyarrow.Table) -> None:
    """Write a parquet file, or a csv file where the path says so; whole or not at all."""
    file = io.BytesIO()
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, file)
    else:
        pyarrow.parquet.write_table(table, file)
    write_atomic(path, file.getvalue())


def read_table(path: Path) -> pyarrow.Table:
    """The parquet table of a run, as of today also where an earlier version wrote it.

    Raises `DataError` if it is missing, damaged or of a later version.
    """
    try:
        table = pyarrow.parquet.read_table(path)
        version = int((table.schema.metadata or {}).get(b"fastdrpl_schema", b"1"))
    except (OSError, ValueError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"cannot read the table of labels: {error}", where=str(path)) from error
    if version > SCHEMA_VERSION:
        raise DataError(
            f"the table of labels is of schema {version}, this version reads up to {SCHEMA_VERSION}",
            where=str(path),
            fix="update fastdrpl",
        )
    return table if version == SCHEMA_VERSION else _upgraded(table)


def _upgraded(table: pyarrow.Table) -> pyarrow.Table:
    """A table of schema 1 as of 2; what the final network thought of the labels is not known any more."""
    losses = [name for name in table.column_names if name.startswith("loss_")]
    p_noisy = table["p_noisy"].to_numpy()
    rank, score = rank_labels(p_noisy, [table[name].to_numpy() for name in losses])
    at = table.column_names.index("p_noisy")
    for name in ("p_given", "p_suggested"):
        table = table.add_column(at, name, pyarrow.nulls(len(table), pyarrow.float32()))
    at = table.column_names.index("labelled") + 1
    table = table.add_column(at, "rank", pyarrow.array(rank)).add_column(
        at + 1, "score", pyarrow.array(score)
    )
    if table["is_noisy"].null_count == len(table):
        table = table.drop_columns(list(_TRUTH))
    return table.replace_schema_metadata({"fastdrpl_schema": str(SCHEMA_VERSION)})
