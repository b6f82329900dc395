"""Cells as jobs: what submitit is given, by its executor for this machine; SLURM itself is not needed."""

import json
import os
import pickle
import re
import signal
import sys
import time

import pytest
from need import need

from fastdrpl.cli import main
from fastdrpl.compare import slurm
from fastdrpl.compare.cells import plan_cells
from fastdrpl.compare.folder import state_of
from fastdrpl.compare.grid import read_grid
from fastdrpl.compare.slurm import CellJob, job_file, submit_cells
from fastdrpl.errors import UserError
from fastdrpl.methods import METHODS

TEXT = """
[grid]
recipe = "digits"
methods = ["ce"]
noises = [{ kind = "uniform", ratio = 0.2 }]
seeds = [1, 2]
out = "out"

[flags]
limit = 100
limit_test = 40
model.width = 4

[methods.ce.ce.schedule]
epochs = 1
milestones = []

[slurm]
timeout_min = 5
cpus_per_task = 1
"""


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "g.toml").write_text(TEXT)
    found = read_grid(tmp_path / "g.toml", known_methods=list(METHODS))
    found.out.mkdir()
    return found


@pytest.fixture
def cells(grid):
    return plan_cells(grid).cells


class FakeJob:
    states: dict[str, bool] = {}  # noqa: RUF012 - of all jobs, as a cluster has them

    def __init__(self, folder, job_id):
        self.job_id = job_id

    def done(self):
        return self.states[self.job_id]


class FakeExecutor:
    """Notes what it is given, and runs nothing."""

    made: list["FakeExecutor"] = []  # noqa: RUF012

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.parameters, self.jobs = folder, cluster, {}, []
        self.in_batch = False
        self.made.append(self)

    def update_parameters(self, **parameters):
        if "nonsense" in parameters:
            raise NameError("unknown argument nonsense")
        self.parameters = parameters

    def batch(self):
        executor = self

        class Batch:
            def __enter__(self):
                executor.in_batch = True

            def __exit__(self, *exception):
                executor.in_batch = False

        return Batch()

    def submit(self, function):
        assert self.in_batch, "one array, not a job after the other"
        self.jobs.append(pickle.loads(pickle.dumps(function)))
        number = f"7_{len(FakeJob.states)}"
        FakeJob.states[number] = False
        return FakeJob(self.folder, number)


@pytest.fixture
def cluster(monkeypatch):
    class Fake:
        AutoExecutor, SlurmJob, LocalJob = FakeExecutor, FakeJob, FakeJob

    FakeExecutor.made, FakeJob.states = [], {}
    monkeypatch.setattr(slurm, "_submitit", lambda: Fake)
    return Fake


def test_what_is_submitted(grid, cells, cluster):
    submitted = submit_cells(cells, grid.out, grid.slurm, jobs=3)
    (executor,) = FakeExecutor.made
    assert executor.cluster == "slurm" and executor.folder == grid.out / "jobs"
    assert executor.parameters == slurm.DEFAULTS | {
        "timeout_min": 5,
        "cpus_per_task": 1,
        "slurm_array_parallelism": 3,
    }
    assert [(job.cell, job.out, job.threads) for job in executor.jobs] == [(c, grid.out, 1) for c in cells]
    assert submitted == [(cells[0], "7_0"), (cells[1], "7_1")]
    assert json.loads(job_file(cells[1], grid.out).read_text()) == {"job": "7_1"}


def test_a_cell_that_waits_is_not_submitted_twice(grid, cells, cluster, capsys):
    submit_cells(cells, grid.out, grid.slurm)
    FakeJob.states["7_0"] = True  # it has ended, without a result
    assert submit_cells(cells, grid.out, grid.slurm) == [(cells[0], "7_2")]
    assert "1 cells are with a job already" in capsys.readouterr().err
    assert submit_cells(cells, grid.out, grid.slurm) == []
    job_file(cells[0], grid.out).write_text("{")
    assert submit_cells(cells, grid.out, grid.slurm) == [(cells[0], "7_3")]


def test_the_verb_submits_what_is_missing(grid, cells, cluster, capsys):
    for name in ("result.json", "config.toml"):
        cells[0].folder(grid.out).mkdir(parents=True, exist_ok=True)
        (cells[0].folder(grid.out) / name).write_text("{}")
    (grid.out / "grid.json").write_text(json.dumps({"schema": 1, "name": grid.name, "data": {}, "cells": {}}))
    assert main(["compare", str(grid.file), "--slurm"]) == 0
    assert [job.cell.name for job in FakeExecutor.made[0].jobs] == [cells[1].name]
    assert f"job 7_0: {cells[1].name}" in capsys.readouterr().err


def test_what_submitit_refuses_is_said(grid, cells, cluster):
    with pytest.raises(UserError, match="nonsense") as caught:
        submit_cells(cells, grid.out, {"nonsense": 1})
    assert "[slurm]" in str(caught.value)
    assert not job_file(cells[0], grid.out).exists()


def test_without_submitit_its_install_line_is_shown(grid, cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="submitit") as caught:
        submit_cells(cells, grid.out, {})
    assert "pip install" in str(caught.value)


def test_without_slurm_it_says_so(grid, cells, monkeypatch):
    need("submitit")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="cannot submit to SLURM"):
        submit_cells(cells, grid.out, grid.slurm)


def test_jobs_run_the_cells(grid, cells):
    """By submitit's executor for this machine: pickled, in processes of their own."""
    submitit = need("submitit")
    parameters = grid.slurm | {"gpus_per_node": 0}
    submitted = submit_cells(cells, grid.out, parameters, cluster="local")
    jobs = [submitit.LocalJob(folder=grid.out / "jobs", job_id=number) for _, number in submitted]
    deadline = time.monotonic() + 240
    while not all(cell.ending(grid.out).exists() for cell in cells):
        assert time.monotonic() < deadline, [job.stderr() for job in jobs]
        time.sleep(0.2)
    for cell in cells:
        assert state_of(grid.out, cell).kind == "done", cell.log(grid.out).read_text()


def test_a_job_that_ends_early_saves_and_comes_back(grid, cells, monkeypatch):
    """What submitit does shortly before the time is over: a signal, whose handler asks for a checkpoint."""

    class Requeued(Exception):
        pass

    class Fake:
        class helpers:
            DelayedSubmission = staticmethod(lambda function: function)

    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(
        "fastdrpl.compare.children.cell_command", lambda cell, threads: [sys.executable, "-c", program]
    )
    monkeypatch.setattr(slurm, "_submitit", lambda: Fake)
    job = CellJob(cells[0], grid.out, 1)
    again = []

    def before_the_end(number, frame):
        if b"ready" not in cells[0].log(grid.out).read_bytes():
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            return
        again.append(job.checkpoint())
        raise Requeued

    before = signal.signal(signal.SIGALRM, before_the_end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Requeued):
            job()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    state = state_of(grid.out, cells[0])
    assert (state.kind, state.code) == ("stopped", 75)
    (copy,) = (pickle.loads(pickle.dumps(function)) for function in again)
    assert (copy.cell, copy.out, copy.threads) == (cells[0], grid.out, 1)
    (child,) = map(int, re.findall(r"ready (\d+)", cells[0].log(grid.out).read_text()))
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)  # ended, and waited for
