"""The figures of every detector of every run, in groups of runs over the same labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdrpl.detect.collecting import FoundRun, Score
from fastdrpl.detection_metrics import (
    RocCurve,
    average_precision,
    detection_metrics,
    precision_at,
    roc_curve,
)


@dataclass(frozen=True)
class Row:
    """What one detector achieves, as fractions; None where it cannot be said.

    `tpr`, `fpr`: share of the clean and of the noisy samples that its split keeps (arXiv 1912.08741, Table I);
    `auc` the area under the curve of both. `average_precision` and `precision` count noisy samples among the most
    doubtful: `precision_at_noisy` among as many as are noisy, `precision` among the first k of the group's `ks`.
    """

    run: str
    method: str
    recipe: str
    stage: str
    detector: str
    final: bool
    auc: float | None
    average_precision: float | None
    precision_at_noisy: float | None
    precision: tuple[float | None, ...]
    labelled: int | None  # samples that keep their label
    tpr: float | None
    fpr: float | None


@dataclass(frozen=True)
class Line:
    """A row as a curve: what a figure draws."""

    row: Row
    curve: RocCurve | None
    repeats: bool  # the same doubt as that of a line before it, of the same run


@dataclass(frozen=True)
class Group:
    """Runs over the same labels."""

    labels: str  # their fingerprint
    samples: int
    classes: int
    known: int  # samples of known truth
    noisy: int  # of those, how many are wrong
    ks: tuple[int, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The figures alone."""
        return tuple(line.row for line in self.lines)


def compare(runs: Sequence[FoundRun], ks: Sequence[int]) -> tuple[Group, ...]:
    """The groups in the order in which their labels come first; `ks`: where precision is asked for."""
    by_labels: dict[str, list[FoundRun]] = {}
    for run in runs:
        by_labels.setdefault(run.labels.fingerprint, []).append(run)
    return tuple(_group(name, members, tuple(ks)) for name, members in by_labels.items())


def _group(fingerprint: str, runs: list[FoundRun], ks: tuple[int, ...]) -> Group:
    labels = runs[0].labels
    noisy, known = labels.is_noisy
    lines = [line for run in runs for line in _lines(run, ks)]
    notes = [note for run in runs for score in run.scores for note in score.notes]
    if not known.all():
        notes.append(
            f"{len(labels) - int(known.sum())} of {len(labels)} samples are of unknown truth: not judged"
        )
    return Group(
        labels=fingerprint,
        samples=len(labels),
        classes=len(labels.class_names),
        known=int(known.sum()),
        noisy=int(noisy.sum()),
        ks=ks,
        lines=tuple(lines),
        notes=tuple(dict.fromkeys(notes)),
    )


def _lines(run: FoundRun, ks: tuple[int, ...]) -> list[Line]:
    lines: list[Line] = []
    drawn: set[bytes] = set()
    for score in run.scores:
        doubt = hashlib.sha256(score.doubt.tobytes()).digest()
        lines.append(Line(_row(run, score, ks), roc_curve(score.doubt, run.labels.is_noisy), doubt in drawn))
        drawn.add(doubt)
    return lines


def _row(run: FoundRun, score: Score, ks: tuple[int, ...]) -> Row:
    is_noisy = run.labels.is_noisy
    noisy = int(is_noisy.noisy.sum())
    has_split = score.labelled is not None
    # Without a split nothing but the area is asked for, which any split gives.
    kept = score.labelled if score.labelled is not None else np.zeros(len(score.doubt), bool)
    split = detection_metrics(kept, score.doubt, is_noisy)
    return Row(
        run=str(run.path),
        method=run.method,
        recipe=run.recipe,
        stage=score.stage,
        detector=score.detector,
        final=score.final,
        auc=split["auc"],
        average_precision=average_precision(score.doubt, is_noisy),
        precision_at_noisy=precision_at(noisy, score.doubt, is_noisy) if noisy else None,
        precision=tuple(precision_at(k, score.doubt, is_noisy) for k in ks),
        labelled=split["labelled"] if has_split else None,
        tpr=split["tpr"] if has_split else None,
        fpr=split["fpr"] if has_split else None,
    )
