"""All that a page shows of one run, finished or not, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from fastdrpl.errors import UserError
from fastdrpl.files import read_json
from fastdrpl.fixing.changes import Changes, changes, earlier_run
from fastdrpl.folder import RunFolder
from fastdrpl.labels import load_labels
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.opening import open_data_of
from fastdrpl.report.facts import RunFacts, StageFacts, facts_of
from fastdrpl.report.history import EpochFacts, read_history
from fastdrpl.report.losses import LossFacts, read_losses_of
from fastdrpl.report.problems import ProblemFacts, read_problems
from fastdrpl.report.provenance import ProvenanceFacts, read_provenance
from fastdrpl.report.suspects import PairFacts, QualityFacts, pairs_of, quality_of, suspects_of
from fastdrpl.report.table import read_table
from fastdrpl.status import status_of


@dataclass(frozen=True, eq=False)
class Judged:
    """What a finished run says of its labels. Classes are numbers into the run's class names."""

    facts: RunFacts
    suspects: pyarrow.Table  # rows of labels.parquet, the most doubtful first
    given: npt.NDArray[np.int64]  # (C,) samples that were given each class
    pairs: tuple[PairFacts, ...]
    quality: QualityFacts | None


@dataclass(frozen=True, eq=False)
class RunPage:
    """A run as a page shows it. `judged` is None where it is not finished; `standing` then says how far it came."""

    path: Path
    provenance: ProvenanceFacts
    judged: Judged | None
    standing: str
    stages: tuple[StageFacts, ...]
    history: tuple[EpochFacts, ...]
    losses: tuple[LossFacts, ...]
    data: Dataset | None
    without_data: str  # why there are no images; empty where there are
    problems: tuple[ProblemFacts, ...]
    changes: Changes | None  # since the run whose corrected labels it was trained on
    without_changes: str  # why there is no comparison with that run; empty where there is, or no such run


def read_run_page(path: Path, *, data: Path | None = None) -> RunPage:
    """The facts of a run folder. Raises `UserError` if it is none, `DataError` for damaged files.

    `data`: where the prepared images are now; it must be those of the run. Without it, images that are not where they
    were are left out, and the page says why.
    """
    folder = RunFolder(path)
    if not folder.config.exists():
        raise UserError(
            "not a run folder: it has no config.toml", where=str(path), fix="give the folder of a run"
        )
    provenance, history = read_provenance(folder), read_history(folder)
    judged = _judge(folder, provenance) if folder.result.exists() else None
    stages = judged.facts.stages if judged else _stages_so_far(folder, history)
    images, without = _open_images(folder, data)
    since, without_changes = _since(path) if judged else (None, "")
    return RunPage(
        path=path,
        provenance=provenance,
        judged=judged,
        standing="" if judged else str(status_of(path)["verdict"]),
        stages=stages,
        history=history,
        losses=_losses(folder, stages),
        data=images,
        without_data=without,
        problems=() if images is None else read_problems(images.path),
        changes=since,
        without_changes=without_changes,
    )


def _judge(folder: RunFolder, provenance: ProvenanceFacts) -> Judged:
    table = read_table(folder.labels)
    suspects, classes = suspects_of(table), len(provenance.class_names)
    return Judged(
        facts=facts_of(folder, table, suspects=0),
        suspects=suspects,
        given=np.bincount(table["given"].to_numpy(), minlength=classes),
        pairs=pairs_of(suspects, classes),
        quality=quality_of(table, suspects),
    )


def _since(path: Path) -> tuple[Changes | None, str]:
    found = earlier_run(path)
    if found is None or found.folder is None:
        return None, found.missing if found else ""
    try:
        return changes(found.folder, path), ""
    except UserError as error:  # of the earlier run: this one has been read
        return None, f"{error.what} ({error.where})"


def _open_images(folder: RunFolder, data: Path | None) -> tuple[Dataset | None, str]:
    if not folder.manifest.exists():
        return None, "the run has not begun: it has no manifest.json"
    try:
        return open_data_of(folder, data), ""
    except UserError as error:
        if data is not None:
            raise
        return None, f"{error.what} ({error.where}); --data DIR says where the prepared images are now"


def _losses(folder: RunFolder, stages: tuple[StageFacts, ...]) -> tuple[LossFacts, ...]:
    """Of each stage that has detected."""
    if not folder.noise.exists():
        return ()
    is_noisy = load_labels(folder.noise).is_noisy
    found = (read_losses_of(folder.stage(stage.name), is_noisy) for stage in stages)
    return tuple(facts for facts in found if facts is not None)


def _stages_so_far(folder: RunFolder, history: tuple[EpochFacts, ...]) -> tuple[StageFacts, ...]:
    return tuple(
        _stage_so_far(folder, [epoch for epoch in history if epoch.stage == name])
        for name in dict.fromkeys(epoch.stage for epoch in history)
    )


def _stage_so_far(folder: RunFolder, epochs: list[EpochFacts]) -> StageFacts:
    tested = [epoch.test_accuracy for epoch in epochs if epoch.test_accuracy is not None]
    about = folder.stage(epochs[0].stage) / "detection.json"
    detection: Mapping[str, Any] = read_json(about) if about.exists() else {}
    return StageFacts(
        name=epochs[0].stage,
        epochs=len(epochs),
        seconds=epochs[-1].seconds,
        best=max(tested, default=None),
        last=tested[-1] if tested else None,
        detection=detection,
        warnings=tuple(detection.get("warnings", ())),
    )
