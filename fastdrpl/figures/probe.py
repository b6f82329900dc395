"""`fastdrpl probe RUN... --data DIR`: what the features of finished runs are worth for classes they never saw.

arXiv 1912.08741, section V-C and Fig. 5: a linear classifier on the average-pooled activations after each group of
blocks of the frozen network. The paper does not say how it is trained; here it is multinomial logistic regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastdrpl.errors import UserError

_FEW = 2  # classes that there must be


@dataclass(frozen=True, kw_only=True)
class ProbeCommand:
    """Train linear classifiers on the features after each stage of frozen networks, for classes they never saw."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of finished runs."""
    data: Path
    """A prepared data set; it may be the one that the runs had, where it has further classes (ImageNet)."""
    out: Path | None = None
    """Folder for probe.csv, probe.png, probe.svg and probe_classes.csv; without it the table is only printed."""
    classes: int = 0
    """So many classes, drawn by the seed (the paper: 25); 0: all of them."""
    seed: int = 1
    """Draws the classes, and the images that test where the data have no test images of them."""
    seen: bool = False
    """Also classes that have the name of one that a run was trained on."""
    pool: int = 1
    """Each map is averaged down to so many pixels a side; 1 is the paper's global average."""
    strength: float = 1.0
    """Inverse strength of the penalty on the squared weights (C of scikit-learn)."""
    iterations: int = 1000
    """The solver (L-BFGS) ends after so many, converged or not."""
    test_share: float = 0.2
    """Share of each class that tests where the data have no test images of the classes."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no run is given", fix="fastdrpl probe RUN... --data DIR")
        if self.classes != 0 and self.classes < _FEW:
            raise UserError(
                f"--classes {self.classes}: a classifier needs {_FEW}", fix="give 25, or 0 for all"
            )
        if self.pool < 1 or self.iterations < 1:
            raise UserError("--pool and --iterations are whole numbers from 1 up")
        if not 0 < self.strength < float("inf"):
            raise UserError(f"--strength {self.strength}: give a positive number")
        if not 0 < self.test_share < 1:
            raise UserError(f"--test_share {self.test_share}: give a share between 0 and 1, such as 0.2")


def probe(command: ProbeCommand) -> int:
    """Print the table of accuracies, write the files that are asked for.

    Raises UserError where there are too few classes that no run saw, DataError for damaged runs or data.
    """
    from fastdrpl.console import say, warn
    from fastdrpl.figures.loss_files import names_of
    from fastdrpl.figures.output import write_figures
    from fastdrpl.figures.probe_figure import draw_probe, list_classes, print_table
    from fastdrpl.figures.probe_fit import Probe, fit_probes
    from fastdrpl.figures.probe_task import choose_task
    from fastdrpl.files import make_folder
    from fastdrpl.loaders.dataset import open_dataset
    from fastdrpl.opening import open_run

    paths = list({path.resolve(): path for path in command.runs}.values())
    runs = [open_run(path) for path in paths]
    task = choose_task(command, open_dataset(command.data), runs)
    for note in task.notes:
        warn(note)
    say(
        f"{len(task.names)} classes, {len(task.train.rows):,} images to train and {len(task.test.rows):,} to test: "
        f"{_first(task.names)}"
    )
    if command.out is not None:
        make_folder(command.out)
    found: list[Probe] = []
    for run, name in zip(runs, names_of(paths), strict=True):
        for note in task.misfits(run):
            warn(f"{name}: {note}")
        probes = fit_probes(command, run, name, task)
        found += probes
        late = [each.depth for each in probes if not each.converged]
        if late:
            warn(
                f"{name}: not converged at {', '.join(late)}; give more --iterations, or a smaller --strength"
            )
    print_table(found, len(task.names))
    if command.out is not None:
        write_figures(command.out, draw_probe(found, task) | {"probe_classes.csv": list_classes(task)})
    return 0


def _first(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
