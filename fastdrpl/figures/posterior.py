"""The posterior over the loss (Fig. 2, right): what was fitted to it, and how sure the detector is at each loss."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrpl.figures.loss_files import LossRun, LossStage, finite
from fastdrpl.figures.losses import BINS, COLOURS, title_of
from fastdrpl.figures.output import to_csv
from fastdrpl.figures.style import GREEN, PURPLE, arrange, legible, render

_POINTS = 400  # of the posterior: more cannot be told apart
_STYLES = ("-", "--", ":", "-.")
Column = npt.NDArray[np.float64]


def judged(run: LossRun) -> list[LossStage]:
    """The stages of a run that made a detection."""
    return [stage for stage in run.stages if stage.split is not None]


def draw_posterior(runs: Sequence[LossRun]) -> dict[str, bytes]:
    """`posterior.png`, `.svg` and `.csv`: a row for each run, a column for each detection."""
    panels = [(run, stage) for run in runs for stage in judged(run)]
    down, across, places = arrange([len(judged(run)) for run in runs])
    alone = len(panels) == len(runs)

    def paint(figure: Any) -> None:
        grid = figure.subplots(down, across, squeeze=False)
        for empty in grid.ravel():
            empty.set_axis_off()
        handles: dict[str, Any] = {}
        for (row, column), (run, stage) in zip(places, panels, strict=True):
            place = grid[row, column]
            other = _draw_panel(place, run, stage, named=column == 0 or alone)
            for axes in (place, other):
                found = axes.get_legend_handles_labels()
                handles |= dict(zip(found[1], found[0], strict=True))
            if column == 0:
                place.set_ylabel("samples")
        figure.legend(
            handles=list(handles.values()),
            labels=list(handles),
            loc="outside lower center",
            ncols=2 if across == 1 else 4,
        )

    files = render("posterior", (3.7 * across, 2.7 * down + 0.5), paint)
    return files | {"posterior.csv": _numbers(runs)}


def histogram(run: LossRun, stage: LossStage) -> tuple[Column, dict[str, npt.NDArray[np.int64]]]:
    """Edges (bins + 1,) of the whole range of the doubt, and the counts (bins,) of each kind of sample."""
    if stage.split is None:
        raise ValueError(f"the stage {stage.name!r} has no detection")
    values = finite(stage.split.doubt)
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    return edges, {name: np.histogram(values[mask], edges)[0] for name, mask in run.groups}


def posterior_curve(stage: LossStage) -> tuple[Column, Column]:
    """Doubt, rising, and p_noisy of the samples that have it: (n,), (n,), both ends and points evenly between."""
    if stage.split is None:
        raise ValueError(f"the stage {stage.name!r} has no detection")
    order = np.argsort(finite(stage.split.doubt), kind="stable")
    few = order[np.unique(np.linspace(0, len(order) - 1, min(_POINTS, len(order))).round().astype(np.int64))]
    return finite(stage.split.doubt)[few], stage.split.p_noisy[few]


def _draw_panel(place: Any, run: LossRun, stage: LossStage, *, named: bool) -> Any:
    place.set_axis_on()
    edges, counts = histogram(run, stage)
    for name, values in counts.items():
        place.stairs(values, edges, fill=True, color=COLOURS[name], alpha=0.45, label=f"{name} samples")
    scale = len(run.labels) * (edges[1] - edges[0])
    tallest = max(int(values.max()) for values in counts.values())
    for curve, style in zip(stage.curves, _STYLES, strict=False):
        place.plot(curve.x, curve.density * scale, style, color="black", lw=1.1, label=curve.name)
    place.set_ylim(0, 1.15 * tallest)  # a density may have a pole
    when = f"after {legible(stage.name)}"
    place.set_title(f"{title_of(run.name, run.noise)}\n{when}" if named else when, loc="left", fontsize=8.5)
    place.set(xlabel="loss to the given label" if stage.measure == "loss" else stage.measure)
    other = place.twinx()
    other.plot(*posterior_curve(stage), color=GREEN, lw=1.6, label="p(noisy)")
    if stage.gamma is not None:
        other.axhline(stage.gamma, color=PURPLE, lw=1.0, ls="--", label="kept below this p(noisy)")
    other.set(ylim=(0, 1.04), ylabel="p(noisy)")
    other.spines["right"].set_visible(True)
    return other


def _numbers(runs: Sequence[LossRun]) -> bytes:
    header = ("run", "noise", "stage", "series", "x", "value")
    return to_csv(header, (row for run in runs for stage in judged(run) for row in _rows(run, stage)))


def _rows(run: LossRun, stage: LossStage) -> Iterator[tuple[Any, ...]]:
    """Counts at the middle of each bin, densities (their integral is a share of the samples), p_noisy, gamma."""
    edges, counts = histogram(run, stage)
    series: list[tuple[str, Column, npt.NDArray[Any]]] = [
        (f"count of {name} samples", (edges[:-1] + edges[1:]) / 2, n) for name, n in counts.items()
    ]
    series += [(f"density of the {curve.name}", curve.x, curve.density) for curve in stage.curves]
    series.append(("p_noisy", *posterior_curve(stage)))
    for name, x, values in series:
        for at, value in zip(x.tolist(), values.tolist(), strict=True):
            yield run.name, run.noise, stage.name, name, at, value
    if stage.gamma is not None:
        yield run.name, run.noise, stage.name, "gamma", None, stage.gamma
