"""The losses of a stage as a histogram, with the fitted mixture over it."""

import io
from pathlib import Path

import numpy as np

from fastdrpl.detection import Detection
from fastdrpl.files import write_atomic
from fastdrpl.labels import Labels

_BINS = 80


def draw_histogram(
    path: Path, losses: np.ndarray, detection: Detection, labels: Labels, *, title: str, gamma: float
) -> None:
    """Write a PNG: losses (N,) in two colours where the truth is known, the two beta components, the threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.stats import beta

    fit = detection.fit
    finite = np.where(np.isfinite(losses), losses, np.max(losses[np.isfinite(losses)], initial=0.0))
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
    span = fit.high - fit.low
    if span > 0 and not detection.fit.warnings:
        u = np.linspace(1e-3, 1 - 1e-3, 400)
        counted = len(finite) * (edges[1] - edges[0]) / span
        for k, style in ((0, "-"), (1, "--")):
            density = fit.weight[k] * beta.pdf(u, fit.alpha[k], fit.beta[k]) * counted
            axes.plot(
                fit.low + u * span,
                density,
                style,
                color="black",
                lw=1.2,
                label=("clean", "noisy")[k] + " component",
            )
    kept = losses[detection.labelled]
    if len(kept) < len(losses):
        axes.axvline(kept.max(initial=0.0), color="tab:green", lw=1.2, label=f"posterior {gamma:g}")
    axes.set(title=title, xlabel="loss", ylabel="samples", yscale="symlog")
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    write_atomic(path, file.getvalue())
