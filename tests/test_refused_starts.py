"""A start that is refused leaves the folder as it was; a folder without a checkpoint binds nobody."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import toy
from PIL import Image

from fastdrpl.cli import main, parse_training
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.traces import Traces

SMALL = [
    "--limit",
    "60",
    "--model.width",
    "2",
    "--batch_size",
    "20",
    "--engine.threads",
    "1",
    "--test_every",
    "0",
]
ONE_EPOCH = ["--drpl.relabel.epochs", "2", "--drpl.given_epochs", "1", "--drpl.semi1.epochs", "1"]
SHORT = [*SMALL, *ONE_EPOCH, "--drpl.semi2.epochs", "1", "--drpl.gamma1", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "source" / name).mkdir(parents=True)
        for k in range(30):
            pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source" / name / f"{k}.png")
    prepare(PrepareConfig(kind="folder", source=folder / "source", out=folder / "data", size=32), quiet=True)
    return folder


def content(folder: Path):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


REFUSED = {
    "too large a crop": ["folder"],  # the recipe's 224 pixels, from images of 32
    "no such data": ["folder", "--data", "{tmp}/nowhere"],
    "noise that needs other data": ["digits", "--noise.kind", "nonuniform_ood", "--noise.ratio", "0.3"],
    "a label file that is not there": ["digits", "--noise.file", "{tmp}/nowhere.npz", "--noise.kind", "none"],
    "more ranks than there are": ["digits", "--engine.ranks", "7"],
    "fp16 without a GPU": ["digits", "--engine.precision", "fp16"],
    "a GPU that is not there": ["digits", "--engine.device", "cuda"],
    "shards that are not there": ["digits", "--order", "shards"],
    "a network of one width": ["digits", "--model.name", "resnet18", "--model.width", "3"],
    "a plan that cannot be": ["digits", "--drpl.given_epochs", "9999"],
}


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left(photos, tmp_path, capsys, name, there):
    recipe, *flags = [word.replace("{tmp}", str(tmp_path)) for word in REFUSED[name]]
    run = tmp_path / "a" / "b" / "run"
    if there:
        run.mkdir(parents=True)
    before = content(tmp_path)
    data = ["--data", str(photos / "data")] if recipe == "folder" and "--data" not in flags else []
    small = [word for word in SMALL if recipe == "digits"] if "--model.width" not in flags else []
    code = main(["train", recipe, *data, *small, *flags, "--run", str(run)])
    said = capsys.readouterr().err
    assert code in (2, 3), said
    assert "Traceback" not in said
    assert content(tmp_path) == before


def test_with_the_flag_that_the_error_names_the_next_start_works(photos, tmp_path, capsys):
    words = ["train", "folder", "--data", str(photos / "data"), "--run", str(tmp_path / "run")]
    assert main(words) == 2
    assert "--augment.size 32" in capsys.readouterr().err
    small = ["--augment.size", "32", "--model.name", "preact_resnet18", *SHORT]
    assert main([*words, *small]) == 0


def test_a_folder_without_a_checkpoint_takes_another_configuration(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "digits", *SHORT, "--run", str(run)]
    process = toy.FORKS.Process(target=toy.command, args=([*words[:-2], "--checkpoint.every", "1e9"], run))
    process.start()
    toy.wait_until(lambda: (run / "metrics.jsonl").exists() or process.exitcode is not None)
    process.kill()
    process.join()
    assert (run / "config.toml").exists()
    if (run / "checkpoints").exists():
        pytest.fail("it was too quick to be caught before its first checkpoint")
    assert main([*words, "--noise.ratio", "0.3"]) == 0
    assert json.loads((run / "result.json").read_text())["noise_rate"] == pytest.approx(0.3)
    capsys.readouterr()
    assert main(words) == 2  # now it is bound
    assert "noise.ratio: 0.3 there, 0.4 now" in capsys.readouterr().err


def test_relative_paths_in_a_file_mean_what_they_mean_there(tmp_path, monkeypatch):
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    (place / "mine.toml").write_text('[noise]\nratio = 0.0\nkind = "matrix"\nmatrix = "t.csv"\n')
    (place / "t.csv").write_text("1,0\n0,1\n")
    monkeypatch.chdir(elsewhere)
    config = parse_training(["digits", "--config", "../place/mine.toml"])
    assert config.noise.matrix.resolve() == place / "t.csv"
    (place / "t.csv").unlink()
    (elsewhere / "t.csv").write_text("1,0\n0,1\n")
    config = parse_training(["digits", "--config", "../place/mine.toml"])
    assert config.noise.matrix.resolve() == elsewhere / "t.csv"


def test_traces_keep_what_was_there_and_what_is_wanted(tmp_path):
    folder = tmp_path / "x" / "y"
    with pytest.raises(KeyError), Traces(folder):
        (folder / "file").write_text("1")
        (folder / "inner").mkdir()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "old").write_text("1")
    with Traces(folder) as traces:
        (folder / "new").write_text("1")
        traces.keep()
    assert {path.name for path in folder.iterdir()} == {"old", "new", ".lock"}
