"""ROC curves with the operating points (arXiv 1912.08741, Fig. 3): a panel for each group of runs."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdrpl.detect.comparison import Group, Line, Row
from fastdrpl.report.table import printable

POINTS = 2000  # of a curve: more cannot be told apart, and would make the SVG large
PANELS_IN_ROW = 2
_STYLES = ("-", "--", ":", "-.")  # of the detectors of a stage
_FEW_COLOURS = 10
_DOT: dict[str, Any] = {"marker": "o", "ms": 6, "ls": "", "mec": "black", "mew": 0.7, "zorder": 5}
_STAR: dict[str, Any] = {**_DOT, "marker": "*", "ms": 15, "zorder": 6}


def draw_roc(groups: Sequence[Group]) -> dict[str, bytes]:
    """The figure as the content of `roc.png` and `roc.svg`, the same for the same figures.

    x = share of the wrong labels that are kept (FPR), y = share of the right ones (TPR). A dot is where a detector
    splits the samples, a star the split that decided which labels a run kept. A stage has a colour, a detector a style.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(PANELS_IN_ROW, len(groups))
    down = -(-len(groups) // across)
    longest = max(sum(_is_drawn(line) for line in group.lines) for group in groups)
    figure = Figure(figsize=(6.4 * across, (5.2 + 0.17 * longest) * down), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    for panel, group in zip(panels, groups, strict=False):
        _draw_group(panel, group)
    made = {}
    # Without a date, and with names that do not depend on chance, the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "fastdrpl"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata=metadata)
            made[f"roc.{kind}"] = file.getvalue()
    return made


def _draw_group(panel: Any, group: Group) -> None:
    import matplotlib

    panel.plot([0, 1], [0, 1], color="0.8", lw=0.8)
    stages = list(dict.fromkeys(_stage(line.row) for line in group.lines))
    colours = matplotlib.colormaps["tab10" if len(stages) <= _FEW_COLOURS else "tab20"]
    drawn = dict.fromkeys(stages, 0)  # curves of each
    for line in group.lines:
        row, stage = line.row, _stage(line.row)
        colour = colours(stages.index(stage) % colours.N)
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
    """Neither a formula ($) nor a name that matplotlib leaves out (one that begins with _)."""
    auc = "" if row.auc is None else f", AUC {row.auc:.3f}"
    stage = f"{row.stage}, " if row.stage else ""
    return f" {printable(row.run)}: {stage}{row.detector}{auc}".replace("$", r"\$")


def _thin(points: int) -> np.ndarray:
    """Which points of a curve are drawn: all, or `POINTS` evenly among them with both ends."""
    return np.unique(np.linspace(0, points - 1, min(points, POINTS)).round().astype(np.int64))
