"""Losses of clean and of noisy samples as histograms (Fig. 1 and 2): a row for each run, a column for each moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrpl.figures.loss_files import LossRun, finite, moments
from fastdrpl.figures.output import to_csv
from fastdrpl.figures.style import BLUE, GREY, SKY, VERMILLION, arrange, legible, render

BINS = 50
COLOURS = {"clean": BLUE, "noisy": VERMILLION, "unknown": GREY, "all": SKY}
_SHOWN = 0.995  # of the samples lie within the axis; those above are counted in the last bin
_TITLE = 34  # characters


@dataclass(frozen=True, eq=False)
class LossPanel:
    """Histograms of one run at one moment: counts (bins,) of each kind of sample, over common edges (bins + 1,)."""

    run: str
    noise: str
    stage: str
    moment: str
    epoch: int | None
    edges: npt.NDArray[np.float64]
    counts: dict[str, npt.NDArray[np.int64]]


def loss_panels(run: LossRun) -> list[LossPanel]:
    """The moments of a run in order. Raises DataError for a damaged file."""
    panels = []
    for stage in run.stages:
        for words, epoch, losses in moments(stage, len(run.labels)):
            values = finite(losses)
            low, high = float(values.min()), float(np.quantile(values, _SHOWN))
            edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
            inside = np.minimum(values, edges[-1])
            counts = {name: np.histogram(inside[mask], edges)[0] for name, mask in run.groups}
            panels.append(LossPanel(run.name, run.noise, stage.name, words, epoch, edges, counts))
    return panels


def draw_losses(rows: Sequence[Sequence[LossPanel]]) -> dict[str, bytes]:
    """`losses.png`, `losses.svg` and `losses.csv` of the panels of each run."""
    flat = [panel for row in rows for panel in row]
    down, across, places = arrange([len(row) for row in rows])
    alone = len(flat) == len(rows)

    def paint(figure: Any) -> None:
        grid = figure.subplots(down, across, squeeze=False)
        for empty in grid.ravel():
            empty.set_axis_off()
        for (row, column), panel in zip(places, flat, strict=True):
            _draw_panel(grid[row, column], panel, first=column == 0, named=column == 0 or alone)
        kinds = list(dict.fromkeys(name for panel in flat for name in panel.counts))
        patches = [_patch(COLOURS[name], f"{name} samples") for name in kinds]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))

    files = render("losses", (2.9 * across, 2.35 * down + 0.4), paint)
    return files | {"losses.csv": _numbers(flat)}


def _draw_panel(place: Any, panel: LossPanel, *, first: bool, named: bool) -> None:
    place.set_axis_on()
    for name, counts in panel.counts.items():
        share = 100 * counts / max(int(counts.sum()), 1)
        place.stairs(share, panel.edges, fill=True, color=COLOURS[name], alpha=0.35)
        place.stairs(share, panel.edges, color=COLOURS[name], lw=1.1)
    when = panel.moment + ("" if panel.epoch is None else f" (epoch {panel.epoch})")
    place.set_title(
        f"{title_of(panel.run, panel.noise)}\n{when}" if named else when, loc="left", fontsize=8.5
    )
    place.set(xlabel="loss to the given label", xlim=(panel.edges[0], panel.edges[-1]), ylim=(0, None))
    if first:
        place.set_ylabel("% of the samples of a kind")


def title_of(run: str, noise: str) -> str:
    """The name of a run, and under it what is known of its noise."""
    return f"{legible(run, _TITLE)}\n{legible(noise)}"


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, alpha=0.6, edgecolor=colour, label=label)


def _numbers(panels: Sequence[LossPanel]) -> bytes:
    header = ("run", "noise", "stage", "moment", "epoch", "kind", "low", "high", "count", "share")
    rows = []
    for panel in panels:
        about = (panel.run, panel.noise, panel.stage, panel.moment, panel.epoch)
        for kind, counts in panel.counts.items():
            share = (counts / max(int(counts.sum()), 1)).tolist()
            edges = panel.edges.tolist()
            rows += [
                (*about, kind, *line)
                for line in zip(edges[:-1], edges[1:], counts.tolist(), share, strict=True)
            ]
    return to_csv(header, rows)
