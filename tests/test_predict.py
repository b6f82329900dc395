"""`fastdrpl predict`: the network of a run folder on image files, and one clear error for all that is missing."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from fastdrpl import prediction_files
from fastdrpl.cli import main
from fastdrpl.models import build_model

MEAN, STD, NAMES = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), ["dog, small", "cat", "Bär"]
STORED, INPUT = 12, 10


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves for prediction; its network is not trained, but its statistics are its own."""
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    network = build_model("preact_resnet18", 3, 4, seed=5).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(32, 3, INPUT, INPUT) * 2)
        network.linear.weight.mul_(6)  # predictions that differ
    safetensors.torch.save_file(network.state_dict(), folder / "export" / "model.safetensors")
    description = {"model": "preact_resnet18", "width": 4, "class_names": NAMES, "mean": MEAN, "std": STD}
    description |= {"stored_size": STORED, "input_size": INPUT, "schema": 1, "source": "folder"}
    (folder / "export" / "model.json").write_text(json.dumps(description))
    (folder / "result.json").write_text("{}")
    return folder


@pytest.fixture
def images(tmp_path):
    """70 images (more than one batch) in nested folders, of the stored size: nothing is resized."""
    folder, draw = tmp_path / "images", np.random.default_rng(2)
    for k in range(70):
        place = folder / f"part {k % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(draw.integers(0, 256, 3) + draw.normal(0, 40, (STORED, STORED, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{k:02}.png")
    return folder


def by_hand(run: Path, file: Path, temperature: float = 1.0) -> tuple[str, float]:
    network = build_model("preact_resnet18", 3, 4, seed=0)
    network.load_state_dict(safetensors.torch.load_file(run / "export" / "model.safetensors"))
    pixels = np.asarray(Image.open(file), np.float32)[1:-1, 1:-1] / 255  # the middle 10 of 12
    inputs = torch.tensor((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None]
    with torch.no_grad():
        probability = torch.softmax(network.eval()(inputs) / temperature, 1)[0]
    return NAMES[int(probability.argmax())], float(probability.max())


def test_each_image_gets_the_answer_of_the_network(run, images, tmp_path):
    out = tmp_path / "labels.csv"
    assert main(["predict", str(run), str(images), "--out", str(out)]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(path) for path in sorted(images.rglob("*.png"))]
    assert len(rows) == 70
    for row in rows:
        name, probability = by_hand(run, Path(row["file"]))
        assert row["class"] == name
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-3)
    assert {"dog, small", "Bär"} <= {row["class"] for row in rows}


