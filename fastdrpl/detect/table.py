"""The comparison as aligned text, CSV and JSON."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fastdrpl.detect.comparison import Group, Row
from fastdrpl.errors import UserError
from fastdrpl.files import dump_json
from fastdrpl.report.table import printable

SCHEMA_VERSION = 1
Problems = Sequence[tuple[Path, UserError]]
_TEXT, _NUMBERS = 2, 6  # columns of text before those of numbers, digits behind the point in CSV


def render(format: Literal["text", "csv", "json"], groups: Sequence[Group], problems: Problems) -> str:
    """The comparison in one of the formats, ending with a new line; problems are in the JSON only."""
    if format == "json":
        return dump_json(to_json(groups, problems)).decode()
    return to_csv(groups) if format == "csv" else to_text(groups)


def to_text(groups: Sequence[Group]) -> str:
    """A table for each group: a run, then a line per detector; `*` marks the split that decided."""
    return "\n".join(_text_of_group(group) for group in groups)


def _text_of_group(group: Group) -> str:
    rate = f"{group.noisy / group.known:.1%} of {group.known:,} labels are wrong"
    head = f"labels {group.labels[:8]}: {group.samples:,} samples, {group.classes} classes, {rate}"
    ks = (*([group.noisy] if group.noisy else []), *group.ks)
    names = ("stage", "detector", "AUC", "AP", *(f"P@{k}" for k in ks), "kept", "TPR", "FPR")
    lines: list[Sequence[str] | str] = [names]
    run = None
    for row in group.rows:
        if row.run != run:
            run = row.run
            lines += ["", f"{printable(run)} ({row.method}, {row.recipe})"]
        precision = (*([row.precision_at_noisy] if group.noisy else []), *row.precision)
        lines.append(
            (
                f"{'*' if row.final else ' '} {row.stage or '-'}",
                row.detector,
                *(_fraction(value) for value in (row.auc, row.average_precision, *precision)),
                "-" if row.labelled is None else f"{row.labelled:,}",
                *(_fraction(value) for value in (row.tpr, row.fpr)),
            )
        )
    foot = ["* the split that decided which labels the run kept"] if any(r.final for r in group.rows) else []
    return "\n".join([head, "", *_align(lines), *foot]) + "\n"


def _align(lines: Sequence[Sequence[str] | str]) -> list[str]:
    """Rows of cells under each other, the first two to the left and numbers to the right; texts stay as they are."""
    rows = [line for line in lines if not isinstance(line, str)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    aligned = []
    for line in lines:
        if isinstance(line, str):
            aligned.append(line)
            continue
        cells = [
            cell.ljust(width) if k < _TEXT else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        aligned.append("  ".join(cells).rstrip())
    return aligned


def to_csv(groups: Sequence[Group]) -> str:
    """A line per detector; empty where something cannot be said."""
    ks = groups[0].ks if groups else ()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ("run", "method", "recipe", "stage", "detector", "final", "labels", "samples", "noisy")
    numbers = ("auc", "average_precision", "precision_at_noisy", *(f"precision_at_{k}" for k in ks))
    writer.writerow([*names, *numbers, "labelled", "tpr", "fpr"])
    for group in groups:
        for row in group.rows:
            shown = [row.auc, row.average_precision, row.precision_at_noisy, *row.precision]
            writer.writerow(
                [
                    *(printable(row.run), row.method, row.recipe, row.stage, row.detector),
                    *("yes" if row.final else "no", group.labels, group.samples, group.noisy),
                    *(_rounded(value) for value in shown),
                    *("" if row.labelled is None else row.labelled, _rounded(row.tpr), _rounded(row.fpr)),
                ]
            )
    return file.getvalue()


def to_json(groups: Sequence[Group], problems: Problems) -> dict[str, Any]:
    """Groups, their detectors, and what is missing."""
    return {
        "schema": SCHEMA_VERSION,
        "groups": [
            {
                "labels": group.labels,
                "samples": group.samples,
                "classes": group.classes,
                "known": group.known,
                "noisy": group.noisy,
                "notes": list(group.notes),
                "detectors": [_detector(row, group) for row in group.rows],
            }
            for group in groups
        ],
        "problems": [
            {
                "run": printable(str(path)),
                "what": problem.what,
                "where": problem.where,
                "fix": problem.fix,
                "exit_code": problem.exit_code,
            }
            for path, problem in problems
        ],
    }


def _detector(row: Row, group: Group) -> dict[str, Any]:
    return {
        "run": printable(row.run),
        "method": row.method,
        "recipe": row.recipe,
        "stage": row.stage or None,
        "detector": row.detector,
        "final": row.final,
        "auc": row.auc,
        "average_precision": row.average_precision,
        "precision_at_noisy": row.precision_at_noisy,
        "precision_at": {str(k): value for k, value in zip(group.ks, row.precision, strict=True)},
        "labelled": row.labelled,
        "tpr": row.tpr,
        "fpr": row.fpr,
    }


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.{_NUMBERS}f}"
