"""`accelerate launch fastdrpl/train.py` on small sources in the published layouts, once with every back end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from need import need
from PIL import Image

from bench.generate_imagenet import generate
from fastdrpl.cli import main

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    str(ROOT / "fastdrpl" / "train.py"),
]
SHORT = {
    "--epochs_scale": "0.01",
    "--batch_size": "40",
    "--drpl.gamma1": "1",
    "--drpl.gamma2": "1",
    "--engine.threads": "1",
    "--engine.eval_batch": "60",
    "--engine.workers": "1",
}
BACK_ENDS = {
    "resident": [],
    "ffcv": ["--engine.loader", "ffcv"],
    "dali": ["--engine.loader", "dali"],
    "worker": ["--engine.loader", "worker"],
    "shards": ["--engine.loader", "dali", "--order", "shards"],
}


def launch(words: list[str], run: Path) -> dict:
    """One short run in processes of its own; -> result.json."""
    flags = [word for flag in SHORT.items() for word in flag]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCH, *words, *flags, "--run", str(run)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((run / "result.json").read_text())


def back_ends(*quick: str) -> pytest.MarkDecorator:
    """Every back end; those that are not `quick` are slow, for another data set has them quick."""
    each = [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in BACK_ENDS]
    return pytest.mark.parametrize("loader_flags", each, indirect=True)


@pytest.fixture
def loader_flags(request: pytest.FixtureRequest) -> list[str]:
    library = {"ffcv": "ffcv", "dali": "nvidia.dali", "shards": "nvidia.dali"}.get(request.param)
    if library:
        need(library)
    return BACK_ENDS[request.param]


@pytest.fixture(scope="module")
def imagenet64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of 1000 classes, and one for testing: ten pickled batches and the validation batch."""
    base = tmp_path_factory.mktemp("imagenet64")
    source = generate(base / "downloads", images=10_000, val=1000, size=64, layout="pickle")
    words = ["--source", str(source), "--out", str(base / "data"), "--subset", "--format", "shards"]
    assert main(["prepare", "imagenet64", *words]) == 0
    return base / "data"


@back_ends("resident", "ffcv", "shards")
def test_imagenet64(imagenet64: Path, tmp_path: Path, loader_flags: list[str]) -> None:
    noise = ["--noise.kind", "uniform_ood", "--noise.ratio", "0.4", "--noise.exact", "global"]
    limits = ["--limit", "200", "--limit_test", "30"]
    words = ["imagenet64", "--data", str(imagenet64), "--model.width", "4", *limits, *noise, *loader_flags]
    result = launch(words, tmp_path / "run")
    assert result["samples"] == 200 and result["classes"] == 100 and result["noise_rate"] == 0.4
    table = pyarrow.parquet.read_table(tmp_path / "run" / "labels.parquet").to_pylist()
    swapped = [row for row in table if row["truth"] == -2]
    assert len(table) == 200 and len(swapped) == 80 and all(row["is_noisy"] for row in swapped)
    assert len({row["row"] for row in table}) == 200  # no image twice
    network = json.loads((tmp_path / "run" / "export" / "model.json").read_text())
    assert len(network["class_names"]) == 100 and network["class_names"][0] == "n02708093"


@pytest.fixture(scope="module")
def webvision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes, Google and Flickr, in the layout of WebVision 1.0; an image of the list is missing."""
    base = tmp_path_factory.mktemp("webvision")
    source, random = base / "downloads", np.random.default_rng(3)
    (source / "info").mkdir(parents=True)
    wnids = [f"n0144{number:04}" for number in range(8)]
    (source / "info" / "synsets.txt").write_text("".join(f"{wnid} a thing, thing\n" for wnid in wnids))
    lists = {
        "train_filelist_google.txt": ("google/q{0:04}/g{1}.jpg", 9),
        "train_filelist_flickr.txt": ("flickr/q{0:04}/f{1}.jpg", 5),
        "val_filelist.txt": ("val{0:03}{1:03}.jpg", 4),
    }
    for name, (pattern, count) in lists.items():
        lines = []
        for k in range(8):
            for number in range(count):
                path = pattern.format(k, number)
                lines.append(f"{path} {k}\n")
                place = source / ("val_images_256" if name.startswith("val") else "") / path
                place.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 60, (50, 70, 3), dtype=np.uint8)
                pixels[:, 8 * k : 8 * k + 8] += 150
                if path != "flickr/q0001/f2.jpg":
                    Image.fromarray(pixels).save(place)
        (source / "info" / name).write_text("".join(lines))
    words = ["--source", str(source), "--out", str(base / "data"), "--first", "5", "--size", "64"]
    assert main(["prepare", "webvision", *words, "--store", "jpeg", "--format", "shards"]) == 0
    return base / "data"


@back_ends("worker", "dali")
def test_webvision(webvision: Path, tmp_path: Path, loader_flags: list[str]) -> None:
    words = ["webvision", "--data", str(webvision), "--augment.size", "56", *loader_flags]
    result = launch(words, tmp_path / "run")
    assert result["samples"] == 5 * 14 - 1 and result["classes"] == 5
    assert result["noise_rate"] is None and result["accuracy"]["last"] is not None
    table = pyarrow.parquet.read_table(tmp_path / "run" / "labels.parquet")
    files = table["file"].to_pylist()
    assert sum(name.startswith("google/") for name in files) == 45
    assert sum(name.startswith("flickr/") for name in files) == 24
