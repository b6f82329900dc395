"""What a finished run leaves: the network, the table of labels, result.json."""

from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from fastdrpl.engine import probabilities
from fastdrpl.files import write_atomic, write_json
from fastdrpl.loaders.order import Purpose
from fastdrpl.report.table import build_table, write_table

if TYPE_CHECKING:
    from fastdrpl.saving import StageRecord
    from fastdrpl.training import Training

RESULT_VERSION = 1


def finish(run: "Training") -> dict[str, Any]:
    """Write export/, labels.parquet and result.json (last: its presence says that the run is finished)."""
    predicted = probabilities(
        run.learner,
        run.train_eyes,
        run.pass_(0, Purpose.test),
        batch_size=run.config.engine.eval_batch,
        augmented=False,
    )
    labels, store = run.train.labels, run.store
    labelled = store["labelled"].cpu().numpy()
    losses = {
        name.removeprefix("loss_"): store[name].float().cpu().numpy()
        for name in (f"loss_{stage.name}" for stage in run.plan)
        if name in store
    }
    noisy, known = labels.is_noisy
    result = {
        "schema": RESULT_VERSION,
        "recipe": run.config.recipe,
        "method": run.config.method,
        "seed": run.config.seed,
        "samples": len(labels),
        "classes": run.classes,
        "suspects": int(np.count_nonzero(~labelled)),
        "noise_rate": float(noisy[known].mean()) if known.any() else None,
        "accuracy": _accuracy(run.records[-1]),
        "test_may_be_wrong": run.data.test_may_be_wrong if run.test is not None else None,
        "stages": [
            {
                "name": record.name,
                "epochs": record.epochs,
                "seconds": record.seconds,
                "images_per_second": record.images / record.seconds,
                "accuracy": _accuracy(record),
                "detection": record.detection,
                "warnings": record.warnings,
            }
            for record in run.records
        ],
        "machine": run.machine.describe(),
        "identity": run.identity,
    }
    if run.machine.main:
        table = build_table(
            labels,
            run.data.ids("train"),
            predicted.argmax(1).cpu().numpy(),
            store["posterior"].double().cpu().numpy(),
            labelled,
            losses,
        )
        write_table(run.folder.labels, table)
        _export(run)
        write_json(run.folder.result, result)
        run.folder.progress.unlink(missing_ok=True)
    run.machine.wait()
    return result


def _accuracy(record: "StageRecord") -> dict[str, float | None]:
    return {"best": record.best, "last": record.last}


def _export(run: "Training") -> None:
    """export/model.safetensors, and in model.json what it takes to use it."""
    run.folder.export.mkdir(exist_ok=True)
    weights = {
        name: value.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, value in run.learner.network.state_dict().items()
    }
    write_atomic(run.folder.export / "model.safetensors", safetensors.torch.save(weights))
    transform, split = run.train_eyes.transform, run.train.split
    write_json(
        run.folder.export / "model.json",
        {
            "schema": RESULT_VERSION,
            "model": run.config.model.name,
            "width": run.config.model.width,
            "class_names": list(run.train.labels.class_names),
            "stored_size": split.height,
            "resample": "box" if run.data.source.kind.startswith("imagenet") else "bilinear",
            "input_size": transform.size,
            "mean": list(transform.mean),
            "std": list(transform.std),
            "source": run.data.source.kind,
        },
    )
