"""`fastdrpl status`: what it says of a run in every state, and that it only reads."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import toy
from prepare_cases import ROOT

from fastdrpl.cli import main
from fastdrpl.errors import DataError, UserError
from fastdrpl.journal import read_journal
from fastdrpl.lock import RunLock
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
    toy.wait_until(
        lambda: (
            ((run / "progress.json").exists() and read_journal(run / "metrics.jsonl"))
            or not process.is_alive()
        )
    )
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


def made(path, *, failed=None, result=None):
    """A run folder by hand that nobody is training in."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text('recipe = "digits"\n')
    if failed is not None:
        (path / "progress.json").write_text(json.dumps(failed))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


RESULT = {"suspects": 1234, "samples": 50000, "accuracy": {"best": 0.9, "last": 0.875}}


def test_watching_ends_when_the_run_does_and_says_how(tmp_path, capsys):
    """A run that appears, gets on, is replaced and finishes, with a lock that this process holds for it."""
    run, steps = tmp_path / "run", []
    words = ["status", str(run), "--watch", "--every", "0.1"]

    def act():
        steps.append(wait_for("waiting (not there yet)"))
        made(run)
        with RunLock(run):
            steps.append(wait_for("running"))
            (run / "progress.json").write_text(
                json.dumps({"stage": "ce", "epoch": 3, "epochs": 9, "images_per_second": 1500.0})
            )
            steps.append(wait_for("ce, epoch 3 of 9, 1,500 images/s"))
            run.rename(tmp_path / "before")
            steps.append(wait_for("waiting (not there yet)", times=2))
        made(tmp_path / "next", result=RESULT).rename(run)

    text = [""]

    def wait_for(words, times=1):
        def said():
            text[0] += capsys.readouterr().out
            return text[0].count(words) == times

        toy.wait_until(said)
        return words

    thread = threading.Thread(target=act)
    thread.start()
    assert main(words) == 0
    thread.join()
    assert len(steps) == 4
    lines = (text[0] + capsys.readouterr().out).splitlines()
    assert lines[0] == f"{run}: waiting (not there yet)"
    assert lines[-1] == f"{run}: finished: 1,234 of 50,000 labels look wrong, test 87.50%"
    assert len(lines) == 5  # nothing is said without news


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"result": RESULT}, 0),
        ({"failed": {"failed": "a loss is no number", "exit_code": 4}}, 4),
        ({}, 75),
    ],
)
def test_the_exit_code_of_watching_is_that_of_the_run(tmp_path, capsys, files, code):
    run = made(tmp_path / "run", **files)
    before = everything(run)
    assert main(["status", str(run), "--watch"]) == code
    assert everything(run) == before
    finished = made(tmp_path / "finished", result=RESULT)
    assert main(["status", str(run), str(finished), "--watch"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(run), str(run), str(finished)]
    assert code != 4 or "ended with exit code 4: a loss is no number" in lines[0]
    assert main(["status", str(run), str(finished)]) == 0
    said = capsys.readouterr().out.replace("\n", "")  # a long path is broken into lines
    assert str(run) in said and str(finished) in said


def test_a_run_that_goes_on_after_a_failure_is_not_at_its_end(tmp_path):
    run = made(tmp_path / "run", failed={"failed": "too few labels", "exit_code": 5})
    assert status_of(run)["exit_code"] == 5
    with RunLock(run):
        state = status_of(run)
    assert state["exit_code"] is None and state["verdict"].startswith("running")


def test_what_cannot_be_read_while_it_is_replaced_is_read_later(tmp_path, capsys):
    run = made(tmp_path / "run", result=RESULT)
    (run / "result.json").write_text("{half")
    threading.Timer(0.5, lambda: (run / "result.json").write_text(json.dumps(RESULT))).start()
    assert main(["status", str(run), "--watch", "--every", "0.1"]) == 0
    assert "waiting (result.json is not JSON" in capsys.readouterr().out


def test_a_terminal_is_refreshed_and_ctrl_c_ends_it_calmly(tmp_path):
    run = made(tmp_path / "run")
    program = "import sys; from fastdrpl.cli import main; sys.exit(main(sys.argv[1:]))"
    parent, child = pty.openpty()
    with RunLock(run):
        process = subprocess.Popen(
            [sys.executable, "-c", program, "status", str(run), "--watch", "--every", "0.1"],
            stdin=child,
            stdout=child,
            stderr=child,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        )
        os.close(child)
        shown = b""
        while b"running (process" not in shown:
            shown += os.read(parent, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    while b"stopped" not in shown:
        shown += os.read(parent, 4096)
    os.close(parent)
    assert b"Traceback" not in shown


@pytest.mark.parametrize("words", [["--every", "0"], ["--every", "nan"]])
def test_watching_refuses_intervals_out_of_range(tmp_path, capsys, words):
    assert main(["status", str(made(tmp_path / "run")), "--watch", *words]) == 2
    assert "--every" in capsys.readouterr().err
