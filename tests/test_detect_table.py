"""The comparison as text: aligned, complete, and nothing of a run's name can spoil it."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_labels

from fastdrpl.detect.collecting import FoundRun, Score
from fastdrpl.detect.comparison import compare
from fastdrpl.detect.table import render
from fastdrpl.errors import DataError


def make_groups(name: str = "runs/a", ks=(5,), rate: float = 0.4):
    labels = make_labels(rate=rate)
    doubt = np.random.default_rng(0).random(len(labels)) + 0.5 * labels.is_noisy.noisy
    scores = (
        Score("first", "last loss", "loss", doubt),
        Score("first", "a long name of a detector", "own", doubt, doubt < 0.7, final=True, notes=("a note",)),
        Score("", "confident learning", "outside", -doubt, doubt < 2, notes=("a note", "another")),
    )
    return compare([FoundRun(Path(name), "ce", "digits", labels, scores)], ks)


def test_columns_stand_under_their_names():
    lines = render("text", make_groups(), []).splitlines()
    head = next(line for line in lines if line.startswith("stage"))
    rows = [line for line in lines if line.startswith(("  first", "* first", "  -"))]
    assert len(rows) == 3
    for name in ("AUC", "AP", "P@5", "kept", "TPR", "FPR"):
        end = head.index(f" {name}") + 1 + len(name)
        for row in rows:
            assert row[end - 1] != " " and (len(row) == end or row[end] == " "), (name, row)
    assert rows[0].split()[-3:] == ["-", "-", "-"]
    assert rows[1].startswith("* ") and lines[-1].startswith("* the split that decided")


def test_the_number_of_wrong_labels_is_the_first_k():
    groups = make_groups()
    noisy = int(make_labels().is_noisy.noisy.sum())
    head = next(line for line in render("text", groups, []).splitlines() if line.startswith("stage"))
    assert head.split()[2:6] == ["AUC", "AP", f"P@{noisy}", "P@5"]
    clean = render("text", make_groups(rate=0.0), [])
    assert "P@0" not in clean and "P@5" in clean


def test_figures_are_rounded_in_text_and_whole_in_json():
    groups = make_groups()
    row = groups[0].rows[1]
    whole = json.loads(render("json", groups, []))["groups"][0]["detectors"][1]
    assert whole["auc"] == row.auc and whole["tpr"] == row.tpr
    assert f"{row.auc:.4f}" in render("text", groups, [])


@pytest.mark.parametrize("name", ["a,b", 'say "so"', "with\nline", "\udcff.run"])
def test_odd_names_of_runs(name):
    groups = make_groups(name)
    rows = list(csv.reader(io.StringIO(render("csv", groups, []))))
    assert len({len(row) for row in rows}) == 1 and len(rows) == 4
    for form in ("text", "csv", "json"):
        render(form, groups, []).encode()
    if name.isprintable():
        assert rows[1][0] == name


def test_problems_stand_in_the_json():
    text = render("json", (), [(Path("a"), DataError("gone", where="there", fix="look"))])
    wanted = {"run": "a", "what": "gone", "where": "there", "fix": "look", "exit_code": 3}
    assert json.loads(text)["problems"] == [wanted]
    assert render("csv", (), []).count("\n") == 1


def test_notes_come_once_and_repeated_orders_are_marked():
    (group,) = make_groups()
    assert group.notes == ("a note", "another")
    assert [line.repeats for line in group.lines] == [False, True, False]
