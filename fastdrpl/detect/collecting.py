"""What the folder of a run holds for a comparison: labels with the truth, and each order of the samples by doubt."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow

from fastdrpl import config_file
from fastdrpl.detect.stage_files import AGAIN, Losses, Split, read_epochs, read_losses, read_split
from fastdrpl.detectors.confident_learning import ConfidentLearning
from fastdrpl.detectors.small_loss import SmallLoss, loss_at, mean_loss
from fastdrpl.errors import DataError, UserError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.journal import read_journal
from fastdrpl.labels import Labels, load_labels
from fastdrpl.looks import loss_column
from fastdrpl.report.table import read_table


@dataclass(frozen=True, eq=False)
class Score:
    """One detector of a run: the samples in the order of its doubt, and the split it makes, where it makes one.

    `final`: that split decided which labels the run keeps in the end.
    """

    stage: str  # "" for what is of the whole run
    detector: str
    kind: Literal[
        "loss", "own", "outside"
    ]  # by loss alone, the detection of the stage, or of another library
    doubt: npt.NDArray[np.float64]  # (N,), higher = more doubtful
    labelled: npt.NDArray[np.bool_] | None = None  # (N,)
    final: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FoundRun:
    """A run that can be compared."""

    path: Path
    method: str
    recipe: str
    labels: Labels
    scores: tuple[Score, ...]


@dataclass(eq=False)
class Collected:
    """What was found in a folder, and what is missing there."""

    path: Path
    run: FoundRun | None = None
    problems: list[UserError] = field(default_factory=list)

    def attempt(self, read: Callable[[], Any]) -> Any:
        """What `read` returns; None, with the problem noted, where it raises `UserError`."""
        try:
            return read()
        except UserError as problem:
            self.problems.append(problem)
            return None


@dataclass(frozen=True)
class StageName:
    """A stage of a run, as result.json or the folder itself names it."""

    name: str
    epochs: int | None  # None while the run is under way
    detects: bool  # its files must be there


def collect(
    path: Path, *, epoch: int = 40, noise_rate: float | None = None, confident_learning: bool = False
) -> Collected:
    """Read the folder of a run; writes nothing there and raises nothing.

    `epoch`: where small loss is read beside the last epoch. `noise_rate`: what small loss is told; None: it makes no
    split. A run is left out if it is no run, or its labels are missing, damaged, or of unknown truth; of an unfinished
    or damaged one there is what can be read. The problems say what is missing.
    """
    found, folder = Collected(path), RunFolder(path)
    labels = found.attempt(lambda: _labels(folder))
    about = None if labels is None else found.attempt(lambda: about_run(folder))
    if labels is None or about is None:
        return found
    method, recipe, stages = about
    if not folder.result.exists():
        found.problems.append(not_finished(folder))
    told = None if noise_rate is None else SmallLoss(("loss",), 1 - noise_rate)
    table = found.attempt(lambda: _final_table(folder, len(labels))) if folder.result.exists() else None
    scores = [
        score for stage in stages for score in _stage_scores(found, folder, stage, labels, table, epoch, told)
    ]
    if table is not None:
        scores = found.attempt(lambda: _mark_final(folder, table, scores)) or scores
    if confident_learning:
        score = found.attempt(lambda: _confident_learning(path, labels))
        scores += [] if score is None else [score]
    if scores:
        found.run = FoundRun(path, method, recipe, labels, tuple(scores))
    elif not found.problems:
        found.problems.append(UserError("no stage of this run looks for wrong labels", where=str(path)))
    return found


def not_finished(folder: RunFolder) -> UserError:
    """What to say of a run without result.json of which there is something to show."""
    return UserError(
        "the run is not finished (no result.json)",
        where=str(folder.path),
        fix=f"continue it: fastdrpl train --config {folder.config}",
    )


def labels_of(folder: RunFolder) -> Labels:
    """The labels that a run was told. Raises UserError if it is no run, DataError for a damaged file."""
    if not folder.config.exists():
        raise UserError(
            "not a run folder: it has no config.toml", where=str(folder.path), fix="give folders of runs"
        )
    return load_labels(folder.noise)


def _labels(folder: RunFolder) -> Labels:
    """The labels of a run. Raises UserError if it is none, or the truth is not known."""
    labels = labels_of(folder)
    if not labels.is_noisy.known.any():
        raise UserError(
            "the right labels are not known, so no detector can be judged",
            where=str(folder.noise),
            fix="compare runs on checked labels, or with noise added; what looks wrong here is in labels.parquet",
        )
    return labels


def about_run(folder: RunFolder) -> tuple[str, str, tuple[StageName, ...]]:
    """Method, recipe and the stages in order, also of an unfinished run. Raises DataError for a damaged file."""
    try:
        if folder.result.exists():
            result = read_json(folder.result)
            stages = tuple(
                StageName(_plain(stage["name"]), int(stage["epochs"]), stage["detection"] is not None)
                for stage in result["stages"]
            )
            return str(result["method"]), str(result["recipe"]), stages
        table = config_file.read_table(folder.config)
        begun = [_plain(record["stage"]) for record in read_journal(folder.metrics) if "stage" in record]
        there = sorted(part.name for part in (folder.path / "stages").glob("*/"))
        names = [name for name in dict.fromkeys([*begun, *there]) if name in there]
        stages = tuple(StageName(name, None, False) for name in names)
        return Path(str(table["method"])).stem, str(table["recipe"]), stages
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"a field is missing or of a wrong type ({error!r})", where=str(folder.path), fix=AGAIN
        ) from error


def _plain(name: Any) -> str:
    """The name of a stage, which is a folder's. Raises ValueError for a name that leads elsewhere."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"stage {name!r}")
    return name


