"""What a finished run leaves: the network, the table of labels, result.json."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdrpl.calibration import Calibration, calibrate_on_kept, calibrate_on_test, some_of
from fastdrpl.console import warn
from fastdrpl.errors import UserError
from fastdrpl.export import write_export
from fastdrpl.exports.card import CARD, write_card
from fastdrpl.eyes import Eyes, log_probabilities, probabilities
from fastdrpl.files import TEMPORARY_PREFIX, write_json
from fastdrpl.folder import RunFolder
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.order import Purpose
from fastdrpl.looks import loss_column
from fastdrpl.methods import load_method
from fastdrpl.records import StageRecord
from fastdrpl.report.command import write_report
from fastdrpl.report.table import Said, build_table, write_table
from fastdrpl.stages import Stage
from fastdrpl.state import RunState
from fastdrpl.view import View

RESULT_VERSION = 1


def finish(
    state: RunState,
    data: Dataset,
    train: View,
    test: View | None,
    eyes: Eyes,
    test_eyes: Eyes | None,
    fingerprint: str,
) -> dict[str, Any]:
    """Write export/, labels.parquet, labels.csv and result.json, whose presence says that the run is finished; then
    the model card and report.html, which only repeat them.

    `fingerprint`: of the configuration, taken when the run began: its files may be others by now.
    """
    state.doing = "predicting all images and writing the tables"
    predicted = probabilities(state.learners, eyes, state.pass_(0, Purpose.export), augmented=False)
    on_test = _on_test(state, data, test, test_eyes)
    labels, store = train.labels, state.store
    labelled = store["labelled"].cpu().numpy()
    losses = {
        stage.name: store[loss_column(stage.name)].float().cpu().numpy()
        for stage in state.plan
        if loss_column(stage.name) in store
    }
    suspects = int(np.count_nonzero(~labelled))
    result = _describe(state, data, train, test, suspects=suspects, fingerprint=fingerprint)
    if state.machine.main:
        table = build_table(
            labels,
            data.ids("train"),
            _say(predicted, state.given),
            store["posterior"].double().cpu().numpy(),
            labelled,
            losses,
        )
        write_table(state.folder.labels, table)
        write_table(state.folder.labels_csv, table)
        calibration = on_test or _on_kept(predicted, labels.given, labelled)
        write_export(state.folder.export, state, data, train, eyes.transform, calibration)
        state.folder.progress.unlink(missing_ok=True)
        write_json(state.folder.result, result)
        write_pages(state.folder)
    state.machine.wait()
    return result


def _say(predicted: Tensor, given: Tensor) -> Said:
    """Of the predictions (N, C), on their device: they may be larger than the host has room for."""
    sure, best = predicted.max(1)
    of_given = predicted.gather(1, given[:, None])[:, 0]
    return Said(best.cpu().numpy(), sure.cpu().numpy(), of_given.cpu().numpy())


def write_pages(folder: RunFolder) -> None:
    """Card and report. The run is finished by now: whatever is wrong with a page must not undo that."""
    pages = (
        ("report", f"report {folder.path}", lambda: write_report(folder.path, folder.report)),
        ("card", f"export {folder.path} --to card", lambda: write_card(folder.path)),
    )
    for name, again, write in pages:
        try:
            write()
        except Exception as error:
            what = error if isinstance(error, UserError) else repr(error)
            warn(f"there is no {name}: {what}; `fastdrpl {again}` tries again")


def lacks_pages(folder: RunFolder) -> bool:
    """Whether a finished run has no card or report, or half of one: its disk refused just then."""
    unfinished = any(folder.path.glob(f"{TEMPORARY_PREFIX}*"))
    return unfinished or not (folder.report.exists() and (folder.export / CARD).exists())


def _on_test(state: RunState, data: Dataset, test: View | None, eyes: Eyes | None) -> Calibration | None:
    """The temperature that the test labels ask for; every rank must call this. None without a test set."""
    if test is None or eyes is None:
        return None
    log_p = log_probabilities(state.learners, eyes, state.pass_(0, Purpose.export), augmented=False)
    return calibrate_on_test(log_p.cpu().numpy(), test.labels.given, may_be_wrong=data.test_may_be_wrong)


def _on_kept(predicted: Tensor, given: np.ndarray, labelled: np.ndarray) -> Calibration:
    """The temperature that training labels ask for which were kept."""
    kept = some_of(np.flatnonzero(labelled))
    return calibrate_on_kept(
        predicted[torch.from_numpy(kept).to(predicted.device)].cpu().numpy(), given[kept]
    )


def _describe(
    state: RunState, data: Dataset, train: View, test: View | None, *, suspects: int, fingerprint: str
) -> dict[str, Any]:
    noisy, known = train.labels.is_noisy
    scaled = {} if state.config.epochs_scale == 1 else {"epochs_scale": state.config.epochs_scale}
    return {
        "schema": RESULT_VERSION,
        "recipe": state.config.recipe,
        "method": load_method(state.config.method).section,
        "seed": state.config.seed,
        **scaled,
        "samples": len(train.labels),
        "classes": state.classes,
        "suspects": suspects,
        "noise_rate": float(noisy[known].mean()) if known.any() else None,
        "accuracy": _final_accuracy(state),
        "test_may_be_wrong": data.test_may_be_wrong if test is not None else None,
        "stages": [_stage(record, stage) for record, stage in zip(state.records, state.plan, strict=True)],
        "machine": state.machine.describe(),
        "identity": {**state.identity, "config": fingerprint},
    }


def _stage(record: StageRecord, stage: Stage) -> dict[str, Any]:
    return {
        "name": record.name,
        "epochs": record.epochs,
        "seconds": record.seconds,
        "images_per_second": record.images / record.seconds,
        "accuracy": _accuracy(record),
        "detection": record.detection,
        "decides": stage.detector is not None and stage.decides,
        "warnings": record.warnings,
    }


def _final_accuracy(state: RunState) -> dict[str, float | None]:
    """Of the last stage; the best epoch also of the stages before it whose training it only goes on with."""
    first = len(state.plan) - 1
    while first and state.plan[first].start == "previous":
        first -= 1
    tested = [record.best for record in state.records[first:] if record.best is not None]
    return {"best": max(tested, default=None), "last": state.records[-1].last}


def _accuracy(record: StageRecord) -> dict[str, float | None]:
    return {"best": record.best, "last": record.last}
