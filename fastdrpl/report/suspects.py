"""The suspects of a run as columns, and what they say as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow

PRECISION_AT = (20, 100, 1000)


@dataclass(frozen=True)
class PairFacts:
    """Two classes that are mixed up: how many suspects were given the one and look like the other."""

    given: int
    suggested: int
    suspects: int


@dataclass(frozen=True)
class QualityFacts:
    """How good the list of suspects is, over samples whose right class is known; None where nothing can be said."""

    precision: float | None  # share of the suspects whose label is wrong
    recall: float | None  # share of the wrong labels that are suspects
    suggestion: (
        float | None
    )  # share of the suspects with a wrong label whose suggested class is the right one
    first: tuple[tuple[int, float], ...]  # k, share of wrong labels among the k most doubtful suspects


def suspects_of(table: pyarrow.Table) -> pyarrow.Table:
    """The rows of the suspects, the most doubtful first."""
    chosen = np.flatnonzero(~table["labelled"].to_numpy())
    return table.take(chosen[np.argsort(table["rank"].to_numpy()[chosen], kind="stable")])


def pairs_of(suspects: pyarrow.Table, classes: int) -> tuple[PairFacts, ...]:
    """All pairs (given, suggested) of the suspects, the most frequent first; a pair of one class is among them."""
    pair = suspects["given"].to_numpy().astype(np.int64) * classes + suspects["suggested"].to_numpy()
    found, counts = np.unique(pair, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple(
        PairFacts(*divmod(int(k), classes), int(n)) for k, n in zip(found[order], counts[order], strict=True)
    )


def quality_of(table: pyarrow.Table, suspects: pyarrow.Table) -> QualityFacts | None:
    """Precision and recall; None where no right class is known (or the table is of a run whose truth was lost)."""
    if "is_noisy" not in table.column_names:
        return None
    noisy, known = _noisy(table)
    if not known.any():
        return None
    wrong, known_suspect = _noisy(suspects)
    right = suspects["suggested"].to_numpy() == suspects["truth"].to_numpy(zero_copy_only=False)
    judged = wrong[known_suspect]
    return QualityFacts(
        precision=_share(judged),
        recall=int(wrong.sum()) / int(noisy.sum()) if noisy.any() else None,
        suggestion=_share(right[wrong]),
        first=tuple((k, float(judged[:k].mean())) for k in PRECISION_AT if k <= len(judged)),
    )


def _noisy(table: pyarrow.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    column = table["is_noisy"]
    known = column.is_valid().to_numpy(zero_copy_only=False)
    return column.fill_null(False).to_numpy(zero_copy_only=False) & known, known


def _share(values: npt.NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def suspects_per_class(pairs: Sequence[PairFacts], classes: int) -> npt.NDArray[np.int64]:
    """How many suspects each given class has: (C,)."""
    counts = np.zeros(classes, np.int64)
    for pair in pairs:
        counts[pair.given] += pair.suspects
    return counts
