"""`fastdrpl fix`: who decides what, the label file and the log of changes, and what is refused."""

import csv
import json
import os
import shutil
from pathlib import Path

import fix_cases
import numpy as np
import pytest
from fix_cases import hash_of, judge

from fastdrpl.cli import main
from fastdrpl.labels import Labels, load_labels
from fastdrpl.loaders.dataset import open_dataset

NAMES = ("ant", "bee", "cow")
# sample -> (suggested, p_noisy, p_suggested)
SUSPECTS = {
    0: (1, 0.99, 0.95),  # sure in both
    1: (2, 0.99, 0.60),  # wrong, but what is it?
    2: (1, 0.70, 0.99),  # perhaps not wrong
    3: (0, 0.99, 0.95),  # the network comes to the given label
    4: (2, 0.90, 0.90),  # just enough
    5: (1, 0.60, 0.60),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fix_cases.prepare_photos(tmp_path_factory.mktemp("made"), NAMES)


@pytest.fixture
def run(data, tmp_path):
    return judge(tmp_path / "run", data, SUSPECTS)


def read_labels(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The lines of the head, and the others, read by the standard library."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.read().split("\n", 2)
        return lines[:2], list(csv.DictReader(lines[2].splitlines()))


def fix(run, *words) -> int:
    return main(["fix", str(run), *map(str, words)])


def refused(capsys, code, run, *words) -> str:
    capsys.readouterr()
    assert fix(run, *words) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("error: ") == 1
    return said


def test_accept_takes_what_is_wrong_and_known_and_drop_what_is_wrong(run, tmp_path, capsys):
    assert fix(run, "--accept", "0.9", "--drop", "0.95", "--out", tmp_path / "labels.csv") == 0
    _, lines = read_labels(tmp_path / "labels.csv")
    # 0 and 4 accepted, 3 keeps its label by the same rule, 1 dropped, 2 and 5 stay as they are
    assert [line["given_name"] for line in lines[:5]] == ["bee", "ant", "ant", "cow", "bee"]
    assert [line["file"] for line in lines[:3]] == ["ant/0.png", "ant/2.png", "ant/3.png"]
    assert len(lines) == 14
    with open(tmp_path / "labels.changes.csv", newline="") as file:
        log = list(csv.DictReader(file))
    assert [(line["index"], line["decision"], line["by"], line["from"], line["to"]) for line in log] == [
        ("0", "accept", "--accept", "ant", "bee"),
        ("1", "drop", "--drop", "ant", ""),
        ("3", "keep", "--accept", "ant", "ant"),
        ("4", "accept", "--accept", "ant", "cow"),
    ]
    assert [float(log[0][name]) for name in ("rank", "p_noisy", "p_suggested")] == pytest.approx(
        [1, 0.99, 0.95]
    )
    said = capsys.readouterr().out
    assert "2 of 15 labels change, 1 samples are dropped; 2 of 6 suspects stay undecided" in " ".join(
        said.replace("│", " ").split()
    )


def test_the_list_goes_before_the_numbers(run, tmp_path):
    fixes = tmp_path / "fixes.csv"
    rows = "0,ant/0.png,keep,ant\n1,,relabel,cow\n2,,drop,\n9,bee/9.png,relabel,ant\n"
    fixes.write_text(f"# fastdrpl fixes for run {hash_of(run)}\nindex,file,decision,label\n{rows}")
    assert fix(run, "--fixes", fixes, "--accept", "0.5", "--drop", "0.5", "--out", tmp_path / "l.csv") == 0
    _, lines = read_labels(tmp_path / "l.csv")
    names = {line["file"]: line["given_name"] for line in lines}
    # 0 and 1 by the list, 2 is dropped by it, 3 to 5 accepted by the number, 9 is no suspect
    expected = {"ant/0.png": "ant", "ant/1.png": "cow", "ant/3.png": "ant", "ant/4.png": "cow"}
    expected |= {"bee/5.png": "bee", "bee/9.png": "ant"}
    assert {name: names[name] for name in expected} == expected and "ant/2.png" not in names
    with open(tmp_path / "l.changes.csv", newline="") as file:
        by = {line["index"]: line["by"] for line in csv.DictReader(file)}
    assert by == {
        "0": "list",
        "1": "list",
        "2": "list",
        "9": "list",
        "3": "--accept",
        "4": "--accept",
        "5": "--accept",
    }


def test_the_label_file_is_one_that_labels_read_and_says_where_it_comes_from(run, data, tmp_path):
    truth = np.arange(15) // 5
    known = judge(tmp_path / "known", data, SUSPECTS, truth=truth)
    fix(known, "--accept", "0.9", "--drop", "0.95", "--out", tmp_path / "labels.csv")
    labels = Labels.load(tmp_path / "labels.csv")
    kept = [row for row in range(15) if row != 1]
    assert labels.class_names == NAMES and labels.source_row.tolist() == kept
    assert labels.truth.tolist() == truth[kept].tolist()
    assert labels.given.tolist() == [1, 0, 0, 2, *truth[5:].tolist()]
    head, _ = read_labels(tmp_path / "labels.csv")
    said = json.loads(head[1].removeprefix("# fastdrpl labels: "))
    assert said == {
        "run": str(known), "hash": hash_of(known), "data": open_dataset(data).fingerprint, "dropped": [1]
    }  # fmt: skip


def test_a_head_longer_than_what_a_reader_of_tables_takes_at_once(run, tmp_path):
    whole = tmp_path / "labels.csv"
    assert main(["fix", str(run), "--accept", "0.5", "--out", str(whole)]) == 0
    longer = tmp_path / "longer.csv"
    longer.write_bytes(b"# " + b"1234567, " * 300_000 + b"\n" + whole.read_bytes())
    assert load_labels(longer).fingerprint == load_labels(whole).fingerprint


def test_the_folder_that_one_is_in_is_no_place_for_a_copy(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fix", str(run), "--accept", "0.5", "--out_folder", "."]) in (2, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_samples_dropped_in_an_earlier_round_stay_dropped(data, tmp_path):
    rows = np.array([row for row in range(15) if row != 7])
    later = judge(tmp_path / "later", data, SUSPECTS, rows=rows)
    manifest = json.loads((later / "manifest.json").read_text())
    manifest["labels_from"] = {"run": "/gone", "hash": "0", "data": "0", "dropped": [7]}
    (later / "manifest.json").write_text(json.dumps(manifest))
    assert (
        fix(later, "--drop", "0.95", "--out", tmp_path / "labels.csv", "--out-folder", tmp_path / "copy") == 0
    )
    head, _ = read_labels(tmp_path / "labels.csv")
    assert json.loads(head[1].removeprefix("# fastdrpl labels: "))["dropped"] == [0, 1, 3, 7]
    assert not (tmp_path / "copy" / "bee" / "7.png").exists()
    assert (tmp_path / "copy" / "bee" / "8.png").exists()


def test_without_an_out_nothing_is_written(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert fix(run, "--drop", "0.9") == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert not list((tmp_path / "here").iterdir())


def test_a_number_that_decides_nothing_says_how_sure_the_run_is(run, capsys):
    assert fix(run, "--accept", "0.999") == 0
    assert "--accept 0.999 decided nothing" in (said := capsys.readouterr().out) and "0.9500" in said


def test_files_that_are_there_are_kept_unless_it_is_said(run, tmp_path, capsys):
    out = tmp_path / "labels.csv"
    for there in (out, tmp_path / "labels.changes.csv"):
        there.write_text("mine")
        said = refused(capsys, 2, run, "--drop", "0.9", "--out", out)
        assert "there is such a file already" in said and str(there) in said and "--overwrite" in said
        assert there.read_text() == "mine"
        assert fix(run, "--drop", "0.9", "--out", out, "--overwrite") == 0
        assert there.read_text() != "mine"
        out.unlink(), (tmp_path / "labels.changes.csv").unlink()


def test_outputs_that_would_change_what_they_come_from_are_refused(run, data, tmp_path, capsys):
    photos, fixes = data.parent / "photos", tmp_path / "fixes.csv"
    fixes.write_text(f"# fastdrpl fixes for run {hash_of(run)}\nindex,file,decision,label\n")
    link = tmp_path / "link"
    link.symlink_to(photos)
    before = sorted(path for place in (run, photos, data) for path in place.rglob("*"))
    for out, said in (
        (photos / "labels.csv", "lies in the source of the data"),
        (link / "ant" / "labels.csv", "lies in the source of the data"),
        (data / "labels.csv", "lies in the prepared data"),
        (run / "mine.csv", "lies in the folder of the run"),
        (fixes, "the fix list would be overwritten"),
        (tmp_path / "no" / "labels.csv", "there is no such folder"),
        (tmp_path / "labels.xlsx", "labels are written as .csv"),
        (tmp_path, "labels are written as .csv"),
    ):
        assert said in refused(capsys, 2, run, "--fixes", fixes, "--out", out, "--overwrite"), out
    assert "lies in the source" in refused(capsys, 2, run, "--drop", "0.5", "--out-folder", photos / "new")
    assert "never overwritten" in refused(capsys, 2, run, "--drop", "0.5", "--out-folder", run.parent)
    assert sorted(path for place in (run, photos, data) for path in place.rglob("*")) == before


def test_a_folder_that_is_read_only(run, tmp_path, capsys, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)  # root may write everywhere
    said = refused(capsys, 2, run, "--drop", "0.9", "--out", closed / "labels.csv")
    assert "nothing can be written in this folder" in said and not list(closed.iterdir())


def test_a_run_that_is_not_finished_and_a_folder_that_is_no_run(run, tmp_path, capsys):
    (run / "result.json").unlink()
    assert "not finished" in (said := refused(capsys, 2, run, "--drop", "0.9")) and f"status {run}" in said
    assert "there is no run here" in refused(capsys, 2, tmp_path, "--drop", "0.9")


def test_nothing_to_decide_and_numbers_that_are_no_probabilities(run, capsys):
    assert "nothing is decided" in refused(capsys, 2, run, "--out", "labels.csv")
    for number in ("90", "-0.1", "nan"):
        assert "is no probability" in refused(capsys, 2, run, "--accept", number)


def test_a_run_of_an_earlier_version_knows_too_little_to_accept(run, capsys):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(run / "labels.parquet")
    old = table.drop_columns(["p_suggested", "rank", "score"])
    for name in ("truth", "truth_name", "is_noisy"):
        old = old.append_column(name, pyarrow.nulls(len(old)))
    pyarrow.parquet.write_table(old.replace_schema_metadata({"fastdrpl_schema": "1"}), run / "labels.parquet")
    assert "earlier version" in refused(capsys, 2, run, "--accept", "0.9")
    assert fix(run, "--drop", "0.9") == 0


def test_data_that_moved_and_data_of_another_run(run, data, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"data": str(tmp_path / "gone")}))
    assert fix(run, "--drop", "0.9", "--out", tmp_path / "labels.csv") == 0  # labels need no data
    words = ("--drop", "0.9", "--out-folder", tmp_path / "copy")
    assert "no prepared dataset here" in refused(capsys, 2, run, *words)
    for number in range(4):
        fix_cases.paint(tmp_path / "others" / "ab"[number % 2] / f"{number}.png", number % 2, number)
    other = fix_cases.prepare("folder", tmp_path / "others", tmp_path / "other")
    said = refused(capsys, 3, run, *words, "--data", other)
    assert "these are not the images that the run was trained on" in said and "--data" in said
    assert not (tmp_path / "copy").exists()
    assert fix(run, *words, "--data", moved) == 0 and (tmp_path / "copy").is_dir()
