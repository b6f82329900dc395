"""The table of labels as CSV: as it is, and under the names that cleanlab gives its columns."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute

from fastdrpl.errors import UserError
from fastdrpl.exports.finished import Finished
from fastdrpl.report.table import write_table


def write_csv(run: Finished, out: Path) -> str:
    """Every column of labels.parquet, in its order. Raises `UserError` for a name that does not end in .csv."""
    return _write(out, run.table)


def write_cleanlab(run: Finished, out: Path) -> str:
    """index, file, then cleanlab's columns (those of `Datalab.get_issues("label")`)."""
    return _write(out, cleanlab_table(run.table))


def cleanlab_table(table: pyarrow.Table) -> pyarrow.Table:
    """is_label_issue (bool), label_score (in [0, 1], low = likely wrong), given_label, predicted_label (names).

    The score is 1 - `score`, so it orders the samples as `rank` does. `table`: as `read_table` gives it.
    """
    return pyarrow.table(
        {
            "index": table["index"],
            "file": table["file"],
            "is_label_issue": pyarrow.compute.invert(table["labelled"]),
            "label_score": np.clip(1 - table["score"].to_numpy(), 0, 1),
            "given_label": table["given_name"],
            "predicted_label": table["suggested_name"],
        }
    )


def _write(out: Path, table: pyarrow.Table) -> str:
    if out.suffix != ".csv":
        raise UserError("the table is written as CSV", where=str(out), fix="use a name that ends in .csv")
    write_table(out, table)
    return f"{len(table):,} samples"
