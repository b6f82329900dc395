"""A folder of photos, some of them in the wrong class: from the files to a list of wrong labels and a classifier."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import toy
from PIL import Image, ImageDraw

from fastdrpl.cli import main

CLASSES = ("disc", "frame", "grass", "sky", "stripes")
PER_CLASS, WRONG = 36, 5


def photo(kind: str, draw: np.random.Generator) -> Image.Image:
    """A photo of its kind in some size, never the same twice."""
    width, height = (int(n) for n in draw.integers(40, 90, 2))
    grey = draw.integers(90, 130, 3)
    pixels = np.full((height, width, 3), grey, np.float64)
    if kind == "grass":
        pixels[:] = (60, 160, 50)
    elif kind == "sky":
        pixels[:] = (90, 140, 230)
    elif kind == "stripes":
        pixels[(np.arange(height) // max(3, height // 8)) % 2 == 0] = 20
    image = Image.fromarray(np.clip(pixels + draw.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8))
    box = (width * 0.2, height * 0.2, width * 0.8, height * 0.8)
    if kind == "disc":
        ImageDraw.Draw(image).ellipse(box, fill=(220, 40, 40))
    elif kind == "frame":
        ImageDraw.Draw(image).rectangle((0, 0, width - 1, height - 1), outline=(240, 220, 30), width=9)
    return image


def save_turned(image: Image.Image, path: Path) -> None:
    """As a camera held upright stores it: turned pixels and a note that says so."""
    notes = Image.Exif()
    notes[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=notes, quality=95)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The folder, and which of its files show what."""
    folder, draw, shown = tmp_path_factory.mktemp("photos"), np.random.default_rng(4), {}
    for number, kind in enumerate(CLASSES):
        for k in range(PER_CLASS):
            place = CLASSES[(number + 1 + k) % 5] if k % 5 != 4 and k < WRONG + 1 else kind
            (folder / place).mkdir(exist_ok=True)
            path = folder / place / f"{kind}-{k:02}.{'png' if k % 3 else 'jpg'}"
            image = photo(kind, draw)
            if k == 30:
                save_turned(image, path)
            elif k == 33:
                image.convert("CMYK").save(path)
            else:
                image.save(path)
            shown[str(path.relative_to(folder))] = kind
    (folder / "sky" / "broken.jpg").write_bytes((folder / "sky" / "sky-30.jpg").read_bytes()[:300])
    (folder / "sky" / "notes.txt").write_text("not an image")
    return folder, shown


TRAIN = [
    *("--augment.size", "28", "--model.name", "preact_resnet18", "--model.width", "8"),
    *("--epochs_scale", "0.1", "--batch_size", "24", "--optimiser.lr", "0.03", "--engine.threads", "1"),
    *("--drpl.gamma1", "0.3", "--drpl.semi1.epochs", "60", "--drpl.semi2.epochs", "80"),
]


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    data = tmp_path_factory.mktemp("prepared") / "mine"
    words = ["--source", str(photos[0]), "--out", str(data), "--size", "32", "--test_fraction", "0.2"]
    assert main(["prepare", "folder", *words]) == 0
    return data


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "mine"
    assert main(["train", "folder", "--data", str(prepared), "--run", str(run), *TRAIN]) == 0
    return run


def table(run):
    return pyarrow.parquet.read_table(run / "labels.parquet").to_pylist()


def auc(score, positive):
    """Probability that a positive scores higher than a negative, ties counting half."""
    high, low = np.asarray(score)[positive], np.asarray(score)[~positive]
    return np.mean((high[:, None] > low) + 0.5 * (high[:, None] == low))


def test_the_corrupt_photo_is_named_and_left_out(prepared, trained):
    with open(prepared / "quarantine.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert any("sky/broken.jpg" in row for row in rows)
    assert len(rows) == 2  # a head and one image
    assert not any("broken" in row["file"] for row in table(trained))


def test_the_table_names_each_photo_and_where_it_lies(photos, trained):
    _, shown = photos
    rows = table(trained)
    assert len(rows) == 145  # four fifths of 181, without the broken one
    assert len({row["file"] for row in rows}) == 145
    for row in rows:
        assert row["file"] in shown
        assert row["given_name"] == row["file"].split("/")[0] == CLASSES[row["given"]]
        assert row["suggested_name"] == CLASSES[row["suggested"]]


def test_photos_in_the_wrong_folder_are_found(photos, trained):
    _, shown = photos
    rows = table(trained)
    wrong = np.array([shown[row["file"]] != row["given_name"] for row in rows])
    assert 8 <= wrong.sum() <= 25
    assert auc([row["p_noisy"] for row in rows], wrong) > 0.9
    assert auc([row["loss_semi1"] for row in rows], wrong) > 0.9
    right = [row["suggested_name"] == shown[row["file"]] for row in rows]
    assert np.mean(np.array(right)[wrong]) > 0.8


def test_held_out_labels_are_judged_on_request_also_of_a_finished_run(photos, prepared, trained, capsys):
    words = ["train", "folder", "--data", str(prepared), "--run", str(trained), *TRAIN]
    assert main(words) == 0 and not (trained / "held_out.csv").exists()
    assert main([*words, "--judge", "all"]) == 0
    with open(trained / "held_out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 35  # a fifth of each class, the broken one apart
    assert not {row["file"] for row in rows} & {row["file"] for row in table(trained)}
    wrong = np.array([photos[1][row["file"]] != row["given_name"] for row in rows])
    assert auc([float(row["p_noisy"]) for row in rows], wrong) > 0.9
    doubted = [row["labelled"] == "false" for row in rows]
    assert [row["suggested"] != row["given"] for row in rows] == doubted
    assert f"{sum(doubted)} of {len(rows)} held-out labels look wrong" in capsys.readouterr().out
    assert pyarrow.parquet.read_table(trained / "held_out.parquet").column_names == list(rows[0])


def test_a_training_outlives_who_reads_what_it_prints(prepared, trained):
    for path in trained.glob("held_out.*"):
        path.unlink()
    words = ["train", "folder", "--data", str(prepared), "--run", str(trained), *TRAIN, "--judge", "all"]
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "fastdrpl", *words], stdout=writer, stderr=subprocess.PIPE, env=environment
    )
    os.close(writer)
    assert done.returncode == 141 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert (trained / "held_out.csv").exists()


