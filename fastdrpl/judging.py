"""The end of a stage that detects: from the columns it looked at to the split that the next one trains on."""

from typing import Any

import numpy as np
import torch

from fastdrpl.console import warn
from fastdrpl.detection import Detection, at, guard
from fastdrpl.detection_metrics import detection_metrics
from fastdrpl.errors import CollapseError, NonFiniteError, UserError
from fastdrpl.evidence import keep_evidence, name_warnings
from fastdrpl.labels import Labels
from fastdrpl.looks import loss_column
from fastdrpl.stages import Stage
from fastdrpl.state import RunState


def judge(state: RunState, stage: Stage, labels: Labels, epoch: int, *, keep: bool) -> dict[str, Any]:
    """The split that a stage's statistics give after an epoch: its figures, as metrics.

    `keep` puts it into store, record and folder. Raises `CollapseError` where the next stages depend
    on a split that leaves next to no labels: its evidence is kept all the same.
    """
    if stage.detector is None:
        raise ValueError(f"the stage {stage.name!r} has no detector")
    store, classes = state.store, len(labels.class_names)
    missing = [name for name in stage.detector.reads if name not in store]
    if missing:
        raise UserError(
            f"the detector of {stage.name!r} reads columns that nobody made: {', '.join(missing)}",
            where=state.config.method,
            fix="add a look into them, or put them in `begin` or `refresh`",
        )
    statistics = [store[name] for name in stage.detector.reads]
    for values in statistics:
        refuse_nan(values)
    found = stage.detector(statistics, labels.given, classes)
    try:
        judged = guard(found, labels.given, classes, state.config.detect)
    except CollapseError as error:
        if keep:
            _keep_files(state, stage, found, labels)
        if keep and stage.decides:
            error.adjustable = (*stage.detector.adjustable, *ADJUSTABLE)
            raise
        what = f"almost nothing counts as clean{at(found)}"
        if state.machine.main:  # nothing depends on this one
            warn(f"{stage.name}, epoch {epoch}: {what}")
        if keep:
            state.records[-1].warnings.append(what)
            _forget(state, stage)
        return {}
    figures = dict(detection_metrics(judged.labelled, judged.doubt, labels.is_noisy))
    if keep:
        record = state.records[-1]
        if stage.decides:
            store.put("labelled", torch.from_numpy(np.ascontiguousarray(judged.labelled)))
            store.put("posterior", torch.from_numpy(np.ascontiguousarray(judged.p_noisy)))
        _forget(state, stage)
        record.detection = figures
        record.warnings += name_warnings(judged, labels)
        _keep_files(state, stage, judged, labels)
        if state.machine.main:
            for warning in record.warnings:
                warn(f"{stage.name}: {warning}")
    return {f"detection_{name}": value for name, value in figures.items()}


# What a run that has collapsed may go on with another value of, beside the detector's own thresholds.
ADJUSTABLE = ("detect.posterior", "detect.rescue", "detect.collapse", "detect.collapse_share")


def _forget(state: RunState, stage: Stage) -> None:
    """Drop the columns that only this detection needed."""
    state.store.drop(*(look.into for look in stage.looks if not look.keep))


def _keep_files(state: RunState, stage: Stage, found: Detection, labels: Labels) -> None:
    if not state.machine.main:
        return
    losses = state.store.get(loss_column(stage.name))
    figures = dict(detection_metrics(found.labelled, found.doubt, labels.is_noisy))
    if stage.detector is not None:
        place = state.folder.stage(stage.name)
        keep_evidence(place, stage.name, stage.detector, found, figures, losses, labels)


def refuse_nan(values: torch.Tensor) -> None:
    """Raise `NonFiniteError` for statistics (N,) or (N, k) that nothing can be decided by.

    Infinite ones count as the largest, as long as others are finite.
    """
    rows = values.reshape(len(values), -1)
    bad = (torch.isnan(rows) if bool(torch.isfinite(rows).any()) else ~torch.isfinite(rows)).any(1)
    if bool(bad.any()):
        samples = bad.nonzero()[:10, 0].tolist()
        raise NonFiniteError(
            f"the losses of {int(bad.sum())} samples are no numbers, so no label can be judged",
            where=f"sample ids {samples}",
            fix="look at these images, or start another --run with a lower --optimiser.lr",
        )
