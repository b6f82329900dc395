"""Small coloured photos in class folders or a table, and run folders made by hand that have judged them."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fastdrpl.cli import main
from fastdrpl.labels import Labels
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.report.table import Said, build_table, write_table

COLOURS = ((40, 60, 200), (40, 180, 60), (210, 50, 40))
TRAIN = [
    *("--method", "ce", "--model.name", "preact_resnet18", "--model.width", "4", "--augment.size", "16"),
    *("--augment.crop", "pad", "--batch_size", "16", "--optimiser.lr", "0.01", "--engine.threads", "1"),
    *("--ce.schedule.epochs", "14", "--ce.schedule.milestones", "10", "--test_every", "0"),
]


def paint(path: Path, colour: int, seed: int) -> None:
    """A photo of 16 pixels of one of the colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 25, (16, 16, 3))
    Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(path)


def paint_folder(folder: Path, names: tuple[str, ...], each: int = 20, wrong: int = 7) -> dict[str, str]:
    """Class folders of photos, the first `wrong` of each colour in those of the other classes; file -> right class."""
    right = {}
    for colour, name in enumerate(names):
        for number in range(each):
            place = names[(colour + (1 + number % 2 if number < wrong else 0)) % len(names)]
            file = f"{place}/{name}-{number:02}.png"
            paint(folder / file, colour, 100 * colour + number)
            right[file] = name
    return right


def prepare(kind: str, source: Path, out: Path, *more: str) -> Path:
    words = ["prepare", kind, "--source", str(source), "--out", str(out), "--size", "16", "--workers", "1"]
    assert main([*words, *more]) == 0
    return out


def prepare_photos(folder: Path, names: tuple[str, ...]) -> Path:
    """Prepared from a folder of five photos of each class, in the order of the classes."""
    for number in range(5 * len(names)):
        paint(folder / "photos" / names[number // 5] / f"{number}.png", number // 5, number)
    return prepare("folder", folder / "photos", folder / "data")


def judge(
    run: Path,
    data: Path,
    suspects: dict[int, tuple[int, float, float]],
    *,
    truth: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    given: np.ndarray | None = None,
    accuracy: float | None = None,
) -> Path:
    """A finished run over prepared data. `suspects`: sample -> (suggested class, p_noisy, p_suggested)."""
    dataset = open_dataset(data)
    split = dataset.split("train")
    rows = np.flatnonzero(split.valid) if rows is None else rows
    given = split.label[rows] if given is None else given
    truth = np.full(len(rows), -1) if truth is None else truth
    labels = Labels(given, truth, rows, dataset.class_names)
    suggested, p_noisy = given.copy(), np.full(len(rows), 0.01)
    p_suggested, labelled = np.full(len(rows), 0.8, np.float32), np.ones(len(rows), bool)
    for sample, (suggests, noisy, sure) in suspects.items():
        suggested[sample], p_noisy[sample], p_suggested[sample], labelled[sample] = (
            suggests,
            noisy,
            sure,
            False,
        )
    run.mkdir(parents=True)
    labels.save(run / "noise.npz")
    losses = {"ce": p_noisy.astype(np.float32)}
    said = Said(suggested, p_suggested, np.exp(-p_noisy))
    table = build_table(labels, dataset.ids("train"), said, p_noisy, labelled, losses)
    write_table(run / "labels.parquet", table)
    (run / "config.toml").write_text('recipe = "folder"\nmethod = "ce"\n')
    identity = {"config": hashlib.sha256(str(run).encode()).hexdigest(), "data": dataset.fingerprint}
    identity["labels"] = labels.fingerprint
    manifest = {"data": str(data.resolve()), "identity": identity}
    (run / "manifest.json").write_text(json.dumps(manifest))
    result = {"recipe": "folder", "method": "ce", "identity": identity}
    result["accuracy"] = {"best": accuracy, "last": accuracy}
    (run / "result.json").write_text(json.dumps(result))
    return run


def hash_of(run: Path) -> str:
    """The hash of a run as the contract of fixes.csv has it."""
    identity = json.loads((run / "result.json").read_text())["identity"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
