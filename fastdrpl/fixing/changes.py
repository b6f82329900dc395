"""What changed between a run and the one that was trained on its corrected labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow

from fastdrpl.errors import DataError, UserError
from fastdrpl.files import read_json
from fastdrpl.fixing.judged import finished_result
from fastdrpl.fixing.origin import origin_of_run
from fastdrpl.folder import RunFolder
from fastdrpl.loaders.printable import printable
from fastdrpl.report.facts import run_hash
from fastdrpl.report.table import read_table


@dataclass(frozen=True)
class PairChanges:
    """Samples whose given label went from one class to another."""

    before: str
    after: str
    samples: int
    right: int | None  # whose new label is the true one; None where the truth of none of them is known


@dataclass(frozen=True)
class SuspectChanges:
    """Labels that look wrong. `before` = resolved + stayed + dropped, `after` = stayed + new."""

    before: int
    after: int
    resolved: int  # looked wrong, and no longer do
    stayed: int
    dropped: int  # looked wrong, and are no longer in the data
    new: int
    new_indices: tuple[int, ...]  # samples of the later run, the most doubtful first


@dataclass(frozen=True)
class TruthChanges:
    """The labels whose right class is known, before and after: counts."""

    wrong_before: int
    wrong_after: int
    corrected: int  # changed from a wrong label to the right one
    still_wrong: int  # changed from a wrong label to another wrong one
    spoiled: int  # changed from the right label to a wrong one
    dropped_wrong: int  # left out, and the label was wrong
    dropped_right: int  # left out, and the label was right


@dataclass(frozen=True)
class Changes:
    """Two finished runs over the same prepared data, compared sample by sample (by the row of the image).

    Accuracies are fractions on the test set, None without one. `truth` is None where no right class is known.
    """

    before: Path
    after: Path
    samples_before: int
    samples_after: int
    relabelled: int  # samples of both runs that were told another label
    dropped: int  # samples of the earlier run alone
    added: int  # samples of the later run alone
    pairs: tuple[PairChanges, ...]  # of the relabelled ones, the most frequent first
    suspects: SuspectChanges
    truth: TruthChanges | None
    best_before: float | None
    best_after: float | None
    last_before: float | None
    last_after: float | None


def changes(before: Path, after: Path) -> Changes:
    """Compare an earlier run with a later one.

    Raises `UserError` where one of them is not finished or they are of other images, `DataError` for damaged files.
    """
    results = [finished_result(path) for path in (before, after)]
    if results[0]["identity"]["data"] != results[1]["identity"]["data"]:
        raise UserError(
            "the two runs are of different prepared data: their samples cannot be compared",
            where=f"{before} and {after}",
            fix="compare a run with one that was trained on its corrected labels (--labels)",
        )
    old, new = (_sorted_by_row(path) for path in (before, after))
    _, at_old, at_new = np.intersect1d(_numbers(old, "row"), _numbers(new, "row"), True, True)
    only_old = np.setdiff1d(np.arange(len(old)), at_old)
    names = [np.asarray(table["given_name"], dtype=object) for table in (old, new)]
    told, tells = names[0][at_old], names[1][at_new]
    changed = told != tells
    accuracy = [result["accuracy"] for result in results]
    return Changes(
        before=before,
        after=after,
        samples_before=len(old),
        samples_after=len(new),
        relabelled=int(changed.sum()),
        dropped=len(only_old),
        added=len(new) - len(at_new),
        pairs=_pairs(told[changed], tells[changed], _truth(new)[at_new][changed]),
        suspects=_suspects(old, new, at_old, at_new),
        truth=_truth_changes(old, new, at_old, at_new, only_old),
        best_before=accuracy[0]["best"],
        best_after=accuracy[1]["best"],
        last_before=accuracy[0]["last"],
        last_after=accuracy[1]["last"],
    )


@dataclass(frozen=True)
class Earlier:
    """The run that the labels of another come from."""

    folder: Path | None  # None where it is not to be had
    missing: str = ""  # why, for the user


def earlier_run(after: Path) -> Earlier | None:
    """The run whose corrected labels a run was trained on; None if its labels come from no run.

    Raises `DataError` for a damaged manifest.
    """
    origin = origin_of_run(after)
    if origin is None:
        return None
    result, place = RunFolder(Path(origin.run)).result, printable(origin.run)
    if not result.exists():
        return Earlier(
            None, f"the labels come from the run {origin.hash}, which is no longer there as {place}"
        )
    if run_hash(read_json(result)) != origin.hash:
        return Earlier(None, f"the labels come from the run {origin.hash}; {place} is another run by now")
    return Earlier(Path(origin.run))


def in_order(run: Path, other: Path) -> tuple[Path, Path]:
    """Two finished runs, the later one last: the one whose labels come from the other, else the second."""
    origin = origin_of_run(run)
    later = origin is not None and origin.hash == run_hash(finished_result(other))
    return (other, run) if later else (run, other)


def _sorted_by_row(path: Path) -> pyarrow.Table:
    """The table of a run, by row. Raises `DataError` where an image is shown twice, which no run of ours does."""
    table = read_table(RunFolder(path).labels)
    rows = table["row"].to_numpy()
    order = np.argsort(rows, kind="stable")
    if (np.diff(rows[order]) == 0).any():
        raise DataError("an image is in this run twice: its samples cannot be compared", where=str(path))
    return table.take(order)


def _numbers(table: pyarrow.Table, column: str) -> np.ndarray:
    return table[column].to_numpy()


def _truth(table: pyarrow.Table) -> np.ndarray:
    """(N,) names of the right classes, None where they are not known or there is none."""
    if "truth_name" not in table.column_names:
        return np.full(len(table), None, dtype=object)
    return np.array(table["truth_name"].to_pylist(), dtype=object)


def _pairs(told: np.ndarray, tells: np.ndarray, truth: np.ndarray) -> tuple[PairChanges, ...]:
    counts: dict[tuple[str, str], list[int]] = {}
    for old, new, right in zip(told.tolist(), tells.tolist(), truth.tolist(), strict=True):
        count = counts.setdefault((old, new), [0, 0, 0])
        count[0] += 1
        count[1] += right is not None
        count[2] += right == new
    ordered = sorted(counts.items(), key=lambda item: (-item[1][0], item[0]))
    return tuple(PairChanges(*pair, each[0], each[2] if each[1] else None) for pair, each in ordered)


def _suspects(
    old: pyarrow.Table, new: pyarrow.Table, at_old: np.ndarray, at_new: np.ndarray
) -> SuspectChanges:
    was, now = ~_numbers(old, "labelled"), ~_numbers(new, "labelled")
    stayed = was[at_old] & now[at_new]
    fresh = now.copy()
    fresh[at_new[stayed]] = False
    order = np.argsort(_numbers(new, "rank")[fresh], kind="stable")
    return SuspectChanges(
        before=int(was.sum()),
        after=int(now.sum()),
        resolved=int((was[at_old] & ~now[at_new]).sum()),
        stayed=int(stayed.sum()),
        dropped=int(was.sum() - was[at_old].sum()),
        new=int(fresh.sum()),
        new_indices=tuple(_numbers(new, "index")[fresh][order].tolist()),
    )


def _truth_changes(
    old: pyarrow.Table, new: pyarrow.Table, at_old: np.ndarray, at_new: np.ndarray, only_old: np.ndarray
) -> TruthChanges | None:
    wrong_old, known_old = _wrong(old)
    wrong_new, known_new = _wrong(new)
    if not (known_old.any() or known_new.any()):
        return None
    changed = np.asarray(old["given_name"], object)[at_old] != np.asarray(new["given_name"], object)[at_new]
    changed &= known_old[at_old] & known_new[at_new]
    was, now = wrong_old[at_old], wrong_new[at_new]
    return TruthChanges(
        wrong_before=int(wrong_old.sum()),
        wrong_after=int(wrong_new.sum()),
        corrected=int((changed & was & ~now).sum()),
        still_wrong=int((changed & was & now).sum()),
        spoiled=int((changed & ~was & now).sum()),
        dropped_wrong=int(wrong_old[only_old].sum()),
        dropped_right=int((known_old & ~wrong_old)[only_old].sum()),
    )


def _wrong(table: pyarrow.Table) -> tuple[np.ndarray, np.ndarray]:
    """(N,) whether a label is wrong, and whether that is known."""
    if "is_noisy" not in table.column_names:
        return np.zeros(len(table), bool), np.zeros(len(table), bool)
    column = table["is_noisy"].combine_chunks()
    known = np.asarray(column.is_valid())
    return np.asarray(column.fill_null(False)), known
