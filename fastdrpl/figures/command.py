"""The settings of `fastdrpl figure losses|cam|doubtful`, and what it does with them."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastdrpl.errors import UserError

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
_MOST = 64  # images in one figure


@dataclass(frozen=True, kw_only=True)
class LossesFigure:
    """Losses of clean and noisy samples, as histograms and over the epochs, and the posterior (Fig. 1 and 2)."""

    runs: Runs
    """Folders of runs. Without a known truth all samples have one colour."""
    out: Path
    """Folder for losses, loss_epochs and posterior, each as .png, .svg and .csv."""

    def __post_init__(self) -> None:
        _need_runs(self.runs, "losses")


@dataclass(frozen=True, kw_only=True)
class CamFigure:
    """Class activation maps: where the networks of runs see a class in chosen images (Fig. 4)."""

    runs: Runs
    """Folders of finished runs over the same data, side by side."""
    out: Path
    """Folder for cam.png, cam.svg and cam.csv."""
    images: str = ""
    """Which images, as 3,17: samples of the first run (`index` in its table), or rows of the test split."""
    most_doubtful: int = 0
    """Instead: so many images whose labels the first run doubts most."""
    undetected: int = 0
    """Instead, as in the paper: so many wrong labels that the first run kept and its network now predicts."""
    split: Literal["train", "test"] = "train"
    """Where the images are from."""
    data: Path | None = None
    """Where the prepared data are now, if they were moved."""

    def __post_init__(self) -> None:
        _need_runs(self.runs, "cam")
        asked = [bool(self.images), self.most_doubtful != 0, self.undetected != 0]
        if sum(asked) != 1:
            raise UserError(
                "which images?" if not any(asked) else "images are asked for in more than one way",
                fix="give one of --images 3,17, --most_doubtful 8 and --undetected 5",
            )
        _check_count("--most_doubtful", self.most_doubtful, least=0)
        _check_count("--undetected", self.undetected, least=0)
        if self.split == "test" and not self.images:
            raise UserError("test labels are never judged, so none is doubtful", fix="give --images 3,17")

    @property
    def index(self) -> list[int]:
        """The numbers in `images`, each once. Raises UserError for what is none."""
        try:
            numbers = [int(word) for word in self.images.split(",")] if self.images else []
        except ValueError as error:
            raise UserError(f"--images {self.images}: {error}", fix="give numbers as 3,17") from error
        _check_count("--images", len(numbers), least=0)
        return list(dict.fromkeys(numbers))


@dataclass(frozen=True, kw_only=True)
class DoubtfulFigure:
    """The most doubtful images of chosen classes, each row beside a clean image of its class (Fig. 6)."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    out: Path
    """Folder for doubtful.png, doubtful.svg and doubtful.csv."""
    classes: str = ""
    """Names of classes, as cat,dog; a name with a comma in double quotes. Default: those of whose labels the largest
    share is suspect."""
    count: int = 6
    """How many doubtful images of each class."""
    data: Path | None = None
    """Where the prepared data are now, if they were moved."""

    def __post_init__(self) -> None:
        _check_count("--count", self.count, least=1)

    def names(self, known: Sequence[str]) -> list[str]:
        """The classes asked for. Raises UserError for one that the run does not have."""
        from fastdrpl.names import nearest

        if not self.classes:
            return []
        asked = [self.classes] if self.classes in known else next(csv.reader([self.classes]))
        for name in asked:
            if name not in known:
                raise UserError(
                    f"the run has no class {name!r}{nearest(name, known)}",
                    where=str(self.run),
                    fix=f"it has {len(known)} classes: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}",
                )
        return list(dict.fromkeys(asked))


def draw_loss_figures(command: LossesFigure) -> int:
    """Write the three figures; returns the largest exit code of what was missing, 0 where nothing was."""
    from fastdrpl.console import fail, warn
    from fastdrpl.figures.loss_epochs import draw_epochs, epoch_losses
    from fastdrpl.figures.loss_files import collect_losses
    from fastdrpl.figures.losses import draw_losses, loss_panels
    from fastdrpl.figures.output import write_figures
    from fastdrpl.figures.posterior import draw_posterior, judged
    from fastdrpl.files import make_folder

    make_folder(command.out)
    runs, problems = collect_losses(list({path.resolve(): path for path in command.runs}.values()))
    rows = [panels for run in runs if (panels := loss_panels(run))]
    tracked = [(run, epochs) for run in runs if (epochs := epoch_losses(run))]
    files = draw_losses(rows) if rows else {}
    if tracked:
        files |= draw_epochs(tracked)
    if with_split := [run for run in runs if judged(run)]:
        files |= draw_posterior(with_split)
    if files:
        write_figures(command.out, files)
    for run in runs:
        if not any(stage.epochs for stage in run.stages):
            warn(
                f"{run.path}: the losses of every epoch were not kept, so there are those of the end of each stage "
                "only; train with --track every to see them before, during and after relabelling"
            )
    for path, problem in problems:
        fail(f"{path}: {problem}")
    return max((problem.exit_code for _, problem in problems), default=0)


def draw_cam_figure(command: CamFigure) -> int:
    """Write cam.png, cam.svg and cam.csv."""
    from fastdrpl.figures.cam_figure import make_cam_figure
    from fastdrpl.figures.output import write_figures
    from fastdrpl.files import make_folder

    files = make_cam_figure(command)
    make_folder(command.out)
    write_figures(command.out, files)
    return 0


def draw_doubtful_figure(command: DoubtfulFigure) -> int:
    """Write doubtful.png, doubtful.svg and doubtful.csv."""
    from fastdrpl.figures.doubtful import make_doubtful_figure
    from fastdrpl.figures.output import write_figures
    from fastdrpl.files import make_folder

    files = make_doubtful_figure(command)
    make_folder(command.out)
    write_figures(command.out, files)
    return 0


FIGURES: dict[str, tuple[type, Callable[[Any], int]]] = {
    "losses": (LossesFigure, draw_loss_figures),
    "cam": (CamFigure, draw_cam_figure),
    "doubtful": (DoubtfulFigure, draw_doubtful_figure),
}


def _need_runs(runs: tuple[Path, ...], figure: str) -> None:
    if not runs:
        raise UserError("no run is given", fix=f"fastdrpl figure {figure} RUN...")


def _check_count(flag: str, count: int, *, least: int) -> None:
    if not least <= count <= _MOST:
        raise UserError(f"{flag}: {count} images", fix=f"a figure has {max(least, 1)} to {_MOST}")
