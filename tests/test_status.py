"""`fastdrpl status`: what it says of a run in every state, and that it only reads."""

import json
import os
import shutil
import signal
import time

import pytest
import toy

from fastdrpl.cli import main
from fastdrpl.errors import DataError, UserError
from fastdrpl.status import status_of

LONG = ("--drpl.semi2.epochs", "2000", "--test_every", "0", "--checkpoint.every", "1e9")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("status") / "finished"
    assert toy.train(run) == 0, toy.log_of(run)
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was asked about while it ran, and then stopped by a signal: -> folder, answers while running."""
    run = tmp_path_factory.mktemp("status") / "stopped"
    process = toy.start(run, *LONG)
    toy.wait_until(lambda: (run / "progress.json").exists() or not process.is_alive())
    assert process.is_alive(), toy.log_of(run)
    answers = []
    for _ in range(3):
        answers.append((status_of(run), process.pid))
        time.sleep(0.05)
    assert process.is_alive(), toy.log_of(run)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75, toy.log_of(run)
    return run, answers


def everything(folder):
    """Names, content and times of all files and folders."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in [folder, *folder.rglob("*")]
    }


def said(folder, capsys) -> dict[str, str]:
    """What `fastdrpl status` prints: name -> value."""
    assert main(["status", str(folder)]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line.strip()]
    return {name.strip(): value.strip() for name, value in (line for line in lines if len(line) == 2)}


def test_running(stopped):
    _, answers = stopped
    for state, process in answers:
        assert f"running (process {process} on " in state["verdict"]
        assert state["stage"] in ("relabel", "semi1", "semi2")
        assert 1 <= state["epoch"] <= state["epochs"]
        assert state["images_per_second"] > 0
        assert state["stage_seconds_left"] >= 0
        assert state["result"] is None


def test_stopped(stopped, capsys):
    run, _ = stopped
    state = status_of(run)
    assert state["verdict"] == "stopped; the training command continues it"
    assert state["last_checkpoint"] == sorted(p.name for p in (run / "checkpoints").iterdir())[-1]
    assert 0 <= state["last_checkpoint_age"] < 600
    assert state["stage_seconds_left"] is None
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert state["loss"] == records[-1]["loss"]
    tested = [r["test_accuracy"] for r in records if r["test_accuracy"] is not None]
    assert state["test_accuracy"] == (tested[-1] if tested else None)
    printed = said(run, capsys)
    assert printed["verdict"].startswith("stopped; the training command continues")
    assert printed["last checkpoint"] == state["last_checkpoint"]
    assert "stage seconds left" not in printed


def test_finished(finished, capsys):
    result = json.loads((finished / "result.json").read_text())
    state = status_of(finished)
    assert state["verdict"] == "finished"
    assert state["result"] == result
    printed = said(finished, capsys)
    assert printed["verdict"] == "finished"
    assert printed["labels that look wrong"] == f"{result['suspects']} of 160"
    assert f"{result['accuracy']['last']:.2%}" in printed["accuracy"]
    assert not {"stage", "epoch", "loss"} & printed.keys()


def test_killed_before_the_first_checkpoint(stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped[0], run)
    shutil.rmtree(run / "checkpoints")
    assert status_of(run)["verdict"] == "stopped before its first checkpoint"
    assert status_of(run)["last_checkpoint"] is None


def test_just_begun(tmp_path, stopped, capsys):
    """Only the configuration is there: nothing is known yet, and that is no error."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(stopped[0] / "config.toml", run)
    assert said(run, capsys) == {"verdict": "stopped before its first checkpoint"}


def test_a_line_that_is_being_written_is_not_read(stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped[0], run)
    before = status_of(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"stage": "semi2", "ep')
    after = status_of(run)
    assert after["loss"] == before["loss"]
    assert after["epoch"] == before["epoch"]


def test_it_only_reads(finished, stopped):
    for run in (finished, stopped[0]):
        before = everything(run)
        assert main(["status", str(run)]) == 0
        assert everything(run) == before


def test_not_a_run_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    for place in (tmp_path, tmp_path / "nowhere", file):
        with pytest.raises(UserError, match="not a run folder") as caught:
            status_of(place)
        assert caught.value.exit_code == 2
    assert main(["status", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_a_damaged_file_is_named(finished, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoints", "data"))
    (run / name).write_text("{broken\n")
    with pytest.raises(DataError, match=name):
        status_of(run)
