"""The end of a run for a human reader: what was trained, how well it does, which labels look wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_SUSPECTS = 8


def print_summary(folder: Path, result: dict[str, Any], labels: pyarrow.Table) -> None:
    """Print to standard output: stages, verdict, classes with the most doubtful labels, the first suspects."""
    parts: list[Any] = [_stages(result), _verdict(result)]
    for stage in result["stages"]:
        parts += [Text(f"{stage['name']}: {warning}", style="yellow") for warning in stage["warnings"]]
    if result["suspects"]:
        parts += [_per_class(labels), _first_suspects(labels)]
    parts.append(Text(f"labels.parquet, histograms and the network are in {folder}", style="dim"))
    Console(highlight=False).print(
        Panel(Group(*parts), title=f"fastdrpl · {result['recipe']} · {result['method']}")
    )


def _stages(result: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "epochs", "time", "best", "last", "kept", "dropped", "AUC", "TPR", "FPR"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in result["stages"]:
        found = stage["detection"] or {}
        table.add_row(
            stage["name"],
            str(stage["epochs"]),
            _duration(stage["seconds"]),
            _percent(stage["accuracy"]["best"]),
            _percent(stage["accuracy"]["last"]),
            _count(found.get("labelled")),
            _count(found.get("unlabelled")),
            _fraction(found.get("auc"), 4),
            _fraction(found.get("tpr"), 3),
            _fraction(found.get("fpr"), 3),
        )
    return table


def _verdict(result: dict[str, Any]) -> Text:
    total, suspects = result["samples"], result["suspects"]
    text = Text("\n")
    text.append(f"{suspects:,} of {total:,} labels look wrong ({suspects / total:.1%})", style="bold")
    if result["noise_rate"] is not None:
        text.append(f"; {result['noise_rate']:.1%} really are")
    if result["accuracy"]["last"] is not None:
        text.append(
            f". Test accuracy {result['accuracy']['last']:.2%} (last), {result['accuracy']['best']:.2%} (best)."
        )
    text.append("\n")
    return text


def _per_class(labels: pyarrow.Table) -> Table:
    given, labelled = np.asarray(labels["given_name"]), labels["labelled"].to_numpy()
    names, inverse = np.unique(given.astype(str), return_inverse=True)
    total, wrong = np.bincount(inverse), np.bincount(inverse, ~labelled)
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        title="Classes with the most doubtful labels",
        title_justify="left",
    )
    for name in ("class", "samples", "look wrong", ""):
        table.add_column(name, justify="left" if name in ("class", "") else "right")
    for k in np.argsort(-(wrong / total), kind="stable")[:5]:
        share = wrong[k] / total[k]
        table.add_row(
            Text(names[k]), f"{total[k]:,}", f"{wrong[k]:,.0f}", f"{'█' * round(20 * share)} {share:.0%}"
        )
    return table


def _first_suspects(labels: pyarrow.Table) -> Table:
    last = [name for name in labels.column_names if name.startswith("loss_")][-1]
    order = np.lexsort((-labels[last].to_numpy(), -labels["p_noisy"].to_numpy()))[:_SUSPECTS]
    table = Table(
        box=None, header_style="bold", pad_edge=False, title="\nMost doubtful labels", title_justify="left"
    )
    for name in ("sample", "file", "given", "suggested", "p(noisy)", "truth"):
        table.add_column(name, justify="right" if name in ("sample", "p(noisy)") else "left", overflow="fold")
    for row in labels.take(order).to_pylist():
        table.add_row(
            str(row["index"]),
            Text(row["file"] or "-"),
            Text(row["given_name"]),
            Text(row["suggested_name"]),
            f"{row['p_noisy']:.3f}",
            Text(row["truth_name"] or "-"),
        )
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _fraction(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
