"""The losses of a stage as counts, with the densities that its detector fitted."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastdrpl.detect.stage_files import read_split
from fastdrpl.detection import Curve
from fastdrpl.labels import NoisyLabels

BINS = 80


@dataclass(frozen=True, eq=False)
class Heap:
    """A group of samples: `counts` (bins,) of them between the edges."""

    name: str  # right, wrong or unknown
    counts: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many samples."""
        return int(self.counts.sum())


@dataclass(frozen=True, eq=False)
class LossFacts:
    """What a stage's detector saw: `edges` (bins + 1,) of the doubt, the groups, the expected counts of each fit."""

    stage: str
    measure: str  # what the doubt is: "loss", "normalised loss", ...
    edges: npt.NDArray[np.float64]
    heaps: tuple[Heap, ...]
    curves: tuple[Curve, ...]  # scaled: samples in a bin
    cut: float | None  # up to here labels were kept; None where all were


def read_losses_of(stage: Path, is_noisy: NoisyLabels) -> LossFacts | None:
    """The evidence in a stage's folder; None where it has none. Raises `DataError` for damaged files."""
    noisy, known = is_noisy
    split = read_split(stage, len(noisy), required=False)
    if split is None:
        return None
    doubt = split.doubt
    top = float(np.max(doubt[np.isfinite(doubt)], initial=0.0))
    finite = np.where(np.isfinite(doubt), doubt, top)  # infinite ones count as the largest
    low = float(finite.min())
    edges = np.linspace(low, max(top, low + 1e-6), BINS + 1)
    groups = (("right", known & ~noisy), ("wrong", noisy), ("unknown", ~known))
    kept = finite[split.labelled]
    in_a_bin = len(doubt) * (edges[1] - edges[0])
    return LossFacts(
        stage=stage.name,
        measure=split.measure,
        edges=edges,
        heaps=tuple(
            Heap(name, np.histogram(finite[group], edges)[0]) for name, group in groups if group.any()
        ),
        curves=tuple(Curve(curve.name, curve.x, curve.density * in_a_bin) for curve in split.curves),
        cut=float(kept.max()) if 0 < len(kept) < len(doubt) else None,
    )
