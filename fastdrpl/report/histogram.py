"""The losses of a stage as a histogram, with the fitted mixture over it."""

import io
from pathlib import Path

import numpy as np

from fastdrpl.detection import Detection
from fastdrpl.files import write_atomic
from fastdrpl.labels import Labels

_BINS = 80


def draw_histogram(path: Path, found: Detection, labels: Labels, *, title: str) -> None:
    """Write a PNG: the doubt (N,) in two colours where the truth is known, the fitted densities, the threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    doubt = found.doubt
    finite = np.where(np.isfinite(doubt), doubt, np.max(doubt[np.isfinite(doubt)], initial=0.0))
    edges = np.linspace(finite.min(), max(finite.max(), finite.min() + 1e-6), _BINS + 1)
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    noisy, known = labels.is_noisy
    groups = [("right label", finite[known & ~noisy], "tab:blue"), ("wrong label", finite[noisy], "tab:red")]
    if not known.all():
        groups.append(("unknown", finite[~known], "tab:gray"))
    for name, values, colour in groups:
        if len(values):
            axes.hist(values, edges.tolist(), color=colour, alpha=0.45, label=f"{name} ({len(values):,})")
    for curve, style in zip(found.evidence.curves(), ("-", "--", ":", "-."), strict=False):
        counted = curve.density * len(finite) * (edges[1] - edges[0])
        axes.plot(curve.x, counted, style, color="black", lw=1.2, label=curve.name)
    kept = doubt[found.labelled]
    if len(kept) < len(doubt):
        at = f"posterior {found.threshold:g}" if found.measure == "loss" else "kept up to here"
        axes.axvline(kept.max(initial=0.0), color="tab:green", lw=1.2, label=at)
    axes.set(title=title, xlabel=found.measure, ylabel="samples", yscale="symlog")
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    write_atomic(path, file.getvalue())
