"""Finished runs made by hand that have all an export needs: prepared images, labels, a network, its description."""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from fastdrpl.export import Ensemble
from fastdrpl.exports.card import write_card
from fastdrpl.labels import Labels
from fastdrpl.loaders.dataset import Dataset, open_dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.models import build_model
from fastdrpl.report.table import Said, build_table, write_table

NAMES = ("<script>alert(1)", "Bär | 熊", 'dog, "small"')  # sorted, as a folder's classes are
STORED, INPUT = 12, 10
CALIBRATION = {"temperature": 2.0, "labels": "test", "samples": 70, "wrong": None}
CALIBRATION |= {"error_before": 0.2, "error_after": 0.05}


def make_photos(folder: Path, each: int = 20) -> None:
    """Noisy photos of three colours, a folder for each."""
    draw = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        place = folder / name
        place.mkdir(parents=True)
        for number in range(each):
            pixels = draw.integers(0, 90, (14, 15, 3), dtype=np.uint8)
            pixels[..., k] += 150
            Image.fromarray(pixels).save(place / f"a, {number:02}.png")


def make_data(folder: Path, store: str = "raw") -> Dataset:
    """Prepared photos, of the classes `NAMES`."""
    make_photos(folder / "photos")
    config = PrepareConfig(
        kind="folder", source=folder / "photos", out=folder / "data", size=STORED, store=store, workers=1
    )
    prepare(config)
    return open_dataset(folder / "data")


def make_networks(count: int) -> list[nn.Module]:
    """Networks that are not trained, but whose statistics are their own, and whose predictions differ."""
    networks = []
    for seed in range(count):
        network = build_model("preact_resnet18", len(NAMES), 4, seed=seed).train()
        torch.manual_seed(seed)
        plain = [1.3 * torch.randn(32, 3, 1, 1) + 0.3 * torch.randn(32, 3, INPUT, INPUT) for _ in range(20)]
        with torch.no_grad():
            for images in plain:
                network(images)
            network.linear.weight.mul_(6)
            network.eval().linear.bias.sub_(network(plain[0]).mean(0))
        networks.append(network)
    return networks


def make_finished_run(path: Path, data: Dataset, *, networks: int = 1, truth_known: bool = True) -> Path:
    """The files of a finished run over all training images of `data`, but the first and the last two."""
    draw = np.random.default_rng(1)
    (path / "export").mkdir(parents=True)
    rows = np.flatnonzero(data.split("train").valid)[2:-2]
    right = data.split("train").label[rows]
    given = np.where(draw.random(len(rows)) < 0.3, draw.integers(0, 3, len(rows)), right)
    labels = Labels(given, right if truth_known else np.full_like(right, -1), rows, data.class_names)
    labels.save(path / "noise.npz")
    p_noisy = np.where(given != right, 0.9, 0.1) + draw.uniform(-0.1, 0.1, len(rows))
    table = build_table(
        labels,
        data.ids("train"),
        Said(right, draw.uniform(0.4, 1, len(rows)).astype(np.float32), 1 - p_noisy),
        p_noisy,
        p_noisy < 0.5,
        {"semi2": draw.exponential(size=len(rows)).astype(np.float32)},
    )
    write_table(path / "labels.parquet", table)
    made = make_networks(networks)
    whole = made[0] if networks == 1 else Ensemble(made)
    safetensors.torch.save_file(whole.state_dict(), path / "export" / "model.safetensors")
    description = {
        "schema": 2,
        "model": "preact_resnet18",
        "width": 4,
        **({"networks": networks} if networks > 1 else {}),
        "class_names": list(data.class_names),
        "stored_size": STORED,
        "resample": "bilinear",
        "input_size": INPUT,
        "mean": list(data.mean),
        "std": list(data.std),
        "source": data.source.kind,
        "calibration": CALIBRATION,
    }
    (path / "export" / "model.json").write_text(json.dumps(description))
    identity = {"config": "c" * 64, "data": data.fingerprint, "labels": labels.fingerprint}
    versions = {"python": "3.11", "fastdrpl": "0.1.0", "torch": "2.11"}
    machine = {"gpu": None, "precision": "fp32", "ranks": 1}
    manifest = {"identity": identity, "data": str(data.path), "versions": versions, "machine": machine}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "config.toml").write_text('recipe = "folder"\nmethod = "drpl"\n[noise]\nkind = "none"\n')
    found = {"labelled": 40, "unlabelled": 16, "auc": 0.9, "tpr": 0.95, "fpr": None}
    stage = {"name": "semi2", "epochs": 3, "seconds": 1.0, "detection": found, "warnings": []}
    stage |= {"accuracy": {"best": 0.81, "last": 0.8}}
    result = {"recipe": "folder", "method": "drpl", "seed": 1, "samples": len(rows), "stages": [stage]}
    result |= {"suspects": int((p_noisy >= 0.5).sum()), "accuracy": {"best": 0.81, "last": 0.8}}
    result |= {"noise_rate": 0.25 if truth_known else None, "test_may_be_wrong": True, "identity": identity}
    (path / "result.json").write_text(json.dumps(result))
    write_card(path)
    return path
