"""What the finished runs of a grid say: the figures of each run, and of each cell of a table over its seeds."""

import statistics
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl.compare.cells import Cell
from fastdrpl.compare.folder import State, state_of
from fastdrpl.compare.grid import flatten_table
from fastdrpl.errors import DataError
from fastdrpl.files import read_json

MEASURES = ("best", "last", "tpr", "fpr", "auc", "seconds", "noise_rate")
# What makes a run smaller than the paper's, beside the lengths of schedules.
_SCALE = ("epochs_scale", "limit", "limit_test", "model.width", "classes")
_LENGTHS = ("epochs", "milestones")
# What differs from run to run without making it another experiment.
_PLACES = (
    "recipe",
    "data",
    "run",
    "method",
    "seed",
    "track",
    "test_every",
)
_PLACES_SECTIONS = ("noise.", "engine.", "checkpoint.")


@dataclass(frozen=True)
class Run:
    """A cell of the grid with the figures of its run: fractions and seconds, None where there are none."""

    cell: Cell
    state: State
    figures: dict[str, float | None]  # by the names in MEASURES
    scaled: tuple[str, ...] = ()  # `field = value (recipe: value)`: it is smaller than its recipe says
    changed: tuple[str, ...] = ()  # the same, of other settings
    precision: str = ""  # in which it was computed; empty where that is not known


@dataclass(frozen=True)
class Entry:
    """One cell of a table: the runs of a method under a noise, over all seeds."""

    runs: tuple[Run, ...]

    def values(self, measure: str) -> list[float]:
        """The figures that are there, in the order of the seeds."""
        found = (run.figures.get(measure) for run in self.runs if run.state.kind == "done")
        return [value for value in found if value is not None]

    def mean(self, measure: str) -> float | None:
        values = self.values(measure)
        return statistics.fmean(values) if values else None

    def deviation(self, measure: str) -> float | None:
        """Standard deviation (n - 1) over seeds; None for fewer than two."""
        values = self.values(measure)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def failed(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state.kind == "failed")


Entries = dict[tuple[str, str, str], Entry]  # by the labels of data set, method and noise


def read_runs(out: Path, cells: Iterable[Cell]) -> list[Run]:
    """The figures of all cells. Raises DataError for a damaged result.json or config.toml."""
    defaults: dict[tuple[str, str], dict[str, Any]] = {}
    return [_read_run(out, cell, defaults) for cell in cells]


def entries_of(runs: Iterable[Run]) -> Entries:
    """Runs by data set, method and noise."""
    grouped: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        cell = run.cell
        grouped.setdefault((cell.data.label, cell.method.label, cell.noise.label), []).append(run)
    return {key: Entry(tuple(group)) for key, group in grouped.items()}


def detection_of(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of the split that a result's `suspects` counts: of the last stage that decides.

    The last stage of a method may be looked at only for show; then an earlier one has decided. Empty without any.
    """
    found = [
        stage["detection"] for stage in result["stages"] if stage.get("decides") and stage.get("detection")
    ]
    return dict((found or [{}])[-1])


def _read_run(out: Path, cell: Cell, defaults: dict[tuple[str, str], dict[str, Any]]) -> Run:
    state = state_of(out, cell)
    if state.kind != "done":
        return Run(cell, state, {})
    file = cell.folder(out) / "result.json"
    result = read_json(file)
    try:
        found = detection_of(result)
        figures = {
            "best": result["accuracy"]["best"],
            "last": result["accuracy"]["last"],
            "tpr": found.get("tpr"),
            "fpr": found.get("fpr"),
            "auc": found.get("auc"),
            "seconds": sum(stage["seconds"] for stage in result["stages"]),
            "noise_rate": result.get("noise_rate"),
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"not the result of a run: {error!r}", where=str(file)) from error
    scaled, changed = _differences(cell, _settings(cell.folder(out) / "config.toml"), defaults)
    return Run(cell, state, figures, scaled, changed, result.get("machine", {}).get("precision", ""))


def _settings(file: Path) -> dict[str, Any]:
    try:
        return flatten_table(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the configuration of a run: {error}", where=str(file)) from error


def _differences(
    cell: Cell, settings: dict[str, Any], defaults: dict[tuple[str, str], dict[str, Any]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where a run's settings differ from its recipe's: (in its scale, in other things)."""
    key = (cell.data.recipe, cell.method.value)
    if key not in defaults:
        from fastdrpl.cli import parse_training
        from fastdrpl.config_file import to_table

        defaults[key] = flatten_table(to_table(parse_training([cell.data.recipe, "--method", key[1]])))
    recipe = defaults[key]
    scaled: list[str] = []
    changed: list[str] = []
    for name in sorted(settings.keys() & recipe.keys()):
        if settings[name] == recipe[name] or name in _PLACES or name.startswith(_PLACES_SECTIONS):
            continue
        text = f"{name} = {_short(settings[name])} (recipe: {_short(recipe[name])})"
        last = name.rpartition(".")[2]
        is_scale = name in _SCALE or last in _LENGTHS or last.endswith("_epochs")
        (scaled if is_scale else changed).append(text)
    return tuple(scaled), tuple(changed)


def _short(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
