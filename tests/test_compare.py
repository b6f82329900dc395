"""`fastdrpl compare` on real runs: cells that fail, filling what is missing, signals, places, what is shown."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from fastdrpl.cli import main
from fastdrpl.compare import scheduler
from fastdrpl.compare.cells import plan_cells
from fastdrpl.compare.children import cell_command, cell_environment, start_child
from fastdrpl.compare.display import Display
from fastdrpl.compare.folder import state_of
from fastdrpl.compare.grid import read_grid
from fastdrpl.compare.scheduler import choose_places, run_cells
from fastdrpl.errors import UserError
from fastdrpl.lock import RunLock
from fastdrpl.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
TINY = """
[grid]
recipe = "digits"
methods = ["ce", "drpl"]
noises = [{ kind = "uniform", ratio = 0.2 }]
seeds = [1]
out = "out"

[flags]
limit = 160
limit_test = 60
batch_size = 32
model.width = 4
engine.threads = 1

[methods.ce.ce.schedule]
epochs = 2
milestones = []

[methods.drpl.drpl]
given_epochs = 2
average = 2
gamma1 = 0.9
relabel = { epochs = 3, milestones = [] }
semi1 = { epochs = 2, milestones = [] }
semi2 = { epochs = 2, milestones = [] }
"""


def write(folder, text=TINY):
    file = folder / "tiny.toml"
    file.write_text(text)
    return file


def cells_of(file):
    grid = read_grid(file, known_methods=list(METHODS))
    return grid, plan_cells(grid).cells


def times(out):
    """When each result was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("result.json")}


# --- whole runs ---


