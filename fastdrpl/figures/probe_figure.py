"""The accuracy of linear probes over the depth of the network (Fig. 5), as a table and as a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdrpl.figures.output import to_csv
from fastdrpl.figures.probe_fit import Probe
from fastdrpl.figures.probe_task import Task
from fastdrpl.figures.style import CYCLE, in_legend, render
from fastdrpl.report.table import printable

_MARKERS = "osD^vP*X"


def print_table(probes: Sequence[Probe], classes: int) -> None:
    """To standard output: a line for each run, a column for each depth, test accuracy."""
    depths = _depths(probes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")
    for depth in depths:
        table.add_column(depth, justify="right")
    for run, of_run in _by_run(probes).items():
        told = {probe.depth: f"{probe.accuracy:.2%}" for probe in of_run}
        table.add_row(Text(printable(run)), *(told.get(depth, "-") for depth in depths))
    Console(highlight=False).print(table, f"test accuracy of linear probes; chance is {1 / classes:.2%}")


def draw_probe(probes: Sequence[Probe], task: Task) -> dict[str, bytes]:
    """`probe.png`, `probe.svg` and `probe.csv`."""
    depths, runs = _depths(probes), _by_run(probes)

    def paint(figure: Any) -> None:
        panel = figure.subplots()
        for k, (run, of_run) in enumerate(runs.items()):
            at = [depths.index(probe.depth) for probe in of_run]
            accuracy = [100 * probe.accuracy for probe in of_run]
            marker = _MARKERS[k % len(_MARKERS)]
            colour = CYCLE[k % len(CYCLE)]
            panel.plot(at, accuracy, color=colour, marker=marker, ms=5, lw=1.5, label=in_legend(run))
        panel.axhline(100 / len(task.names), color="0.6", lw=1, ls="--", label=" chance")
        panel.set_xticks(range(len(depths)), depths)
        panel.set(xlabel="features after group of blocks", ylabel="test accuracy of the linear probe (%)")
        panel.set(xlim=(-0.2, len(depths) - 0.8), ylim=(0, None))
        panel.grid(axis="y", color="0.9", lw=0.8)
        panel.set_axisbelow(True)
        what = f"{len(task.names)} classes{' that the runs never saw' if task.unseen else ''}"
        panel.set_title(f"{what}, {len(task.test.rows):,} test images", loc="left")
        figure.legend(loc="outside lower center", ncols=2)

    lines = -(-(len(runs) + 1) // 2)
    return render("probe", (5.0, 3.5 + 0.2 * lines), paint) | {"probe.csv": _numbers(probes, task)}


def list_classes(task: Task) -> bytes:
    """The classes, and how many images of each there are, as CSV."""
    counts = [np.bincount(part.label, minlength=len(task.names)).tolist() for part in (task.train, task.test)]
    header = ("class", "train_images", "test_images")
    return to_csv(header, zip(task.names, *counts, strict=True))


def _numbers(probes: Sequence[Probe], task: Task) -> bytes:
    header = ("run", "depth", "features", "classes", "train_images", "test_images")
    return to_csv(
        (*header, "train_accuracy", "test_accuracy", "converged"),
        (
            (
                *(p.run, p.depth, p.features, len(task.names), p.train_images, p.test_images),
                *(p.train_accuracy, p.accuracy, "yes" if p.converged else "no"),
            )
            for p in probes
        ),
    )


def _depths(probes: Sequence[Probe]) -> list[str]:
    return sorted({probe.depth for probe in probes})


def _by_run(probes: Sequence[Probe]) -> dict[str, list[Probe]]:
    runs: dict[str, list[Probe]] = {}
    for probe in probes:
        runs.setdefault(probe.run, []).append(probe)
    return runs