def _stage_scores(
    found: Collected,
    folder: RunFolder,
    stage: StageName,
    labels: Labels,
    table: pyarrow.Table | None,
    epoch: int,
    told: SmallLoss | None,
) -> Iterator[Score]:
    """Last loss, mean loss and loss after `epoch` where they were kept, and the stage's own detection."""
    place, samples = folder.stage(stage.name), len(labels)
    took_losses = stage.detects and table is not None and loss_column(stage.name) in table.column_names
    last: Losses | None = found.attempt(lambda: read_losses(place, samples, required=took_losses))
    epochs: Losses | None = found.attempt(lambda: read_epochs(place, samples, stage.epochs))
    split: Split | None = found.attempt(lambda: read_split(place, samples, required=stage.detects))
    by_loss: dict[str, npt.NDArray[np.floating]] = {}
    if last is not None:
        by_loss["last loss"] = last
    if epochs is not None:
        count = epochs.shape[1]
        by_loss[f"mean loss of {count} epoch{'s' if count > 1 else ''}"] = mean_loss(epochs)
    if epochs is not None and epochs.shape[1] >= epoch:
        by_loss[f"loss after epoch {epoch}"] = loss_at(epochs, epoch)
    for name, losses in by_loss.items():
        small = None if told is None else told([losses], labels.given, len(labels.class_names)).labelled
        yield Score(stage.name, name, "loss", losses.astype(np.float64), small)
    if split is not None:
        yield Score(stage.name, split.detector, "own", split.doubt, split.labelled)


def _final_table(folder: RunFolder, samples: int) -> pyarrow.Table:
    """labels.parquet. Raises DataError if it is missing, damaged or of other samples."""
    table = read_table(folder.labels)
    if "labelled" not in table.column_names or len(table) != samples:
        raise DataError(
            f"wanted a table with a column 'labelled' and {samples} rows", where=str(folder.labels), fix=AGAIN
        )
    return table


def _mark_final(folder: RunFolder, table: pyarrow.Table, scores: list[Score]) -> list[Score]:
    """The last split that is the one of labels.parquet decided. Raises DataError where none is."""
    kept = table["labelled"].to_numpy()
    own = {
        k: split
        for k, score in enumerate(scores)
        if score.kind == "own" and (split := score.labelled) is not None
    }
    same = [k for k, split in own.items() if np.array_equal(split, kept)]
    if own and not same:
        raise DataError(
            "the labels that the run kept are those of none of its detections",
            where=str(folder.labels),
            fix=AGAIN,
        )
    return [
        dataclasses.replace(score, final=True) if same and k == same[-1] else score
        for k, score in enumerate(scores)
    ]


def _confident_learning(path: Path, labels: Labels) -> Score:
    from fastdrpl.detect.probabilities import class_probabilities

    detector = ConfidentLearning(("probability",))
    found = detector([class_probabilities(path, labels)], labels.given, len(labels.class_names))
    return Score("", "confident learning", "outside", found.doubt, found.labelled, notes=found.warnings)
