"""The tables of a grid, from result.json files made by hand: layouts, means, the paper's numbers, scaled runs."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest

from fastdrpl import config_file
from fastdrpl.cli import main, parse_training
from fastdrpl.compare.cells import plan_cells
from fastdrpl.compare.facts import detection_of, entries_of, read_runs
from fastdrpl.compare.folder import check_folder, claim_folder, identity_of, record_ending
from fastdrpl.compare.grid import Grid, read_grid
from fastdrpl.compare.render import markdown
from fastdrpl.compare.tables import build_tables
from fastdrpl.errors import DataError
from fastdrpl.methods import METHODS


def make(
    folder, *, recipe="cifar10", table="IV", methods=("ce", "drpl"), noises, seeds=(1, 2, 3), flags=""
) -> Grid:
    lines = ", ".join(f"{{ {noise} }}" for noise in noises)
    (folder / "g.toml").write_text(
        f'[grid]\nrecipe = "{recipe}"\ntable = "{table}"\nmethods = {list(methods)}\n'
        f"noises = [{lines}]\nseeds = {list(seeds)}\n[flags]\n{flags}\n"
    )
    return read_grid(folder / "g.toml", known_methods=list(METHODS))


def finish(
    grid: Grid, cell, *, best=0.8, last=0.7, seconds=(10.0, 20.0), tpr=0.9, fpr=0.1, auc=0.95, machine=None
):
    """The files of a finished run that the tables read."""
    folder = cell.folder(grid.out)
    folder.mkdir(parents=True)
    figures = {"labelled": 60, "unlabelled": 40, "auc": auc, "tpr": tpr, "fpr": fpr}
    other = {"labelled": 50, "unlabelled": 50, "auc": 0.1, "tpr": 0.2, "fpr": 0.3}  # for show only
    stages = [
        {"name": "a", "seconds": seconds[0], "detection": figures, "decides": True},
        {"name": "b", "seconds": seconds[1], "detection": other, "decides": False},
    ]
    result = {"suspects": 40, "noise_rate": 0.4, "accuracy": {"best": best, "last": last}, "stages": stages}
    result |= {} if machine is None else {"machine": machine}
    (folder / "result.json").write_text(json.dumps(result))
    config = parse_training(list(cell.words[1:]))
    (folder / "config.toml").write_text(config_file.dumps(config))


def cells_of(grid: Grid):
    plan = plan_cells(grid)
    identity = check_folder(grid.out, identity_of(grid, plan))
    grid.out.mkdir(parents=True, exist_ok=True)
    claim_folder(grid.out, identity, plan)
    return plan.cells


def tables_of(grid: Grid):
    return build_tables(grid, read_runs(grid.out, plan_cells(grid).cells))


def row(table, method, line):
    """The texts of one line of a method: the method stands in its first line only."""
    current = ""
    for texts in table.rows:
        current = texts[0] or current
        if (current, texts[1]) == (method, line):
            return texts[2:]
    raise AssertionError(f"no row {method} {line}")


U40, NU30, CLEAN = 'kind = "uniform", ratio = 0.4', 'kind = "nonuniform", ratio = 0.3', 'kind = "none"'


# --- figures ---


def test_mean_deviation_and_difference_to_the_paper(tmp_path):
    grid = make(tmp_path, noises=[CLEAN, U40])
    draw = np.random.default_rng(0)
    best = {}
    for cell in cells_of(grid):
        values = draw.uniform(0.5, 1.0, 2)
        best.setdefault((cell.method.label, cell.noise.label), []).append(values)
        finish(grid, cell, best=values[0], last=values[1], seconds=(100.0, cell.seed))
    (table,) = tables_of(grid)
    assert table.columns == ["method", "", "0", "U-0.4"]
    paper = {("ce", "0"): 93.87, ("ce", "U-0.4"): 83.32, ("drpl", "0"): 94.47, ("drpl", "U-0.4"): 92.92}
    for method, name in (("ce", "CE"), ("drpl", "DRPL")):
        for column, noise in enumerate(("0", "U-0.4")):
            ours = 100 * np.array(best[method, noise])
            for k, line in enumerate(("best epoch", "last epoch")):
                wanted = f"{np.mean(ours[:, k]):.2f} ± {np.std(ours[:, k], ddof=1):.2f}"
                assert row(table, name, line)[column] == wanted
            number = paper[method, noise]
            assert row(table, name, "paper")[column] == f"{number:.2f}"
            assert row(table, name, "minus paper")[column] == f"{np.mean(ours[:, 0]) - number:+.2f}"
            assert row(table, name, "seconds")[column] == "102 ± 1"
    assert any("n = 3 seeds (1, 2, 3)" in note for note in table.notes)
    assert not any("Scaled" in note or "Other settings" in note for note in table.notes)


def test_the_best_of_each_column_is_marked(tmp_path):
    grid = make(tmp_path, noises=[CLEAN, U40], seeds=(1,))
    best = {("ce", "0"): 0.9, ("drpl", "0"): 0.8, ("ce", "U-0.4"): 0.6, ("drpl", "U-0.4"): 0.7}
    for cell in cells_of(grid):
        finish(grid, cell, best=best[cell.method.label, cell.noise.label], last=0.5)
    (table,) = tables_of(grid)
    marked = {(table.rows[i][0], table.rows[i][1], table.columns[j]) for i, j in table.bold}
    assert {entry for entry in marked if entry[1] == "best epoch"} == {
        ("CE", "best epoch", "0"),
        ("DRPL", "best epoch", "U-0.4"),
    }
    assert sum(table.rows[i][1] == "last epoch" for i, _ in table.bold) == 4, "equal ones are all marked"
    assert not any(entry[1] in ("seconds", "paper") for entry in marked)
    assert "**90.00**" in markdown("g", [table]) and "**80.00**" not in markdown("g", [table])


def test_missing_failed_and_fewer_seeds(tmp_path):
    grid = make(tmp_path, noises=[U40, NU30], seeds=(1, 2))
    for cell in cells_of(grid):
        key = (cell.method.label, cell.noise.label, cell.seed)
        if key[:2] == ("ce", "U-0.4"):
            finish(grid, cell)
        elif key == ("drpl", "U-0.4", 1):
            finish(grid, cell, best=0.6)
        elif key in (("drpl", "U-0.4", 2), ("drpl", "NU-0.3", 1)):
            cell.ending(grid.out).parent.mkdir(parents=True, exist_ok=True)
            record_ending(grid.out, cell, 5, "too few labels | look right", 3.0, stopped=False)
    (table,) = tables_of(grid)
    assert row(table, "CE", "best epoch") == ["80.00 ± 0.00", "-"]
    assert row(table, "DRPL", "best epoch") == ["60.00 (n = 1)", "failed (exit 5)"]
    assert row(table, "DRPL", "minus paper") == ["-32.92", "-"]
    notes = "\n".join(table.notes)
    assert "3 of 8 runs are not finished" in notes
    failed = re.findall(r"Failed: (\S+) \(exit 5\): too few labels \| look right; log (\S+)", notes)
    names = ["cifar10/drpl/NU-0.3/seed-1", "cifar10/drpl/U-0.4/seed-2"]
    assert sorted(failed) == [(name, f"{name}.log") for name in names]


def test_a_run_that_was_stopped_is_no_failure(tmp_path):
    grid = make(tmp_path, noises=[U40], seeds=(1,))
    for cell in cells_of(grid):
        cell.ending(grid.out).parent.mkdir(parents=True, exist_ok=True)
        record_ending(grid.out, cell, 75, "", 3.0, stopped=True)
    (table,) = tables_of(grid)
    assert row(table, "CE", "best epoch") == ["-"]
    assert "2 of 2 runs are not finished" in "\n".join(table.notes)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("epochs_scale = 0.1", "epochs_scale = 0.1 (recipe: 1.0)"),
        ("limit = 500", "limit = 500 (recipe: 0)"),
        ("model.width = 8", "model.width = 8 (recipe: 64)"),
        ("[methods.ce]\nce.schedule.epochs = 100", "ce.schedule.epochs = 100 (recipe: 120) of ce"),
        ("[methods.ce]\nce.schedule.milestones = [1]", "ce.schedule.milestones = 1 (recipe: 40 80) of ce"),
    ],
)
def test_scaled_runs_are_marked_and_not_compared(tmp_path, flags, text):
    grid = make(tmp_path, noises=[U40], seeds=(1,), flags=flags)
    for cell in cells_of(grid):
        finish(grid, cell)
    (table,) = tables_of(grid)
    assert row(table, "CE", "paper") == ["not comparable"]
    assert row(table, "CE", "minus paper") == ["-"]
    (note,) = (note for note in table.notes if note.startswith("Scaled runs"))
    assert text in note
    assert "83.32" not in markdown("g", [table])
    of_all = "[methods" not in flags
    assert row(table, "DRPL", "paper") == ["not comparable" if of_all else "92.92"]


def test_other_settings_are_named_and_compared(tmp_path):
    grid = make(
        tmp_path, noises=[U40], seeds=(1,), flags="batch_size = 64\nengine.threads = 3\ntest_every = 2"
    )
    for cell in cells_of(grid):
        finish(grid, cell)
    (table,) = tables_of(grid)
    assert row(table, "CE", "paper") == ["83.32"]
    (note,) = (note for note in table.notes if note.startswith("Other settings"))
    assert note == "Other settings than the recipe's: batch_size = 64 (recipe: 128)."


@pytest.mark.parametrize("other", ["bf16", "fp32"])
def test_runs_of_several_precisions_are_told(tmp_path, other):
    grid = make(tmp_path, noises=[U40])
    for number, cell in enumerate(cells_of(grid)):
        finish(grid, cell, machine={"precision": "fp32" if number else other})
    (table,) = tables_of(grid)
    assert ("Not all in one precision: bf16 (1 run), fp32 (5 runs)." in table.notes) is (other == "bf16")


def test_another_noise_than_the_papers_has_no_number_beside_it(tmp_path):
    grid = make(
        tmp_path,
        noises=[U40, f'{U40}, label = "all", excludes_truth = false', 'kind = "uniform", ratio = 0.45'],
        seeds=(1,),
    )
    for cell in cells_of(grid):
        finish(grid, cell)
    (table,) = tables_of(grid)
    assert row(table, "CE", "paper") == ["83.32", "-", "-"]


def test_the_noise_of_the_flags_counts_too(tmp_path):
    grid = make(tmp_path, noises=[U40], seeds=(1,), flags="noise.excludes_truth = false")
    for cell in cells_of(grid):
        finish(grid, cell)
    (table,) = tables_of(grid)
    assert all(texts[1] != "paper" for texts in table.rows)


# --- layouts ---


def test_detection_in_the_layout_of_table_1(tmp_path):
    ood = 'kind = "uniform_ood", ratio = 0.4'
    grid = make(tmp_path, recipe="imagenet32", table="I", noises=[U40, ood], seeds=(1, 2))
    for cell in cells_of(grid):
        finish(grid, cell, tpr=0.9 if cell.seed == 1 else 0.92, fpr=0.05)
    inside, outside = tables_of(grid)
    assert inside.columns[2:] == ["U-0.4"] and outside.columns[2:] == ["U-OOD-0.4"]
    assert row(inside, "DRPL", "TPR") == [f"0.91 ± {0.02 / math.sqrt(2):.2f}"]
    assert row(inside, "DRPL", "FPR") == ["0.05 ± 0.00"]
    assert row(inside, "DRPL", "AUC") == ["0.950 ± 0.000"]
    assert row(inside, "DRPL", "paper") == ["0.94"] and row(inside, "DRPL", "minus paper") == ["-0.03"]
    assert all(texts[1] != "paper" for texts in outside.rows), "the paper's rows of DRPL are lost there"


def test_the_layout_of_table_3(tmp_path):
    grid = make(tmp_path, recipe="webvision", table="III", noises=[CLEAN], seeds=(1,))
    for cell in cells_of(grid):
        finish(grid, cell, best=0.75 if cell.method.label == "ce" else 0.8)
    (table,) = tables_of(grid)
    assert table.columns == ["", "CE", "DRPL"]
    assert table.rows[:4] == [
        ["best epoch", "75.00", "80.00"],
        ["paper", "73.88", "82.08"],
        ["minus paper", "+1.12", "-2.08"],
        ["last epoch", "70.00", "70.00"],
    ]
    assert (0, 2) in table.bold and (0, 1) not in table.bold


def test_the_plain_layout(tmp_path):
    noises = [U40, 'kind = "none", label = "clean"']
    grid = make(tmp_path, recipe="digits", table="plain", noises=noises, seeds=(1,))
    for cell in cells_of(grid):
        finish(grid, cell, auc=None if cell.noise.label == "clean" else 0.95)
    (table,) = tables_of(grid)
    names = ("best", "last", "AUC", "s")
    assert table.columns == ["method", *(f"U-0.4 {n}" for n in names), *(f"clean {n}" for n in names)]
    assert table.rows[0] == ["ce", "80.00", "70.00", "0.950", "30", "80.00", "70.00", "-", "30"]


def test_the_split_that_decided_is_the_one_reported():
    def stage(decides, tpr):
        return {"decides": decides, "detection": None if tpr is None else {"tpr": tpr}}

    found = [
        detection_of({"stages": stages}).get("tpr")
        for stages in (
            [stage(True, 0.1), stage(True, 0.2), stage(False, 0.3)],
            [stage(True, 0.1), stage(False, None)],
            [stage(True, 0.1), stage(True, None)],
            [stage(False, None)],
        )
    ]
    assert found == [0.2, 0.1, 0.1, None]


# --- files ---


def test_the_three_files_say_the_same(tmp_path, capsys):
    grid = make(tmp_path, noises=[CLEAN, U40], seeds=(1, 2))
    for cell in cells_of(grid):
        if (cell.method.label, cell.seed) != ("drpl", 2):
            finish(grid, cell, best=0.5 + cell.seed / 10)
    assert main(["compare", str(tmp_path / "g.toml"), "--tables"]) == 0
    printed = capsys.readouterr().out
    text = {kind: (grid.out / f"tables.{kind}").read_text() for kind in ("md", "csv", "tex")}
    assert text["md"] in printed
    (table,) = tables_of(grid)
    from_md = [
        [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        for line in text["md"].splitlines()
        if line.startswith("|") and "---" not in line
    ]
    from_csv = list(csv.reader(io.StringIO(text["csv"])))
    assert from_md == from_csv[1 : 2 + len(table.rows)] == [table.columns, *table.rows]
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text["tex"], re.DOTALL)[1].replace("\\midrule\n", "")
    from_tex = [
        [re.sub(r"\\textbf\{(.*)\}", r"\1", cell).replace("$\\pm$", "±") for cell in line.split(" & ")]
        for line in body.replace(" \\\\\n", "\n").splitlines()
    ]
    assert from_tex == from_md
    assert text["tex"].count("{") == text["tex"].count("}")
    lines = list(csv.DictReader(io.StringIO((grid.out / "cells.csv").read_text())))
    assert len(lines) == 8 and [line["state"] for line in lines].count("done") == 6
    done = [line for line in lines if line["state"] == "done"]
    assert {float(line["best"]) for line in done} == {0.6, 0.7}
    assert {float(line["seconds"]) for line in done} == {30.0}


def test_latex_has_no_letter_that_it_reads_otherwise(tmp_path):
    grid = make(tmp_path, noises=[f'{U40}, label = "a_b"'], seeds=(1,))
    for cell in cells_of(grid):
        cell.ending(grid.out).parent.mkdir(parents=True, exist_ok=True)
        record_ending(grid.out, cell, 2, "50 % of $HOME & {more} #1 ~ ^ \\", 1.0, stopped=False)
    assert main(["compare", str(tmp_path / "g.toml"), "--tables"]) == 0
    text = (grid.out / "tables.tex").read_text()
    body = "\n".join(text.splitlines()[1:]).replace("\\\\\n", "\n").replace(" & ", " ")
    assert not re.findall(r"(?<!\\)[%#&_]", body), body
    assert "50 \\% of \\$HOME \\& \\{more\\} \\#1" in text


def test_tables_change_nothing_else(tmp_path):
    grid = make(tmp_path, noises=[U40], seeds=(1,))
    for cell in cells_of(grid):
        finish(grid, cell)

    def others():
        return {
            path: path.stat().st_mtime_ns
            for path in sorted(grid.out.rglob("*"))
            if path.is_file() and path.name not in ("tables.md", "tables.csv", "tables.tex", "cells.csv")
        }

    before = others()
    for _ in range(2):
        assert main(["compare", str(tmp_path / "g.toml"), "--tables"]) == 0
    assert others() == before


@pytest.mark.parametrize(
    ("file", "content"),
    [("result.json", "{"), ("result.json", '{"stages": []}'), ("config.toml", "limit = ")],
)
def test_a_damaged_run_is_named(tmp_path, file, content):
    grid = make(tmp_path, noises=[U40], seeds=(1,))
    for cell in cells_of(grid):
        finish(grid, cell)
    damaged = cell.folder(grid.out) / file
    damaged.write_text(content)
    with pytest.raises(DataError) as caught:
        tables_of(grid)
    assert str(damaged) in str(caught.value)


def test_entries_gather_the_seeds(tmp_path):
    grid = make(tmp_path, noises=[U40], seeds=(4, 2))
    cells = cells_of(grid)
    for cell in cells:
        finish(grid, cell, best=cell.seed / 10)
    entry = entries_of(read_runs(grid.out, cells))["cifar10", "ce", "U-0.4"]
    assert entry.values("best") == [0.4, 0.2]
    assert entry.mean("best") == pytest.approx(0.3)
    assert entry.deviation("best") == pytest.approx(math.sqrt(0.02))
