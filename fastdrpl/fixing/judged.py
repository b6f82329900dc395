"""A finished run as `fastdrpl fix` needs it: what it was told, what it suggests and how sure it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.errors import DataError, UserError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.labels import Labels, load_labels
from fastdrpl.report.facts import run_hash
from fastdrpl.report.table import read_table


@dataclass(frozen=True, eq=False)
class Judged:
    """The N samples of a finished run; arrays are by sample index."""

    folder: RunFolder
    hash: str
    data: str  # fingerprint of the prepared data
    labels: Labels  # that the run was told
    files: np.ndarray  # (N,) object: file names as in the table, None where rows were no files
    suggested: np.ndarray  # (N,) int64
    p_noisy: np.ndarray  # (N,) float64
    p_suggested: np.ndarray  # (N,) float, nan in runs of earlier versions, which did not keep it
    suspect: np.ndarray  # (N,) bool
    rank: np.ndarray  # (N,) int64, 1 = most doubtful
    score: np.ndarray  # (N,) float64

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class k is class_names[k]."""
        return self.labels.class_names


def finished_result(path: Path) -> Mapping[str, Any]:
    """result.json of a run. Raises `UserError` if the run is not finished or there is none."""
    folder = RunFolder(path)
    if folder.result.exists():
        return read_json(folder.result)
    if not folder.config.exists():
        raise UserError("there is no run here", where=str(path), fix="give the folder of a finished run")
    raise UserError(
        "the run is not finished: it has not judged its labels yet",
        where=str(path),
        fix=f"`fastdrpl status {path}` says how far it is",
    )


def read_judged(path: Path) -> Judged:
    """Read a run folder. Raises `UserError` if the run is not finished, `DataError` for damaged files."""
    folder, result = RunFolder(path), finished_result(path)
    table, labels = read_table(folder.labels), load_labels(folder.noise)
    if len(table) != len(labels) or (table["row"].to_numpy() != labels.source_row).any():
        raise DataError(
            f"{folder.labels.name} and {folder.noise.name} are not of the same samples", where=str(path)
        )
    return Judged(
        folder=folder,
        hash=run_hash(result),
        data=result["identity"]["data"],
        labels=labels,
        files=np.array(table["file"].to_pylist(), dtype=object),
        suggested=table["suggested"].to_numpy(),
        p_noisy=table["p_noisy"].to_numpy(),
        p_suggested=table["p_suggested"].to_numpy(),
        suspect=~table["labelled"].to_numpy(),
        rank=table["rank"].to_numpy(),
        score=table["score"].to_numpy(),
    )
