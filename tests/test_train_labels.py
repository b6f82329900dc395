"""`fastdrpl train --labels`: the samples of the file and their labels, and the circle that it closes."""

import csv
import json
import shutil

import fix_cases
import numpy as np
import pyarrow.parquet
import pytest
from fix_cases import TRAIN, hash_of, judge

from fastdrpl.cli import main, parse_training
from fastdrpl.config import Config
from fastdrpl.errors import DataError, UserError
from fastdrpl.folder import fingerprint_of
from fastdrpl.labels import Labels
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.view import training_view

NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fix_cases.prepare_photos(tmp_path_factory.mktemp("made"), NAMES)


@pytest.fixture
def labels(data, tmp_path):
    """A label file that moves sample 0 to bee and leaves sample 1 out; row 3 was not in the run."""
    rows = np.array([row for row in range(15) if row != 3])
    run = judge(tmp_path / "run", data, {0: (1, 0.99, 0.99), 1: (2, 0.99, 0.5)}, rows=rows)
    assert main(["fix", str(run), "--accept", "0.9", "--drop", "0.9", "--out", str(tmp_path / "l.csv")]) == 0
    return tmp_path / "l.csv"


def view(data, labels, **more):
    return training_view(Config(recipe="folder", labels=labels, **more), open_dataset(data))


def table_of(run) -> list[dict]:
    return pyarrow.parquet.read_table(run / "labels.parquet").to_pylist()


def suspects_of(run) -> int:
    return sum(not row["labelled"] for row in table_of(run))


# --- what is trained on ---


