"""The tables of the paper, from the runs of a grid: what stands in each row and column, as text.

How it is written as Markdown, CSV or LaTeX is the matter of `fastdrpl.compare.render`.
"""

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdrpl.compare import published
from fastdrpl.compare.facts import Entries, Entry, Run, entries_of
from fastdrpl.compare.grid import Data, Grid, Noise
from fastdrpl.compare.published import ABBREVIATIONS, Number

MISSING = "-"
NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Table:
    """A table of texts; `bold` holds (row, column) of the best values."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    bold: frozenset[tuple[int, int]] = frozenset()
    labels: int = 2  # how many columns at the left are names


@dataclass(frozen=True)
class _Line:
    """A row for each method: which figure, its factor and digits; a published number beside it if there is one."""

    name: str
    measure: str
    factor: float = 1.0
    digits: int = 2
    compare: bool = False
    best_is: str = ""  # "high", or "" for figures that no best is marked of


_ACCURACY = (
    _Line("best epoch", "best", 100.0, compare=True, best_is="high"),
    _Line("last epoch", "last", 100.0, best_is="high"),
    _Line("seconds", "seconds", digits=0),
)
_DETECTION = (
    _Line("TPR", "tpr", compare=True),
    _Line("FPR", "fpr", compare=True),
    _Line("AUC", "auc", digits=3, best_is="high"),
    _Line("seconds", "seconds", digits=0),
)
_PLAIN = (
    _Line("best", "best", 100.0, best_is="high"),
    _Line("last", "last", 100.0, best_is="high"),
    _Line("AUC", "auc", digits=3, best_is="high"),
    _Line("s", "seconds", digits=0),
)
_NAMES = {
    "I": "Detection of right labels, as Table I",
    "II": "Test accuracy (%), as Table II",
    "III": "Test accuracy (%), as Table III",
    "IV": "Test accuracy (%), as Table IV",
    "plain": "Test accuracy (%) and detection",
}


def build_tables(grid: Grid, runs: Sequence[Run]) -> list[Table]:
    """The tables of a grid in its layout, one a data set (two for Table I: noise from inside and from outside)."""
    entries = entries_of(runs)
    tables = []
    for data in grid.data:
        notes = _notes(grid, [run for run in runs if run.cell.data == data])
        if grid.table == "plain":
            tables.append(_plain(grid, data, entries, notes))
        elif grid.table == "III":
            tables += [_across(grid, data, noise, entries, notes) for noise in grid.noises]
        elif grid.table == "I":
            outside = [noise for noise in grid.noises if noise.options["kind"].endswith("_ood")]
            inside = [noise for noise in grid.noises if noise not in outside]
            for what, noises in (("ID", inside), ("OOD", outside)):
                if noises:
                    tables.append(_down(grid, data, noises, entries, _DETECTION, notes, f", {what}"))
        else:
            tables.append(_down(grid, data, grid.noises, entries, _ACCURACY, notes))
    return tables


def figure(entry: Entry, line_measure: str, factor: float, digits: int) -> str:
    """`mean ± deviation`, `-` where nothing is there, `failed (exit N)` where all that ran has failed."""
    values = entry.values(line_measure)
    if not values:
        failed = entry.failed
        return f"failed (exit {failed[-1].state.code})" if failed else MISSING
    mean, deviation = entry.mean(line_measure), entry.deviation(line_measure)
    text = f"{factor * (mean or 0.0):.{digits}f}"
    text += "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
    return text if len(values) == len(entry.runs) else f"{text} (n = {len(values)})"


def _down(
    grid: Grid,
    data: Data,
    noises: Sequence[Noise],
    entries: Entries,
    lines: Sequence[_Line],
    notes: list[str],
    suffix: str = "",
) -> Table:
    """Methods down, noises across: Tables I, II and IV."""
    rows: list[list[str]] = []
    shown: list[tuple[_Line, list[Entry]] | None] = []
    for method in grid.methods:
        cells = [entries[data.label, method.label, noise.label] for noise in noises]
        name = ABBREVIATIONS.get(method.label, method.label)
        for line in lines:
            rows.append(
                [name, line.name, *(figure(e, line.measure, line.factor, line.digits) for e in cells)]
            )
            shown.append((line, cells))
            name = ""  # once for all its lines
            numbers = [_published(line, entry) for entry in cells]
            for extra in _paper_rows(line, cells, numbers) if line.compare and any(numbers) else []:
                rows.append(["", *extra])
                shown.append(None)
    title = f"{_NAMES[grid.table]}: {data.label}{suffix}"
    columns = ["method", "", *(noise.label for noise in noises)]
    return Table(title, columns, rows, notes, _bold_rows(shown, 2))


def _across(grid: Grid, data: Data, noise: Noise, entries: Entries, notes: list[str]) -> Table:
    """Methods across: Table III."""
    cells = [entries[data.label, method.label, noise.label] for method in grid.methods]
    rows, bold = [], set()
    for line in _ACCURACY:
        rows.append([line.name, *(figure(e, line.measure, line.factor, line.digits) for e in cells)])
        best = _best(line, cells)
        bold |= {(len(rows) - 1, 1 + k) for k in best}
        numbers = [_published(line, entry) for entry in cells]
        if line.compare and any(numbers):
            rows += _paper_rows(line, cells, numbers)
    suffix = f", {noise.label}" if len(grid.noises) > 1 else ""
    columns = ["", *(ABBREVIATIONS.get(method.label, method.label) for method in grid.methods)]
    return Table(f"{_NAMES['III']}: {data.label}{suffix}", columns, rows, notes, frozenset(bold), labels=1)


def _plain(grid: Grid, data: Data, entries: Entries, notes: list[str]) -> Table:
    """Methods down, and for each noise its figures side by side."""
    rows = []
    for method in grid.methods:
        cells = [entries[data.label, method.label, noise.label] for noise in grid.noises]
        figures = [figure(e, line.measure, line.factor, line.digits) for e in cells for line in _PLAIN]
        rows.append([method.label, *figures])
    bold = set()
    for j, noise in enumerate(grid.noises):
        column = [entries[data.label, method.label, noise.label] for method in grid.methods]
        for k, line in enumerate(_PLAIN):
            bold |= {(row, 1 + j * len(_PLAIN) + k) for row in _best(line, column)}
    columns = ["method", *(f"{noise.label} {line.name}" for noise in grid.noises for line in _PLAIN)]
    return Table(f"{_NAMES['plain']}: {data.label}", columns, rows, notes, frozenset(bold), labels=1)


def _published(line: _Line, entry: Entry) -> Number | None:
    cell = entry.runs[0].cell
    prefix = "noise."
    options = {k.removeprefix(prefix): v for k, v in cell.options.items() if k.startswith(prefix)}
    recipe, method = cell.data.recipe, cell.method.label
    if line.measure == "best":
        return published.accuracy(recipe, method, options)
    return published.detection(recipe, method, line.measure, options)


def _paper_rows(line: _Line, cells: list[Entry], numbers: Sequence[Number | None]) -> list[list[str]]:
    """The paper's numbers, and how far ours is from each that is neither doubtful nor of another scale."""
    paper, difference = [], []
    for entry, number in zip(cells, numbers, strict=True):
        mean = entry.mean(line.measure)
        is_scaled = any(run.scaled for run in entry.runs)
        if number is None:
            paper.append(MISSING)
        elif is_scaled:
            paper.append(NOT_COMPARABLE)
        else:
            paper.append(f"{number.value:.{line.digits}f}{'?' if number.doubtful else ''}")
        if number is None or mean is None or is_scaled or number.doubtful:
            difference.append(MISSING)
        else:
            difference.append(f"{line.factor * mean - number.value:+.{line.digits}f}")
    return [["paper", *paper], ["minus paper", *difference]]


