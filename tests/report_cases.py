"""Runs for the report: real prepared images with names of every kind, and a run folder over them without a training."""

import json
from pathlib import Path

import numpy as np
from made_runs import MadeStage, make_run
from PIL import Image
from test_table import write_csv

from fastdrpl.labels import UNKNOWN, Labels
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.report.table import Said, build_table, write_table

SCRIPT = "<script>alert(1)</script>"
CLASSES = (SCRIPT, 'say "hi", he', "שלום", "猫")
NAMES = (SCRIPT, 'quote "x", comma', "line\nbreak", "שלום", "猫", "=1+1")


def prepare_hostile(folder: Path, *, count: int = 80, side: int = 8) -> Dataset:
    """Small pictures of four classes, half of them grey, in a table; one is no picture, two are the same."""
    draw = np.random.default_rng(5)
    files, labels = [], []
    for k in range(count):
        name = f"{k:03} {NAMES[k % len(NAMES)]}.png"
        place = folder / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (side, side, 1 if k % 2 else 3), np.uint8)
        Image.fromarray(pixels.repeat(4 - pixels.shape[2], 2)[..., :3] if k % 2 else pixels).save(place)
        files.append(name)
        labels.append(CLASSES[k % 4])
    (folder / "images" / files[0]).write_bytes(b"no picture")
    (folder / "images" / files[2]).write_bytes((folder / "images" / files[1]).read_bytes())
    table = write_csv(folder / "images" / "table.csv", {"path": files, "label": labels})
    return prepare(
        PrepareConfig(
            kind="table", source=table, out=folder / "data", size=side, test_fraction=0.0, workers=1
        )
    )


def finish_run(
    path: Path, data: Dataset, *, known: bool = True, tested: bool = True, noisy: float = 0.3
) -> Path:
    """A finished run over the valid rows of `data`: every third label is doubted, most of them rightly."""
    split, draw = data.split("train"), np.random.default_rng(3)
    rows = np.flatnonzero(split.valid)
    truth, classes = split.label[rows], len(data.class_names)
    wrong = draw.random(len(rows)) < noisy
    given = np.where(wrong, (truth + 1) % classes, truth)
    labels = Labels(given, truth if known else np.full_like(truth, UNKNOWN), rows, data.class_names)
    doubt = np.where(wrong, 3.0, 0.5) + draw.normal(0, 0.4, len(rows))
    losses = doubt.astype(np.float32)
    stages = {name: MadeStage(losses, doubt, doubt <= 1.8, epochs=4) for name in ("relabel", "semi1")}
    make_run(path, labels, stages)
    (path / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(record)}\n" for record in _epochs(stages, tested))
    )
    p_noisy, sure = 1 / (1 + np.exp(2 - 4 * (doubt > 1.8))), np.full(len(rows), 0.875, np.float32)
    table = build_table(
        labels,
        data.ids("train"),
        Said(truth, sure, np.exp(-losses)),
        p_noisy,
        doubt <= 1.8,
        {"relabel": losses, "semi1": losses},
    )
    write_table(path / "labels.parquet", table)
    identity = {"config": "c" * 64, "data": data.fingerprint, "labels": labels.fingerprint}
    _describe(path, data, labels, identity, doubt <= 1.8, tested)
    return path


def _epochs(stages: dict[str, MadeStage], tested: bool) -> list[dict]:
    return [
        {
            "stage": name,
            "epoch": epoch + 1,
            "lr": 0.1 / (epoch + 1),
            "loss": 2.0 - 0.3 * epoch,
            "agreement": 0.2 * (epoch + 1),
            "test_accuracy": 0.2 * (epoch + 1) if tested else None,
            "seconds": 10.0 * (epoch + 1),
        }
        for name, stage in stages.items()
        for epoch in range(stage.epochs)
    ]


def _describe(
    path: Path, data: Dataset, labels: Labels, identity: dict, labelled: np.ndarray, tested: bool
) -> None:
    noisy, known = labels.is_noisy
    accuracy = {"best": 0.85, "last": 0.8} if tested else {"best": None, "last": None}
    about = {"epochs": 4, "seconds": 40.0, "accuracy": accuracy, "warnings": []}
    detection = {"labelled": int(labelled.sum()), "unlabelled": int((~labelled).sum()), "auc": 0.99}
    result = {
        "schema": 1,
        "recipe": "folder",
        "method": "drpl",
        "seed": 1,
        "samples": len(labels),
        "suspects": int((~labelled).sum()),
        "noise_rate": float(noisy[known].mean()) if known.any() else None,
        "accuracy": accuracy,
        "stages": [{**about, "name": name, "detection": detection} for name in ("relabel", "semi1")],
        "identity": identity,
    }
    result["stages"][1]["warnings"] = [f"no sample counts as clean in {SCRIPT}"]
    manifest = {
        "schema": 1,
        "identity": identity,
        "data": str(data.path.resolve()),
        "samples": len(labels),
        "classes": list(data.class_names),
        "machine": {"device": "cpu", "gpu": None, "kernels": {"mixup": "numba"}},
        "versions": {"python": "3.11.7", "fastdrpl": "0.1.0"},
    }
    (path / "result.json").write_text(json.dumps(result))
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "config.toml").write_text(f'recipe = "folder"\nmethod = "drpl"\nseed = 1\ndata = "{data.path}"\n')