def test_a_failed_cell_stops_no_other_and_the_next_call_fills_it(tmp_path, capsys):
    file, out = write(tmp_path), tmp_path / "out"
    obstacle = out / "digits" / "ce" / "U-0.2" / "seed-1" / "notes.txt"

    # 1: something lies where a cell wants to be.
    assert main(["compare", str(file), "--only", "drpl"]) == 0
    first = capsys.readouterr()
    assert "digits/drpl/U-0.2/seed-1 in" in first.err and "1 of 1 cells to run" in first.err
    assert "1 of 2 runs are not finished" in first.out
    after_first = times(out)
    assert set(after_first) == {"digits/drpl/U-0.2/seed-1/result.json"}
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("mine")
    text = TINY.replace("seeds = [1]", "seeds = [1, 2]")
    assert main(["compare", str(write(tmp_path, text)), "--only", "ce"]) == 1
    second = capsys.readouterr()
    log = out / "digits" / "ce" / "U-0.2" / "seed-1.log"
    assert "FAILED  digits/ce/U-0.2/seed-1 (exit 2): the folder is not empty" in second.err
    assert str(log) in second.err and "notes.txt" in log.read_text()
    assert "(n = 1)" in (out / "tables.md").read_text()
    assert (
        "Failed: digits/ce/U-0.2/seed-1 (exit 2): the folder is not empty" in (out / "tables.md").read_text()
    )
    assert (out / "digits" / "ce" / "U-0.2" / "seed-2" / "result.json").exists(), "the others went on"
    assert obstacle.read_text() == "mine"

    # 2: it is taken away, and the same command does what is missing and nothing else.
    obstacle.unlink()
    write(tmp_path)
    before = times(out)
    assert main(["compare", str(file)]) == 0
    third = capsys.readouterr()
    assert "1 of 2 cells to run" in third.err
    assert {name: when for name, when in times(out).items() if name in before} == before
    assert set(times(out)) - set(before) == {"digits/ce/U-0.2/seed-1/result.json"}
    assert "failed" not in (out / "tables.md").read_text()

    # 3: nothing is left to do, and that is said.
    before = times(out)
    assert main(["compare", str(file)]) == 0
    assert "nothing to do: all 2 cells are done" in capsys.readouterr().err
    assert times(out) == before
    result = json.loads((out / "digits" / "ce" / "U-0.2" / "seed-1" / "result.json").read_text())
    table = (out / "tables.md").read_text()
    assert f"| {100 * result['accuracy']['best']:.2f} |" in table.replace("*", "")
    assert "model.width = 4 (recipe: 16)" in table

    # 4: the command that is shown is the one that ran: it finds its result.
    grid, cells = cells_of(file)
    done = subprocess.run(
        cell_command(cells[0]), cwd=grid.out, env=cell_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "labels look wrong" in done.stdout and times(out) == before

    # 5: the folder may move.
    shutil.move(out, tmp_path / "moved")
    assert main(["compare", str(file), "--out", str(tmp_path / "moved")]) == 0
    assert "nothing to do" in capsys.readouterr().err


def start(file, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "fastdrpl", "compare", str(file), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_every_cell_and_the_same_command_goes_on(tmp_path, number):
    epochs = 100
    text = TINY.replace('"ce", "drpl"', '"ce"').replace("seeds = [1]", "seeds = [1, 2, 3]")
    text = text.replace("epochs = 2\nmilestones", f"epochs = {epochs}\nmilestones")
    text = text.replace("limit = 160", "limit = 160\ntest_every = 0")
    file, out = write(tmp_path, text), tmp_path / "out"
    runs = [out / "digits" / "ce" / "U-0.2" / f"seed-{seed}" for seed in (1, 2, 3)]

    def epochs_of(run):
        path = run / "metrics.jsonl"
        return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.exists() else []

    process = start(file, "--jobs", "2")
    try:
        toy.wait_until(lambda: all(map(epochs_of, runs[:2])) or process.poll() is not None, 200)
        assert process.poll() is None, process.stdout.read()
        # As a terminal does it: to the whole group. The cells are not in it, else a second signal would end them.
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert "stopped digits/ce/U-0.2/seed-1; the same command continues it" in said
    for run in runs[:2]:
        assert 0 < len(epochs_of(run)) < epochs and not (run / "result.json").exists()
        assert list((run / "checkpoints").iterdir())
        ending = json.loads(Path(f"{run}.json").read_text())
        assert ending["exit_code"] == 75 and ending["stopped"]
    assert not runs[2].exists(), "nothing was started after the signal"
    _, cells = cells_of(file)
    assert [state_of(out, cell).kind for cell in cells] == ["stopped", "stopped", "missing"]
    if number == signal.SIGTERM:
        return
    stopped_at = [len(epochs_of(run)) for run in runs[:2]]
    process = start(file, "--jobs", "2")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    for run, before in zip(runs, [*stopped_at, 0], strict=True):
        assert epochs_of(run) == list(range(1, epochs + 1))
        assert "continues" in Path(f"{run}.log").read_text() or before == 0, Path(f"{run}.log").read_text()
    assert "n = 3 seeds" in (out / "tables.md").read_text()


def test_a_cell_that_is_killed_is_named_and_goes_on_next_time(tmp_path, capsys, monkeypatch):
    file = write(tmp_path, TINY.replace('"ce", "drpl"', '"ce"'))
    monkeypatch.setenv("FASTDRPL_FAULT", "checkpoint.before-rename")
    assert main(["compare", str(file)]) == 1
    assert "FAILED  digits/ce/U-0.2/seed-1 (exit 9)" in capsys.readouterr().err
    monkeypatch.delenv("FASTDRPL_FAULT")
    assert main(["compare", str(file)]) == 0


def test_a_cell_of_another_process_is_left_alone(tmp_path, capsys):
    file = write(tmp_path, TINY.replace('"ce", "drpl"', '"ce"'))
    grid, (cell,) = cells_of(file)
    with RunLock(cell.folder(grid.out)):
        (grid.out / "grid.json").write_text(
            json.dumps({"schema": 1, "name": grid.name, "data": {}, "cells": {}})
        )
        assert state_of(grid.out, cell).kind == "running"
        assert main(["compare", str(file)]) == 1
        said = capsys.readouterr().err
        assert f"{cell.name} is left alone" in said and "nothing to do" not in said
    with RunLock(grid.out):
        assert main(["compare", str(file)]) == 2
    assert "in use" in capsys.readouterr().err


# --- places ---


@pytest.mark.parametrize(
    ("gpus", "jobs", "per_gpu", "cores", "devices", "threads"),
    [
        ([], 0, 1, 8, [None], 8),
        ([], 3, 1, 8, [None] * 3, 2),
        ([], 5, 1, 2, [None] * 5, 1),
        (["0", "1"], 0, 1, 16, ["0", "1"], 8),
        (["0", "1"], 0, 2, 16, ["0", "1", "0", "1"], 4),
        (["3", "5"], 3, 2, 16, ["3", "5", "3"], 5),
        (["GPU-a"], 1, 4, 4, ["GPU-a"], 4),
    ],
)
def test_where_cells_run(gpus, jobs, per_gpu, cores, devices, threads):
    places = choose_places(gpus, jobs, per_gpu, cores)
    assert list(places.devices) == devices and places.threads == threads


def test_more_cells_than_the_gpus_are_to_hold():
    with pytest.raises(UserError, match="--jobs 5") as caught:
        choose_places(["0", "1"], 5, 2, 8)
    assert "--per_gpu 3" in str(caught.value)


@pytest.mark.parametrize(
    ("visible", "count", "wanted"),
    [("", 2, ["0", "1"]), ("4, 7", 2, ["4", "7"]), ("4,7", 1, ["4"]), ("GPU-x", 1, ["GPU-x"]), ("0", 0, [])],
)
def test_the_gpus_are_called_as_they_were_given(monkeypatch, visible, count, wanted):
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert scheduler.find_gpus() == wanted


def test_the_environment_of_a_cell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["more", "", "/elsewhere"]))
    found = cell_environment(3, "7")
    assert found["CUDA_VISIBLE_DEVICES"] == "7" and found["OMP_NUM_THREADS"] == "3"
    paths = found["PYTHONPATH"].split(os.pathsep)
    assert paths[-2:] == [str(tmp_path / "more"), "/elsewhere"] and all(map(os.path.isabs, paths))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in cell_environment()