def test_the_view_has_the_samples_of_the_file_and_their_labels(data, labels):
    found = view(data, labels)
    rows = [row for row in range(15) if row not in (1, 3)]
    assert found.labels.source_row.tolist() == rows
    assert found.labels.given.tolist() == [1, *(row // 5 for row in rows[1:])]
    assert found.labels.truth.tolist() == [-1] * 13
    assert found.origin is not None and found.origin.dropped == (1,)
    assert any("1 images were dropped" in note for note in found.notes)


def test_a_limit_takes_some_of_them(data, labels):
    every, some = view(data, labels).labels, view(data, labels, limit=6).labels
    assert len(some) == 6 and set(some.source_row) < set(every.source_row)
    given = dict(zip(every.source_row, every.given, strict=True))
    assert all(given[row] == k for row, k in zip(some.source_row, some.given, strict=True))
    assert len(view(data, labels, limit=100).labels) == 13


def test_a_label_file_of_others_is_read_by_file_name(data, tmp_path):
    (tmp_path / "theirs.csv").write_text(
        "file,label\n" + "".join(f"{name},bee\n" for name in reversed(open_dataset(data).ids("train")))
    )
    assert view(data, tmp_path / "theirs.csv").labels.given.tolist() == [1] * 15


def changed(path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"ant", "bee"', '"bee", "ant"', "class 0 is 'bee' in the label file and 'ant' in the data set"),
        ('"data": "', '"data": "0', "made for other prepared data"),
        ('"dropped"', '"left"', "the line on where the labels come from is damaged"),
        ("\n3,5,1,", "\n3,4,1,", "row 4 has two lines"),
        ("\n3,5,1,", "\n3,15,1,", "row 15, which is no training image"),
        ("\n3,5,1,", "\n4,5,1,", "index must hold 0..12, each once; 3 is missing"),
        ("\n3,5,1,", "\n3,5,3,", "given: 1 of 13 values are outside 0..2"),
        ("\n3,5,1,", "\n3,5,bee,", "not a readable label file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(data, labels, old, new, said):
    with pytest.raises(DataError) as error:
        view(data, changed(labels, old, new))
    assert said in str(error.value) and str(labels) in str(error.value)


def test_a_quarantined_image_cannot_be_trained_on(tmp_path):
    for number in range(6):
        fix_cases.paint(tmp_path / "p" / "ab"[number % 2] / f"{number}.png", number % 2, number)
    (tmp_path / "p" / "a" / "0.png").write_bytes(b"nothing")
    data = fix_cases.prepare("folder", tmp_path / "p", tmp_path / "d")
    Labels(np.zeros(6, int), np.full(6, -1), np.arange(6), ("a", "b")).save(tmp_path / "mine.csv")
    with pytest.raises(DataError, match="row 0, which is no training image"):
        view(data, tmp_path / "mine.csv")


def test_as_a_file_of_noise_it_is_read_unless_it_leaves_images_out(data, labels, tmp_path):
    noise = Config(recipe="folder", noise=NoiseConfig(file=labels))
    with pytest.raises(UserError, match="leaves 1 images out") as error:
        training_view(noise, open_dataset(data))
    assert f"--labels {labels}" in str(error.value)
    run = judge(tmp_path / "whole", data, {0: (1, 0.99, 0.99)})
    assert main(["fix", str(run), "--accept", "0.9", "--out", str(tmp_path / "all.csv")]) == 0
    noise = Config(recipe="folder", noise=NoiseConfig(file=tmp_path / "all.csv"))
    assert training_view(noise, open_dataset(data)).labels.given.tolist() == [
        1,
        *(row // 5 for row in range(1, 15)),
    ]


def test_a_missing_file(data, tmp_path):
    with pytest.raises(UserError, match="there is no such label file"):
        view(data, tmp_path / "none.csv")


# --- the command line ---


def test_labels_set_the_noise_of_a_recipe_aside_and_refuse_noise_that_is_asked_for(labels, capsys):
    config = parse_training(["digits", "--labels", str(labels)])
    assert config.labels == labels and config.noise == NoiseConfig()
    assert parse_training(["digits"]).noise.kind == "uniform"
    assert main(["train", "digits", "--labels", str(labels), "--noise.kind", "uniform"]) == 2
    assert "no noise is added to them" in capsys.readouterr().err
    with pytest.raises(UserError, match="no noise is added"):
        Config(labels=labels, noise=NoiseConfig(kind="uniform", ratio=0.1))


def test_the_configuration_of_the_run_before_goes_on_with_labels(labels, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('recipe = "digits"\nseed = 7\n[noise]\nkind = "uniform"\nratio = 0.3\n')
    config = parse_training(["--config", str(file), "--labels", str(labels)])
    assert (config.seed, config.noise) == (7, NoiseConfig())
    file.write_text(f'recipe = "digits"\nlabels = "{labels.name}"\n')
    assert parse_training(["--config", str(file)]).labels == labels
    file.write_text('recipe = "digits"\nlabels = "l.csv"\n[noise]\nkind = "uniform"\nratio = 0.3\n')
    with pytest.raises(UserError, match="no noise is added"):
        parse_training(["--config", str(file)])


def test_the_identity_of_a_run_is_that_of_the_labels_and_not_of_their_place(labels, tmp_path):
    copy = tmp_path / "copy.csv"
    shutil.copy(labels, copy)
    here, there = (fingerprint_of(Config(labels=path)) for path in (labels, copy))
    assert here == there
    changed(copy, "\n3,5,1,", "\n3,5,0,")
    assert fingerprint_of(Config(labels=copy)) != here


# --- the circle ---


def test_photos_in_the_wrong_folder_are_found_fixed_and_trained_on(tmp_path, capsys):
    right = fix_cases.paint_folder(tmp_path / "photos", NAMES)
    data = fix_cases.prepare("folder", tmp_path / "photos", tmp_path / "data")
    train = ["train", "folder", "--data", str(data), *TRAIN]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*train, "--run", str(first)]) == 0
    found = sorted((row for row in table_of(first) if not row["labelled"]), key=lambda row: row["rank"])
    assert len(found) >= 10
    fixes = tmp_path / "fixes.csv"
    with open(fixes, "w", newline="") as file:  # as a person decides who sees the photos
        file.write(f"# fastdrpl fixes for run {hash_of(first)}\n")
        writer = csv.writer(file)
        writer.writerow(["index", "file", "decision", "label"])
        for row in found:
            writer.writerow([row["index"], row["file"], "relabel", right[row["file"]]])
    assert main(["fix", str(first), "--fixes", str(fixes), "--out", str(tmp_path / "labels.csv")]) == 0
    capsys.readouterr()
    assert main([*train, "--labels", str(tmp_path / "labels.csv"), "--run", str(second)]) == 0
    assert suspects_of(second) < len(found)
    wrong = [sum(row["given_name"] != right[row["file"]] for row in table_of(run)) for run in (first, second)]
    assert wrong[0] == 21 and wrong[1] == 21 - sum(row["given_name"] != right[row["file"]] for row in found)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{wrong[0] - wrong[1]} labels changed, 0 samples dropped" in said
    manifest = json.loads((second / "manifest.json").read_text())
    assert manifest["labels_from"]["hash"] == hash_of(first)
    # the same labels elsewhere are the same run; others are not
    moved = (tmp_path / "labels.csv").rename(tmp_path / "moved.csv")
    again = [*train, "--labels", str(moved), "--run", str(second)]
    (tmp_path / "labels.csv").write_text("other labels lie here by now")
    assert main(again) == 0
    index, row, given = moved.read_text().splitlines()[3].split(",")[:3]
    shutil.copy(moved, tmp_path / "other.csv")
    line = f"\n{index},{row},"
    changed(tmp_path / "other.csv", f"{line}{given},", f"{line}{(int(given) + 1) % 3},")
    assert main([*train, "--labels", str(tmp_path / "other.csv"), "--run", str(second)]) == 3
    assert "the labels of this run folder changed" in capsys.readouterr().err
    # the run before is damaged, or gone: that is said, and is no error
    (first / "labels.parquet").unlink()
    assert main(again) == 0
    assert "no comparison with the run before: cannot read the table" in capsys.readouterr().err
    shutil.rmtree(first)
    assert main(again) == 0
    said = " ".join(capsys.readouterr().err.split())
    hash = manifest["labels_from"]["hash"]
    assert f"no comparison with the run before: the labels come from the run {hash}" in said


DIGITS = [
    *("digits", "--limit", "240", "--limit_test", "50", "--batch_size", "16", "--optimiser.lr", "0.03"),
    *("--model.width", "8", "--engine.threads", "1", "--noise.ratio", "0.3", "--test_every", "0"),
    *("--method", "ce", "--ce.schedule.epochs", "12", "--ce.schedule.milestones", "9"),
]


def test_the_embedded_digits_are_fixed_by_a_person_and_trained_on_with_the_same_configuration(
    tmp_path, capsys
):
    first, second, labels = tmp_path / "first", tmp_path / "second", tmp_path / "labels.csv"
    short = ["--epochs_scale", "0.01", "--model.width", "4", "--detect.collapse", "relax"]
    assert main(["train", *DIGITS, *short, "--run", str(first)]) == 0
    before = table_of(first)
    seen = [row for row in before if not row["labelled"]]
    wrong = [row for row in seen if row["given"] != row["truth"]]
    lines = [f"{row['index']},relabel,{row['truth_name']}" for row in wrong[1:]]
    lines += [f"{row['index']},keep," for row in seen if row not in wrong]
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(
        "\n".join([f"# fastdrpl fixes for run {hash_of(first)}", "index,decision,label", *lines])
    )
    with open(fixes, "a") as file:
        file.write(f"\n{wrong[0]['index']},drop,\n")
    assert main(["fix", str(first), "--fixes", str(fixes), "--out", str(labels)]) == 0
    words = ["train", "--config", str(first / "config.toml"), "--labels", str(labels), "--run", str(second)]
    assert main(words) == 0  # the noise of the configuration is set aside
    after = {row["row"]: row for row in table_of(second)}
    assert len(wrong) > 10 and after.keys() == {row["row"] for row in before} - {wrong[0]["row"]}
    told = {row["row"]: row["given"] for row in before} | {row["row"]: row["truth"] for row in wrong}
    assert all(row["given"] == told[number] for number, row in after.items())
    assert all(row["truth"] == old["truth"] for old in before if (row := after.get(old["row"])))
    assert sum(row["given"] != row["truth"] for row in after.values()) == 72 - len(wrong)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{len(wrong) - 1} were wrong and are right now" in said


@pytest.mark.slow
def test_digits_are_fixed_by_a_number_and_fewer_of_their_labels_are_wrong(tmp_path, capsys):
    first, second, labels = tmp_path / "first", tmp_path / "second", tmp_path / "labels.csv"
    assert main(["train", *DIGITS, "--run", str(first)]) == 0
    assert main(["fix", str(first), "--accept", "0.5", "--drop", "0.95", "--out", str(labels)]) == 0
    # with the configuration of the run before, noise included
    words = ["train", "--config", str(first / "config.toml"), "--labels", str(labels), "--run", str(second)]
    assert main(words) == 0
    before, after = table_of(first), table_of(second)
    wrong = [sum(row["given"] != row["truth"] for row in rows) for rows in (before, after)]
    assert wrong[0] == 72 and wrong[1] < 60
    assert suspects_of(second) < suspects_of(first)
    assert len(after) < 240 and {row["row"] for row in after} < {row["row"] for row in before}
    assert "wrong labels" in capsys.readouterr().out


def test_a_table_is_fixed_and_trained_on(tmp_path):
    right = fix_cases.paint_folder(tmp_path / "photos", NAMES, each=16, wrong=4)
    with open(tmp_path / "photos" / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((name, name.partition("/")[0]) for name in right)])
    data = fix_cases.prepare("table", tmp_path / "photos" / "table.csv", tmp_path / "data")
    files = open_dataset(data).ids("train")
    wrong = {k: name for k, name in enumerate(files) if not name.startswith(right[name])}
    suspects = {k: (NAMES.index(right[name]), 0.99, 0.99) for k, name in wrong.items()}
    run = judge(tmp_path / "first", data, suspects)
    out, table = tmp_path / "labels.csv", tmp_path / "new.csv"
    words = ["fix", str(run), "--accept", "0.9", "--out", str(out), "--out-table", str(table)]
    assert main(words) == 0
    with open(table, newline="") as file:
        assert {row["path"]: row["label"] for row in csv.DictReader(file)} == right
    train = ["train", "folder", "--data", str(data), *TRAIN, "--labels", str(out), "--epochs_scale", "0.1"]
    assert main([*train, "--detect.collapse", "relax", "--run", str(tmp_path / "second")]) == 0
    rows = table_of(tmp_path / "second")
    assert len(suspects) == 12 and {row["file"]: row["given_name"] for row in rows} == right
