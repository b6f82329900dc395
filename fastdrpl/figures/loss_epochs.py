"""How the losses develop (Fig. 1 and 2): medians and bands of clean and noisy samples over the epochs of each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdrpl.detect.stage_files import read_column
from fastdrpl.figures.loss_files import LossRun, LossStage, finite
from fastdrpl.figures.losses import COLOURS, title_of
from fastdrpl.figures.output import to_csv
from fastdrpl.figures.style import GREEN, PURPLE, arrange, legible, render

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_MEDIAN = QUANTILES.index(0.5)
_IN_SIGHT = 0.8  # of the epochs lie within the axis: the first ones of a stage tower over the others


@dataclass(frozen=True)
class EpochLosses:
    """After one epoch: `number` counts over all stages from 1. `agreement` and `accuracy` are fractions or None.

    `spread`: for each kind of sample how many there are, and the quantiles of their losses.
    """

    stage: str
    epoch: int
    number: int
    spread: dict[str, tuple[int, tuple[float, ...]]]
    agreement: float | None  # of the network with its targets in training
    accuracy: float | None  # on the test images


def epoch_losses(run: LossRun) -> list[EpochLosses]:
    """Every epoch whose losses were kept, one file at a time. Raises DataError for a damaged file."""
    told = {(record.get("stage"), record.get("epoch")): record for record in run.journal}
    found: list[EpochLosses] = []
    for stage in run.stages:
        for epoch, path in enumerate(stage.epochs, start=1):
            values = finite(read_column(path, len(run.labels)))
            spread = {
                name: (int(mask.sum()), tuple(map(float, np.quantile(values[mask], QUANTILES))))
                for name, mask in run.groups
            }
            record = told.get((stage.name, epoch), {})
            figures = (_number(record.get("agreement")), _number(record.get("test_accuracy")))
            found.append(EpochLosses(stage.name, epoch, len(found) + 1, spread, *figures))
    return found


def draw_epochs(runs: Sequence[tuple[LossRun, list[EpochLosses]]]) -> dict[str, bytes]:
    """`loss_epochs.png`, `.svg` and `.csv`: losses above, agreement with the targets and test accuracy below."""
    down, across, places = arrange([1] * len(runs))

    def paint(figure: Any) -> None:
        grid = figure.subplots(2 * down, across, squeeze=False, height_ratios=[1.7, 1] * down)
        for place in grid.ravel():
            place.set_axis_off()
        for (row, column), (run, epochs) in zip(places, runs, strict=True):
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            below.sharex(above)
            _draw_losses(above, run, epochs)
            _draw_accuracy(below, epochs)
            for place in (above, below):
                place.set_axis_on()
                _mark_stages(place, run.stages, epochs, named=place is above)
            if column == 0:
                above.set_ylabel("loss to the given label")
                below.set_ylabel("%")
        handles = dict(zip(*reversed(_all_handles(grid)), strict=True))
        figure.legend(
            handles=list(handles.values()),
            labels=list(handles),
            loc="outside lower center",
            ncols=4 if across > 1 else 2,
        )

    files = render("loss_epochs", ((4.4 if across < 3 else 3.5) * across, 3.9 * down + 0.5), paint)
    return files | {"loss_epochs.csv": _numbers(runs)}


def _draw_losses(place: Any, run: LossRun, epochs: Sequence[EpochLosses]) -> None:
    at = [epoch.number for epoch in epochs]
    for name, _ in run.groups:
        bands = np.array([epoch.spread[name][1] for epoch in epochs]).T
        colour = COLOURS[name]
        place.fill_between(at, bands[0], bands[-1], color=colour, alpha=0.15, lw=0, label=f"{name}: 10-90 %")
        place.fill_between(at, bands[1], bands[-2], color=colour, alpha=0.25, lw=0, label=f"{name}: 25-75 %")
        place.plot(at, bands[_MEDIAN], color=colour, lw=1.6, label=f"{name}: median")
    place.set_title(title_of(run.name, run.noise), loc="left")
    place.tick_params(labelbottom=False)
    outer = np.array([[(each[0], each[-1]) for _, each in epoch.spread.values()] for epoch in epochs])
    top = 1.3 * max(float(np.quantile(outer[..., 1].max(1), _IN_SIGHT)), 1e-6)
    lowest = float(outer[..., 0].min())
    place.set_ylim(0 if lowest < top / 3 else 0.9 * lowest, top)


def _draw_accuracy(place: Any, epochs: Sequence[EpochLosses]) -> None:
    from matplotlib.ticker import MaxNLocator

    for values, colour, label in (
        ([epoch.agreement for epoch in epochs], GREEN, "agreement with the targets in training"),
        ([epoch.accuracy for epoch in epochs], PURPLE, "test accuracy"),
    ):
        there = [(e.number, 100 * v) for e, v in zip(epochs, values, strict=True) if v is not None]
        if there:
            few = "o" if len(there) < 3 else ""
            place.plot(*zip(*there, strict=True), color=colour, lw=1.4, marker=few, ms=4, label=label)
    place.set(xlabel="epoch")
    place.set_ylim(0, min(100.0, 1.2 * place.get_ylim()[1]))
    place.margins(x=0.01)
    place.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark_stages(
    place: Any, stages: Sequence[LossStage], epochs: Sequence[EpochLosses], *, named: bool
) -> None:
    """A line where a stage ends, a dotted one where the labels begin to be replaced."""
    for stage in stages:
        own = [epoch.number for epoch in epochs if epoch.stage == stage.name]
        if not own:
            continue
        if own[-1] != epochs[-1].number:
            place.axvline(own[-1] + 0.5, color="0.35", lw=0.9)
        if stage.given_epochs is not None and 0 < stage.given_epochs < len(own):
            place.axvline(own[0] + stage.given_epochs - 0.5, color="0.35", lw=0.9, ls=":")
        if named:
            ends = place.get_xaxis_transform()
            place.text(own[0], 1.0, legible(stage.name), transform=ends, ha="left", va="top", fontsize=8)


def _all_handles(grid: Any) -> tuple[list[Any], list[str]]:
    pairs = [place.get_legend_handles_labels() for place in grid.ravel()]
    return [h for handles, _ in pairs for h in handles], [label for _, labels in pairs for label in labels]


def _numbers(runs: Sequence[tuple[LossRun, list[EpochLosses]]]) -> bytes:
    quantiles = tuple(f"p{round(100 * q)}" for q in QUANTILES)
    header = ("run", "noise", "stage", "epoch", "kind", "samples", *quantiles, "agreement", "test_accuracy")
    return to_csv(
        header,
        (
            (run.name, run.noise, epoch.stage, epoch.epoch, kind, samples, *values, *_accuracies(epoch))
            for run, epochs in runs
            for epoch in epochs
            for kind, (samples, values) in epoch.spread.items()
        ),
    )


def _accuracies(epoch: EpochLosses) -> tuple[float | None, float | None]:
    return epoch.agreement, epoch.accuracy


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
