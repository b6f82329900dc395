"""The settings of `fastdrpl detect`, and what it does with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastdrpl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DetectCommand:
    """Compare the detectors of finished runs with the truth: AUC, average precision, precision at k, TPR and FPR."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of runs whose right labels are known. Runs over the same labels are compared with each other."""
    out: Path | None = None
    """Folder for detect.csv, detect.json, roc.png, roc.svg and roc.csv; without it the figures are only printed."""
    k: tuple[int, ...] = ()
    """Also the precision at these k: the share of wrong labels among the k most doubtful. Give the runs first."""
    format: Literal["text", "csv", "json"] = "text"
    """What is printed."""
    epoch: int = 40
    """Small loss is also read after this epoch, where a run kept the losses of every epoch (--track every)."""
    noise_rate: float | None = None
    """Share of wrong labels, in 0..1. Small loss cannot find it out: only with it its rows have a TPR and an FPR."""
    confident_learning: bool = False
    """Also confident learning (cleanlab, an extra) on the probabilities of each run's final network."""

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.k):
            raise UserError(f"--k {min(self.k)}: nothing to look at", fix="give whole numbers from 1 up")
        if self.epoch < 1:
            raise UserError(
                f"--epoch {self.epoch}: the first epoch is 1", fix="give a whole number from 1 up"
            )
        if self.noise_rate is not None and not 0 <= self.noise_rate <= 1:  # true for nan as well
            raise UserError(
                f"--noise_rate {self.noise_rate} is no share", fix="give a number from 0 to 1, such as 0.4"
            )


def detect_runs(command: DetectCommand) -> int:
    """Print the comparison, write the files that are asked for, name the runs with something missing.

    Returns the exit code: 0 if everything of every run could be shown, else the largest of what went wrong. Raises
    UserError where nothing can be begun.
    """
    from fastdrpl.console import fail, warn
    from fastdrpl.detect.collecting import Collected, collect
    from fastdrpl.detect.comparison import compare
    from fastdrpl.detect.figure import draw_roc, list_points
    from fastdrpl.detect.table import render
    from fastdrpl.detectors.confident_learning import require_cleanlab
    from fastdrpl.figures.output import write_figures
    from fastdrpl.files import make_folder

    if not command.runs:
        raise UserError("no run is given", fix="fastdrpl detect RUN...")
    if command.confident_learning:
        require_cleanlab()
    if command.out is not None:
        make_folder(command.out)
    folders: dict[Path, Path] = {}  # each once, under its first name
    for path in command.runs:
        folders.setdefault(path.resolve(), path)
    collected: list[Collected] = [
        collect(
            path,
            epoch=command.epoch,
            noise_rate=command.noise_rate,
            confident_learning=command.confident_learning,
        )
        for path in folders.values()
    ]
    groups = compare([run for one in collected if (run := one.run) is not None], sorted(set(command.k)))
    problems = [(one.path, problem) for one in collected for problem in one.problems]
    if groups or command.format == "json":
        print(render(command.format, groups, problems), end="")
    if command.out is not None and groups:
        files = draw_roc(groups) | {"roc.csv": list_points(groups)}
        files["detect.csv"] = render("csv", groups, problems).encode()
        files["detect.json"] = render("json", groups, problems).encode()
        write_figures(command.out, files)
    for note in dict.fromkeys(note for group in groups for note in group.notes):
        warn(note)
    for path, problem in problems:
        fail(f"{path}: {problem}")
    return max((problem.exit_code for _, problem in problems), default=0)
