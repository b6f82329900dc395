"""ROC curves with the operating points (arXiv 1912.08741, Fig. 3): a panel for each group of runs."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdrpl.detect.comparison import Group, Line, Row
from fastdrpl.report.table import printable

POINTS = 2000  # of a curve: more cannot be told apart, and would make the SVG large
PANELS_IN_ROW = 2
_STYLES = ("-", "--", ":", "-.")
_COLOURS = 10  # of matplotlib's cycle


def draw_roc(groups: Sequence[Group]) -> dict[str, bytes]:
    """The figure as the content of `roc.png` and `roc.svg`, the same for the same figures.

    x = share of the wrong labels that are kept (FPR), y = share of the right ones (TPR). A dot is where a detector
    splits the samples, a star the split that decided which labels a run kept. Detectors of one run share a colour.
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
    panel.plot([0, 1], [0, 1], color="0.8", lw=0.8)
    runs = list(dict.fromkeys(row.run for row in group.rows))
    styles = dict.fromkeys(runs, 0)
    for line in group.lines:
        row, colour = line.row, f"C{runs.index(line.row.run) % _COLOURS}"
        if _is_drawn(line) and line.curve is not None:
            few = _thin(len(line.curve.fpr))
            style = _STYLES[styles[row.run] % len(_STYLES)]
            styles[row.run] += 1
            panel.plot(
                line.curve.fpr[few], line.curve.tpr[few], style, color=colour, lw=1.3, label=_name(row)
            )
        if row.tpr is not None and row.fpr is not None:
            star = {"marker": "*", "ms": 15} if row.final else {"marker": "o", "ms": 6}
            panel.plot([row.fpr], [row.tpr], ls="", color=colour, mec="black", mew=0.7, zorder=5, **star)
    rate = f"{group.noisy / group.known:.1%} of {group.known:,} labels wrong"
    panel.set(
        title=f"{rate} ({group.labels[:8]})", xlabel="FPR: wrong labels kept", ylabel="TPR: right labels kept"
    )
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if styles and any(styles.values()):
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1, frameon=False)
    else:
        panel.text(0.5, 0.5, "right labels only, or wrong ones only: no curve", ha="center")


def _is_drawn(line: Line) -> bool:
    return line.curve is not None and not line.repeats


def _name(row: Row) -> str:
    """Without $, which matplotlib would read as the beginning of a formula."""
    auc = "" if row.auc is None else f", AUC {row.auc:.3f}"
    return f"{printable(row.run)}: {row.stage or row.method}, {row.detector}{auc}".replace("$", r"\$")


def _thin(points: int) -> np.ndarray:
    """Which points of a curve are drawn: all, or `POINTS` evenly among them with both ends."""
    return np.unique(np.linspace(0, points - 1, min(points, POINTS)).round().astype(np.int64))