def _best(line: _Line, column: Sequence[Entry]) -> list[int]:
    """Positions of the highest mean, as it is printed; none where there is nothing to compare with."""
    means = [entry.mean(line.measure) for entry in column]
    there = [round(line.factor * mean, line.digits) for mean in means if mean is not None]
    if not line.best_is or len(there) < 2:
        return []
    return [
        k
        for k, mean in enumerate(means)
        if mean is not None and round(line.factor * mean, line.digits) == max(there)
    ]


def _bold_rows(shown: Sequence[tuple[_Line, list[Entry]] | None], labels: int) -> frozenset[tuple[int, int]]:
    """The best of each figure in each column, of a table whose rows are (line, entries)."""
    bold = set()
    for name in dict.fromkeys(row[0].name for row in shown if row is not None):
        rows = [(k, row) for k, row in enumerate(shown) if row is not None and row[0].name == name]
        for column in range(len(rows[0][1][1])):
            best = _best(rows[0][1][0], [row[1][column] for _, row in rows])
            bold |= {(rows[k][0], labels + column) for k in best}
    return frozenset(bold)


def _notes(grid: Grid, runs: Sequence[Run]) -> list[str]:
    """What a reader must know: how many seeds, what is scaled, what differs from the recipe, what failed."""
    count = len(grid.seeds)
    seeds = ", ".join(map(str, grid.seeds))
    spread = "mean ± standard deviation (n - 1) over" if count > 1 else "of"
    notes = [
        f"{'Figures are ' + spread} n = {count} seed{'s' * (count > 1)} ({seeds})"
        f"{'; a smaller n is stated in the cell' * (count > 1)}. Best epoch is chosen on the test images."
    ]
    if grid.table == "I":
        notes.append("TPR, FPR: share of the right and of the wrong labels that the method keeps as clean.")
    if grid.table != "plain":
        names = [f"{ABBREVIATIONS[m.label]} {m.label}" for m in grid.methods if m.label in ABBREVIATIONS]
        notes.append(f"Methods: {', '.join(names)}." if names else "")
        notes.append(
            "Paper: arXiv 1912.08741, one run each. `?` = a number that its text leaves doubtful, not compared."
        )
    scaled = _listed(runs, "scaled")
    if scaled:
        notes.append(f"Scaled runs, {NOT_COMPARABLE} with the paper: {'; '.join(scaled)}.")
    changed = _listed(runs, "changed")
    if changed:
        notes.append(f"Other settings than the recipe's: {'; '.join(changed)}.")
    precisions = collections.Counter(run.precision for run in runs if run.precision)
    if len(precisions) > 1:
        counts = ", ".join(
            f"{name} ({count} run{'s' * (count > 1)})" for name, count in sorted(precisions.items())
        )
        notes.append(f"Not all in one precision: {counts}.")
    unfinished = [run for run in runs if run.state.kind in ("missing", "stopped", "running")]
    if unfinished:
        notes.append(f"{len(unfinished)} of {len(runs)} runs are not finished.")
    for run in runs:
        if run.state.kind == "failed":
            cell = run.cell
            notes.append(
                f"Failed: {cell.name} (exit {run.state.code}): {run.state.error}; log {cell.name}.log"
            )
    return [note for note in notes if note]


def _listed(runs: Sequence[Run], what: str) -> list[str]:
    """Each setting once, with the methods it is of where these are not all."""
    methods: dict[str, list[str]] = {}
    finished: dict[str, None] = {}
    for run in runs:
        if run.state.kind == "done":
            finished[run.cell.method.label] = None
            values: Any = getattr(run, what)
            for text in values:
                names = methods.setdefault(text, [])
                if run.cell.method.label not in names:
                    names.append(run.cell.method.label)
    return [
        text if len(names) == len(finished) else f"{text} of {', '.join(names)}"
        for text, names in methods.items()
    ]
