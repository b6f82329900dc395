"""What a finished run found, as frozen values: the console summary, tables and figures only render them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from fastdrpl.errors import UserError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.report.table import read_table


@dataclass(frozen=True)
class StageFacts:
    """A stage; accuracies and rates are fractions, None where they are not known."""

    name: str
    epochs: int
    seconds: float
    best: float | None
    last: float | None
    detection: Mapping[str, Any]  # labelled, unlabelled, auc, tpr, fpr; empty where it did not detect
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ClassFacts:
    """The samples that were given a label, and how many of them look wrong."""

    name: str
    samples: int
    suspects: int


@dataclass(frozen=True)
class Suspect:
    """A label that looks wrong; None where nothing is known."""

    rank: int  # 1 = most doubtful
    index: int
    file: str | None
    given: str
    suggested: str
    p_suggested: float | None  # what the network gives its suggestion
    p_noisy: float
    score: float  # in [0, 1], in the order of `rank`
    truth: str | None


@dataclass(frozen=True)
class RunFacts:
    """A finished run."""

    folder: Path
    hash: str
    recipe: str
    method: str
    seed: int
    epochs_scale: float  # 1 = the method's own length
    samples: int
    suspects: int
    noise_rate: float | None
    best: float | None
    last: float | None
    stages: tuple[StageFacts, ...]
    per_class: tuple[ClassFacts, ...]  # the largest share of suspects first
    most_doubtful: tuple[Suspect, ...]


def read_facts(path: Path, *, suspects: int = 8) -> RunFacts:
    """The facts of a run folder. Raises `UserError` if the run is not finished, `DataError` for damaged files."""
    folder = RunFolder(path)
    if not folder.result.exists():
        raise UserError("the run is not finished", where=str(path), fix=f"`fastdrpl status {path}` says why")
    return facts_of(folder, read_table(folder.labels), suspects=suspects)


def facts_of(folder: RunFolder, table: pyarrow.Table, *, suspects: int) -> RunFacts:
    """The facts of a finished run whose table has been read. Raises `DataError` for damaged files."""
    result = read_json(folder.result)
    return RunFacts(
        folder=folder.path,
        hash=run_hash(result),
        recipe=result["recipe"],
        method=result["method"],
        seed=result["seed"],
        epochs_scale=result.get("epochs_scale", 1.0),
        samples=result["samples"],
        suspects=result["suspects"],
        noise_rate=result["noise_rate"],
        best=result["accuracy"]["best"],
        last=result["accuracy"]["last"],
        stages=tuple(_stage(stage) for stage in result["stages"]),
        per_class=_per_class(table),
        most_doubtful=_most_doubtful(table, suspects),
    )


def run_hash(result: Mapping[str, Any]) -> str:
    """16 hex digits of what decided a run (result.json): files made for one run are refused for another."""
    return hashlib.sha256(json.dumps(result["identity"], sort_keys=True).encode()).hexdigest()[:16]


def _stage(stage: Mapping[str, Any]) -> StageFacts:
    return StageFacts(
        name=stage["name"],
        epochs=stage["epochs"],
        seconds=stage["seconds"],
        best=stage["accuracy"]["best"],
        last=stage["accuracy"]["last"],
        detection=stage["detection"] or {},
        warnings=tuple(stage["warnings"]),
    )


def _per_class(table: pyarrow.Table) -> tuple[ClassFacts, ...]:
    given = table["given_name"].combine_chunks().dictionary_encode()
    names, number = given.dictionary.to_pylist(), given.indices.to_numpy()
    total, wrong = np.bincount(number), np.bincount(number, ~table["labelled"].to_numpy())
    order = sorted(range(len(names)), key=lambda k: (-wrong[k] / total[k], names[k]))
    return tuple(ClassFacts(names[k], int(total[k]), int(wrong[k])) for k in order)


def _most_doubtful(table: pyarrow.Table, count: int) -> tuple[Suspect, ...]:
    """The suspects of the lowest rank, at most so many."""
    suspects = np.flatnonzero(~table["labelled"].to_numpy())
    first = suspects[np.argsort(table["rank"].to_numpy()[suspects])[:count]]
    return tuple(
        Suspect(
            rank=row["rank"],
            index=row["index"],
            file=row["file"],
            given=row["given_name"],
            suggested=row["suggested_name"],
            p_suggested=row["p_suggested"],
            p_noisy=row["p_noisy"],
            score=row["score"],
            truth=row.get("truth_name"),
        )
        for row in table.take(first).to_pylist()
    )
