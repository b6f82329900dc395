"""Run folders made by hand: the files of a run that say what its detectors found, without a training."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrpl.labels import Labels
from fastdrpl.report.table import Said, build_table, write_table

CLASSES = 4


@dataclass
class MadeStage:
    """What a stage left; `tracked`: (N, epochs) losses of every epoch."""

    losses: np.ndarray
    doubt: np.ndarray
    labelled: np.ndarray
    epochs: int = 3
    tracked: np.ndarray | None = None


def make_labels(seed: int = 0, samples: int = 300, rate: float = 0.4, unknown: float = 0.0) -> Labels:
    """Labels of which a share is wrong and of another share the truth is unknown."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, CLASSES, samples)
    given = np.where(
        draw.random(samples) < rate, (truth + draw.integers(1, CLASSES, samples)) % CLASSES, truth
    )
    truth = np.where(draw.random(samples) < unknown, -1, truth)
    return Labels(given, truth, np.arange(samples), tuple(f"c{k}" for k in range(CLASSES)))


def make_stage(
    labels: Labels, seed: int, *, apart: float = 2.0, epochs: int = 3, tracked: bool = False
) -> MadeStage:
    """Losses that are higher where the label is wrong by `apart` standard deviations, and a split in the middle."""
    draw = np.random.default_rng(seed)
    noisy = labels.is_noisy.noisy
    losses = draw.normal(apart * noisy[:, None], 1, (len(labels), epochs)).astype(np.float32)
    doubt = losses[:, -1].astype(np.float64)
    return MadeStage(losses[:, -1], doubt, doubt <= apart / 2, epochs, losses if tracked else None)


def make_run(
    path: Path,
    labels: Labels,
    stages: dict[str, MadeStage],
    *,
    decides: str | None = None,
    method: str = "drpl",
    finished: bool = True,
) -> Path:
    """A run folder whose stage `decides` (default: the last) made the split that was kept in the end."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(f'recipe = "digits"\nmethod = "{method}"\n')
    labels.save(path / "noise.npz")
    records = []
    for name, stage in stages.items():
        folder = path / "stages" / name
        folder.mkdir(parents=True)
        np.save(folder / "losses.npy", stage.losses.astype(np.float32))
        p_noisy = 1 / (1 + np.exp(-stage.doubt))
        np.savez(folder / "detection.npz", p_noisy=p_noisy, labelled=stage.labelled, doubt=stage.doubt)
        (folder / "detection.json").write_text(json.dumps({"gamma": 0.5, "warnings": []}))
        if stage.tracked is not None:
            (folder / "losses").mkdir()
            for epoch in range(stage.epochs):
                np.save(folder / "losses" / f"epoch-{epoch + 1:04}.npy", stage.tracked[:, epoch])
        records += [json.dumps({"stage": name, "epoch": epoch + 1}) for epoch in range(stage.epochs)]
    (path / "metrics.jsonl").write_text("".join(f"{record}\n" for record in records))
    if not finished:
        return path
    kept = stages[decides or list(stages)[-1]]
    p_noisy = 1 / (1 + np.exp(-kept.doubt))
    sure = np.full(len(labels), 0.5, np.float32)
    said = Said(labels.given, sure, 1 - p_noisy)
    table = build_table(labels, None, said, p_noisy, kept.labelled, {"last": kept.losses})
    write_table(path / "labels.parquet", table)
    noisy, known = labels.is_noisy
    about = [{"name": name, "epochs": stage.epochs, "detection": {}} for name, stage in stages.items()]
    result = {"schema": 1, "recipe": "digits", "method": method, "stages": about}
    result["identity"] = {"data": "made by hand", "labels": method}
    result["noise_rate"] = float(noisy[known].mean()) if known.any() else None
    (path / "result.json").write_text(json.dumps(result))
    return path