def test_what_nobody_knows_is_null_or_no_column(trained):
    rows, result = table(trained), json.loads((trained / "result.json").read_text())
    for row in rows:
        assert not {"truth", "truth_name", "is_noisy"} & row.keys()
    assert result["noise_rate"] is None
    assert result["test_may_be_wrong"] is True
    assert 0 < result["accuracy"]["last"] <= result["accuracy"]["best"] <= 1
    for stage in result["stages"]:
        found = stage["detection"]
        assert found["auc"] is found["tpr"] is found["fpr"] is None
        assert found["labelled"] + found["unlabelled"] == 145
    assert json.loads((trained / "stages" / "relabel" / "detection.json").read_text())["auc"] is None


def test_the_temperature_reckons_with_wrong_test_labels(trained):
    calibration = json.loads((trained / "export" / "model.json").read_text())["calibration"]
    assert calibration["labels"] == "test"
    assert 0 <= calibration["wrong"] < 0.5  # about one in seven is
    assert calibration["error_before"] is None
    assert "may be wrong too" in (trained / "export" / "card.md").read_text()


def test_new_photos_are_labelled(trained, tmp_path, capsys):
    draw, new = np.random.default_rng(99), tmp_path / "new"
    (new / "deeper").mkdir(parents=True)
    for kind in CLASSES:
        for k in range(8):
            photo(kind, draw).save(new / ("deeper" if k % 2 else ".") / f"{kind}-{k}.png")
    image = photo("sky", draw)
    image.convert("CMYK").save(new / "sky-cmyk.jpg")
    save_turned(image, new / "sky-turned.jpg")
    (new / "damaged.png").write_bytes((new / "sky-0.png").read_bytes()[:200])
    (new / "notes.txt").write_text("not an image")
    out = tmp_path / "labels.csv"
    assert main(["predict", str(trained), str(new), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "damaged.png" in said
    assert "42 images labelled, 1 unreadable" in " ".join(said.split())
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["file"]).name for row in rows} == {p.name for p in new.rglob("*-*.*")}
    right = [Path(row["file"]).name.split("-")[0] == row["class"] for row in rows]
    assert np.mean(right) > 0.9
    assert all(1 / 5 <= float(row["probability"]) <= 1 for row in rows)


def test_one_photo_is_labelled_to_standard_output(trained, photos, capsys):
    folder, _ = photos
    assert main(["predict", str(trained), str(folder / "grass" / "grass-30.jpg")]) == 0
    head, line = capsys.readouterr().out.strip().splitlines()
    assert head == "file,class,probability"
    assert line.split(",")[1] == "grass"


def test_a_prediction_is_that_of_the_network_in_the_run(trained, prepared, photos, capsys):
    """predict reads files, the run read the prepared set: resize, crop and normalisation must be the same."""
    folder, _ = photos
    assert main(["predict", str(trained), str(folder)]) == 0
    names = {
        str(Path(row["file"]).relative_to(folder)): row["class"]
        for row in csv.DictReader(capsys.readouterr().out.splitlines())
    }
    rows = table(trained)
    assert [names[row["file"]] for row in rows] == [row["suggested_name"] for row in rows]


def test_without_a_test_set_accuracies_are_null(photos, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["prepare", "folder", "--source", str(photos[0]), "--out", str(data), "--size", "16"]) == 0
    short = ["--augment.size", "14", "--model.width", "4", "--epochs_scale", "0.01"]
    assert main(["train", "folder", "--data", str(data), "--run", str(run), *TRAIN, *short]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["accuracy"] == {"best": None, "last": None}
    assert result["test_may_be_wrong"] is None
    assert all(stage["accuracy"] == {"best": None, "last": None} for stage in result["stages"])
    assert len(table(run)) == 5 * PER_CLASS
    calibration = json.loads((run / "export" / "model.json").read_text())["calibration"]
    kept = sum(row["labelled"] for row in table(run))
    assert (calibration["labels"], calibration["samples"]) == ("kept", kept)
    assert calibration["temperature"] >= 1
    assert "There was no test set" in (run / "export" / "card.md").read_text()


def test_an_interrupted_photo_run_is_no_network_yet(prepared, photos, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "folder", "--data", str(prepared), *TRAIN, "--epochs_scale", "1"]
    process = toy.FORKS.Process(target=toy.command, args=(words, run))
    process.start()
    toy.wait_until(lambda: (run / "metrics.jsonl").exists() or not process.is_alive())
    assert process.is_alive(), toy.log_of(run)
    assert main(["predict", str(run), str(photos[0])]) == 2
    assert "not finished" in capsys.readouterr().err
    process.terminate()
    process.join(60)
    assert process.exitcode == 75, toy.log_of(run)
    assert main(["predict", str(run), str(photos[0])]) == 2
