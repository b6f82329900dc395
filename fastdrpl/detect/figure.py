"""ROC curves with the operating points (arXiv 1912.08741, Fig. 3): a panel for each group of runs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastdrpl.detect.comparison import Group, Line, Row
from fastdrpl.figures.output import to_csv
from fastdrpl.figures.style import CYCLE, in_legend, render

POINTS = 2000  # of a curve: more cannot be told apart, and would make the SVG large
PANELS_IN_ROW = 2
_STYLES = ("-", "--", ":", "-.")  # of the detectors of a stage
_DOT: dict[str, Any] = {"marker": "o", "ms": 6, "ls": "", "mec": "black", "mew": 0.7, "zorder": 5}
_STAR: dict[str, Any] = {**_DOT, "marker": "*", "ms": 15, "zorder": 6}


def draw_roc(groups: Sequence[Group]) -> dict[str, bytes]:
    """The figure as the content of `roc.png` and `roc.svg`, the same for the same figures.

    x = share of the wrong labels that are kept (FPR), y = share of the right ones (TPR). A dot is where a detector
    splits the samples, a star the split that decided which labels a run kept. A stage has a colour, a detector a style.
    """
    across = min(PANELS_IN_ROW, len(groups))
    down = -(-len(groups) // across)
    longest = max(sum(_is_drawn(line) for line in group.lines) for group in groups)

    def paint(figure: Any) -> None:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel in panels[len(groups) :]:
            panel.set_axis_off()
        for panel, group in zip(panels, groups, strict=False):
            _draw_group(panel, group)

    return render("roc", (5.2 * across, (4.6 + 0.17 * longest) * down), paint)


def list_points(groups: Sequence[Group]) -> bytes:
    """The curves as they are drawn, as CSV: a line for each point."""
    header = ("labels", "run", "stage", "detector", "fpr", "tpr")
    return to_csv(header, (row for group in groups for line in group.lines for row in _points(group, line)))


def _points(group: Group, line: Line) -> Iterator[tuple[Any, ...]]:
    if line.curve is None or line.repeats:
        return
    row, few = line.row, _thin(len(line.curve.fpr))
    for fpr, tpr in zip(line.curve.fpr[few].tolist(), line.curve.tpr[few].tolist(), strict=True):
        yield group.labels[:8], row.run, row.stage, row.detector, fpr, tpr


def _draw_group(panel: Any, group: Group) -> None:
    panel.plot([0, 1], [0, 1], color="0.8", lw=0.8)
    stages = list(dict.fromkeys(_stage(line.row) for line in group.lines))
    drawn = dict.fromkeys(stages, 0)  # curves of each
    for line in group.lines:
        row, stage = line.row, _stage(line.row)
        colour = CYCLE[stages.index(stage) % len(CYCLE)]
        if _is_drawn(line) and line.curve is not None:
            few = _thin(len(line.curve.fpr))
            style = _STYLES[drawn[stage] % len(_STYLES)]
            drawn[stage] += 1
            panel.plot(
                line.curve.fpr[few], line.curve.tpr[few], style, color=colour, lw=1.3, label=_name(row)
            )
        if row.tpr is not None and row.fpr is not None:
            panel.plot([row.fpr], [row.tpr], color=colour, **(_STAR if row.final else _DOT))
    for marker, meaning, there in (
        (_DOT, "where a detector splits", any(row.tpr is not None and not row.final for row in group.rows)),
        (_STAR, "the split that decided", any(row.final for row in group.rows)),
    ):
        if there:
            panel.plot([], [], color="white", label=f" {meaning}", **marker)
    rate = f"{group.noisy / group.known:.1%} of {group.known:,} labels wrong"
    panel.set(
        title=f"{rate} ({group.labels[:8]})", xlabel="FPR: wrong labels kept", ylabel="TPR: right labels kept"
    )
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if any(drawn.values()):
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1, frameon=False)
    else:
        panel.text(0.5, 0.5, "right labels only, or wrong ones only: no curve", ha="center")


def _stage(row: Row) -> tuple[str, str]:
    """What has a colour of its own."""
    return row.run, row.stage


def _is_drawn(line: Line) -> bool:
    return line.curve is not None and not line.repeats


def _name(row: Row) -> str:
    auc = "" if row.auc is None else f", AUC {row.auc:.3f}"
    stage = f"{row.stage}, " if row.stage else ""
    return in_legend(f"{row.run}: {stage}{row.detector}{auc}")


def _thin(points: int) -> np.ndarray:
    """Which points of a curve are drawn: all, or `POINTS` evenly among them with both ends."""
    return np.unique(np.linspace(0, points - 1, min(points, POINTS)).round().astype(np.int64))