def test_the_threads_of_a_cell(tmp_path):
    _, cells = cells_of(write(tmp_path))
    assert "--engine.threads" in cell_command(cells[0], 5) and "5" not in cell_command(cells[0], 5)
    _, cells = cells_of(write(tmp_path, TINY.replace("engine.threads = 1\n", "")))
    words = cell_command(cells[0], 5)
    assert words[words.index("--engine.threads") + 1] == "5"
    assert "--engine.threads" not in cell_command(cells[0])


# --- many cells at once, with processes that only pretend ---


class Pretending:
    """Processes in the place of runs: each notes its start, waits, and ends with the code that `codes` gives it."""

    def __init__(self, monkeypatch, folder, codes, seconds=0.4):
        self.folder, self.codes, self.seconds = folder, codes, seconds
        monkeypatch.setattr("fastdrpl.compare.children.cell_command", self.command)

    def command(self, cell, threads=0):
        code = self.codes.get(cell.seed, 0)
        program = (
            "import os, signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
            f"open({str(self.folder / 'starts')!r}, 'a').write("
            f"f\"{cell.seed} {{os.environ.get('CUDA_VISIBLE_DEVICES', '')}} {{time.monotonic()}}\\n\")\n"
            f"time.sleep({self.seconds})\nprint('error: it went wrong {cell.seed}\\n  where: here')\n"
            f"sys.exit({code})\n"
        )
        return [sys.executable, "-c", program]


def many(tmp_path, count=6):
    text = TINY.replace('"ce", "drpl"', '"ce"').replace("[1]", str(list(range(count))))
    grid, cells = cells_of(write(tmp_path, text))
    grid.out.mkdir()
    return grid, cells


def test_at_most_so_many_at_once_and_each_gpu_its_share(tmp_path, monkeypatch):
    grid, cells = many(tmp_path)
    Pretending(monkeypatch, tmp_path, {2: 3, 4: 5})
    stream = io.StringIO()
    endings, stopped = run_cells(
        cells, grid.out, choose_places(["a", "b"], 0, 1, 2), Display(grid.out, 6, 0, stream=stream)
    )
    assert not stopped
    assert {e.cell.seed: e.code for e in endings} == {0: 0, 1: 0, 2: 3, 3: 0, 4: 5, 5: 0}
    assert {e.cell.seed: e.error for e in endings if e.code} == {
        2: "it went wrong 2",
        4: "it went wrong 4",
    }
    starts = [line.split() for line in (tmp_path / "starts").read_text().splitlines()]
    assert {gpu for _, gpu, _ in starts} == {"a", "b"}
    for gpu in ("a", "b"):
        when = [float(t) for _, g, t in starts if g == gpu]
        assert len(when) == 3
        assert all(later - earlier > 0.4 for earlier, later in itertools.pairwise(when))
    said = stream.getvalue()
    assert said.count("start ") == 6 and said.count("done ") == 4 and said.count("FAILED ") == 2
    assert f"log: {cells[2].log(grid.out)}" in said
    states = {cell.seed: state_of(grid.out, cell) for cell in cells}
    assert (states[2].kind, states[2].code, states[2].error) == ("failed", 3, "it went wrong 2")


def test_a_run_that_was_asked_to_stop_is_waited_for(tmp_path, monkeypatch):
    grid, cells = many(tmp_path)
    Pretending(monkeypatch, tmp_path, {}, seconds=60)
    began = time.monotonic()
    display = Display(grid.out, 6, 0, stream=io.StringIO())
    refresh = display.refresh

    def signal_ourselves(running, waiting):
        starts = tmp_path / "starts"
        if starts.exists() and len(starts.read_text().splitlines()) == 2 and not display._stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        refresh(running, waiting)

    monkeypatch.setattr(display, "refresh", signal_ourselves)
    before = signal.getsignal(signal.SIGTERM)
    endings, stopped = run_cells(cells, grid.out, choose_places([], 2, 1, 2), display)
    assert stopped and time.monotonic() - began < 50
    assert [(e.code, e.stopped) for e in endings] == [(75, True)] * 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert {state_of(grid.out, cell).kind for cell in cells[2:]} == {"missing"}


def test_no_process_is_left_after_an_error_of_ours(tmp_path, monkeypatch):
    grid, cells = many(tmp_path, 2)
    Pretending(monkeypatch, tmp_path, {}, seconds=60)
    display = Display(grid.out, 2, 0, stream=io.StringIO())
    children = []
    monkeypatch.setattr(
        scheduler, "start_child", lambda *a, **k: children.append(start_child(*a, **k)) or children[-1]
    )

    def fail(running, waiting):
        raise ZeroDivisionError

    monkeypatch.setattr(display, "refresh", fail)
    with pytest.raises(ZeroDivisionError):
        run_cells(cells, grid.out, choose_places([], 2, 1, 2), display)
    assert len(children) == 2 and all(child.process.poll() is not None for child in children)