def test_unreadable_images_are_named_and_the_others_labelled(run, images, tmp_path, capsys):
    files = sorted(images.rglob("*.png"))
    files[0].write_bytes(b"")
    files[69].write_bytes(files[5].read_bytes()[:60])
    assert main(["predict", str(run), str(images), "--out", str(tmp_path / "labels.csv")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert str(files[0]) in said
    assert str(files[69]) in said
    assert "68 images labelled, 2 unreadable" in said
    assert "labelled: 70 of 70 images (100 %)" in said
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 69


def test_a_reader_that_has_seen_enough_is_no_error(run, images, capsys, monkeypatch):
    """`fastdrpl predict RUN PATH | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert main(["predict", str(run), str(images)]) == 141
    assert "Traceback" not in capsys.readouterr().err


def set_temperature(run, **more):
    file = run / "export" / "model.json"
    calibration = {"temperature": 2.5, "labels": "test", "samples": 360, "wrong": None}
    calibration |= {"error_before": 0.1, "error_after": 0.01} | more
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 2, "calibration": calibration}))


def test_parquet_has_the_same_and_the_next_classes(run, images, tmp_path):
    out = tmp_path / "labels.parquet"
    assert main(["predict", str(run), str(images), "--out", str(out), "--top", "3"]) == 0
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == [
        *("file", "class", "probability"),
        *("class_2", "probability_2", "class_3", "probability_3"),
    ]
    assert table["file"].to_pylist() == [str(path) for path in sorted(images.rglob("*.png"))]
    for row in table.slice(0, 5).to_pylist():
        name, probability = by_hand(run, Path(row["file"]))
        assert row["class"] == name and row["probability"] == pytest.approx(probability, abs=1e-3)
    for row in table.to_pylist():
        assert {row["class"], row["class_2"], row["class_3"]} == set(NAMES)
        sure = [row["probability"], row["probability_2"], row["probability_3"]]
        assert sure == sorted(sure, reverse=True) and sum(sure) == pytest.approx(1, abs=1e-5)


def test_a_parquet_file_has_few_row_groups(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_files, "_GROUP", 65)  # more than a batch
    assert main(["predict", str(run), str(images), "--out", str(tmp_path / "out.parquet")]) == 0
    about = pyarrow.parquet.ParquetFile(tmp_path / "out.parquet").metadata
    assert (about.num_rows, about.num_row_groups) == (70, 1)


def test_probabilities_are_calibrated_unless_raw_ones_are_asked_for(run, images, tmp_path, capsys):
    set_temperature(run)
    said = {}
    for flag in ("yes", "no"):
        out = tmp_path / f"{flag}.csv"
        assert main(["predict", str(run), str(images), "--out", str(out), "--calibrated", flag]) == 0
        with open(out, newline="", encoding="utf-8") as file:
            said[flag] = list(csv.DictReader(file))
        error = capsys.readouterr().err
        assert ("temperature 2.5, fitted to 360 test labels" in error) == (flag == "yes")
        assert ("not calibrated" in error) == (flag == "no")
    for mended, raw in zip(said["yes"][::7], said["no"][::7], strict=True):
        name, probability = by_hand(run, Path(raw["file"]), temperature=2.5)
        assert mended["class"] == raw["class"] == name
        assert float(mended["probability"]) == pytest.approx(probability, abs=1e-3)
        assert float(raw["probability"]) == pytest.approx(by_hand(run, Path(raw["file"]))[1], abs=1e-3)
    assert any(
        float(a["probability"]) < float(b["probability"]) - 0.05 for a, b in zip(*said.values(), strict=True)
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"labels": "kept", "error_before": None, "error_after": None}, "there was no test set"),
        ({"wrong": 0.125, "error_before": None}, "of which 12.5% seem to be wrong"),
    ],
)
def test_it_is_said_what_the_temperature_was_fitted_to(run, images, capsys, more, said):
    set_temperature(run, **more)
    assert main(["predict", str(run), str(images / "part 0" / "00.png")]) == 0
    assert said in capsys.readouterr().err


def test_a_run_of_an_earlier_version_says_that_it_is_not_calibrated(run, images, capsys):
    assert main(["predict", str(run), str(images / "part 0" / "00.png")]) == 0
    shown = capsys.readouterr()
    assert "not calibrated: the run is of a version that fitted no temperature" in shown.err
    assert len(shown.out.splitlines()) == 2


def test_an_export_of_a_later_version_is_refused(run, images, capsys):
    file = run / "export" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 99}))
    assert main(["predict", str(run), str(images)]) == 3
    assert "newer version" in capsys.readouterr().err


def test_a_result_that_was_there_survives_what_goes_wrong(run, images, tmp_path, capsys):
    for file in images.rglob("*.png"):
        file.write_bytes(b"")
    for name in ("labels.csv", "labels.parquet"):
        (tmp_path / name).write_text("of yesterday")
        assert main(["predict", str(run), str(images), "--out", str(tmp_path / name)]) == 3
        assert (tmp_path / name).read_text() == "of yesterday"
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def other_network(run):
    safetensors.torch.save_file(nn.Linear(2, 2).state_dict(), run / "export" / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda run: (run / "result.json").unlink(), 2, "not finished"),
        (lambda run: run.rename(run.with_name("moved")), 2, "not finished"),
        (
            lambda run: (run / "export" / "model.safetensors").write_bytes(b"no network"),
            3,
            "model.safetensors",
        ),
        (lambda run: (run / "export" / "model.safetensors").unlink(), 3, "model.safetensors"),
        (other_network, 3, "model.safetensors"),
        (lambda run: (run / "export" / "model.json").write_text("{"), 3, "model.json"),
        (lambda run: (run / "export" / "model.json").write_text("{}"), 3, "model.json"),
        (lambda run: (run / "export" / "model.json").unlink(), 3, "model.json"),
        (lambda run: set_temperature(run, surplus=1), 3, "model.json"),
    ],
)
def test_a_run_that_cannot_predict_says_why(run, images, capsys, spoil, code, said):
    spoil(run)
    assert main(["predict", str(run), str(images)]) == code
    error = capsys.readouterr().err
    assert said in error
    assert str(run) in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("path", "out", "said"),
    [
        ("nowhere", "labels.csv", "nowhere"),
        ("empty", "labels.csv", "no images found"),
        ("images", "no/such/folder/labels.csv", "cannot write labels.csv"),
        ("images", "full.csv", "cannot write full.csv"),
        ("images", "empty", "ends in .csv or .parquet"),
        ("images", ".", "ends in .csv or .parquet"),
        ("images", "labels.txt", "ends in .csv or .parquet"),
    ],
)
def test_bad_paths_are_one_clear_error(run, images, monkeypatch, capsys, path, out, said):
    (images.parent / "empty").mkdir()
    (images.parent / "full.csv").mkdir()
    monkeypatch.chdir(images.parent)
    assert main(["predict", str(run), path, "--out", out]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("top", ["0", "4"])
def test_more_classes_than_there_are_is_an_error(run, images, capsys, top):
    assert main(["predict", str(run), str(images), "--top", top]) == 2
    assert "3 classes" in capsys.readouterr().err
