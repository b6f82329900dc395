"""The command line: exit codes, --debug, help, and every way of starting it from any folder."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from fastdrpl import cli
from fastdrpl.cli import main
from fastdrpl.errors import CollapseError, DataError, NonFiniteError, PreemptedError, UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.recipes import RECIPES, describe, recipe_named

ROOT = Path(__file__).resolve().parent.parent
NOTE_THE_PATH = """
import atexit, os, sys

def note():
    with open(os.environ["PATH_NOTES"], "a") as file:
        print(os.path.basename(sys.argv[0]), sys.path[0], sep="\\t", file=file)

atexit.register(note)
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError, 2), (DataError, 3), (NonFiniteError, 4), (CollapseError, 5), (PreemptedError, 75)],
)
def test_each_error_has_its_code_and_no_traceback(monkeypatch, capsys, error, code):
    def fail(words):
        raise error("it went wrong", where="here", fix="do that")

    monkeypatch.setitem(cli.VERBS, "status", fail)
    assert main(["status", "x"]) == code
    said = capsys.readouterr().err
    for part in ("it went wrong", "where: here", "do that"):
        assert part in said
    assert "Traceback" not in said
    for words in (["status", "x", "--debug"], ["--debug", "status", "x"]):
        with pytest.raises(error, match="it went wrong"):
            main(words)


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(words):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "status", fail)
    with pytest.raises(ZeroDivisionError):
        main(["status"])


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys, verb):
    def stop(words):
        raise KeyboardInterrupt(*words)

    monkeypatch.setitem(cli.VERBS, verb, stop)
    assert main([verb]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert main([verb, "the same command continues"]) == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"
    with pytest.raises(KeyboardInterrupt):
        main([verb, "--debug"])


def test_ctrl_c_stops_a_real_count_of_images(tmp_path):
    """The signal comes while threads decode; the files of weights are never asked for."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nfrom fastdrpl import confusion\nfrom fastdrpl.cli import main\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def count(config, folder):\n"
        "    with ThreadPoolExecutor(4) as threads:\n"
        "        waits = [threads.submit(time.sleep, 0.2) for _ in range(8)]\n"
        "        print('counting', flush=True)\n"
        "        while True:\n            [wait.result() for wait in waits]\n"
        "confusion.count_images = count\n"
        f"sys.exit(main(['confusion', '--images', {str(tmp_path)!r}, '--out', {str(tmp_path / 'c.npz')!r}]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "counting\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "stopped\n")
        assert process.returncode == 130
    finally:
        process.kill()


def test_help_names_every_verb_and_code(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"fastdrpl {verb}" in said
    for error in (UserError, DataError, NonFiniteError, CollapseError, PreemptedError):
        assert str(error.exit_code) in said
    assert main([]) == 2


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"fastdrpl {verb}" in capsys.readouterr().out


def test_help_of_a_recipe_shows_its_numbers(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "cifar10", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for part in ("--drpl.relabel.epochs", "130", "--noise.ratio", "--engine.precision", "--checkpoint.every"):
        assert part in said


@pytest.mark.parametrize(
    "words",
    [
        ["train", "digits", "--bach_size", "3"],
        ["train", "digits", "--batch_size", "many"],
        ["train", "digits", "more"],
        ["prepare", "mnist", "--out", "x"],
        ["predict"],
        ["predict", "only-one"],
    ],
)
def test_words_that_cannot_be_read_end_with_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if "--bach_size" in words:
        assert "--batch_size" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["status"], ["recipes", "--all"], ["doctor", "a", "b"]])
def test_verbs_with_names_only(words, capsys):
    assert main(words) == 2
    assert f"fastdrpl {words[0]}" in capsys.readouterr().err


def test_damaged_data_end_with_3_and_leave_the_run_folder_usable(tmp_path, capsys):
    data, run = tmp_path / "digits", tmp_path / "run"
    prepare(PrepareConfig(kind="digits", out=data), quiet=True)
    whole = (data / "train.beton").read_bytes()
    (data / "train.beton").write_bytes(whole[:-1])
    words = [
        *toy.COMMON,
        "--run",
        str(run),
        "--data",
        str(data),
        "--method",
        "ce",
        "--ce.schedule.epochs",
        "1",
    ]
    assert main(words) == 3
    assert "train.beton" in capsys.readouterr().err
    (data / "train.beton").write_bytes(whole)
    assert main(words) == 0


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_prints_every_number(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["recipes", name]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    printed = {line[0].strip(): [part.strip() for part in line[1:] if part.strip()] for line in lines}
    for field, value, source in describe(recipe_named(name)):
        assert printed[field] == [part for part in (value, source) if part], field


def test_all_recipes_print_at_once(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    for name in RECIPES:
        assert f"{name}: {recipe_named(name).summary}"[:40] in said


def start(words, folder, notes, path=()):
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ACCELERATE"))
    }
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(notes), *map(str, path)]),
        "PATH_NOTES": str(notes / "notes"),
    }
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_every_way_to_start_it_gives_the_same_run_from_any_folder(tmp_path):
    """The module, the file and Accelerate's launcher, in a folder of its own each, with a relative run folder."""
    words = [
        *toy.COMMON[1:],
        "--method",
        "ce",
        "--ce.schedule.epochs",
        "2",
        "--engine.device",
        "cpu",
        "--run",
        "out",
    ]
    file = str(ROOT / "fastdrpl" / "train.py")
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1", file]
    ways = {"module": ["-m", "fastdrpl", "train"], "file": [file], "launcher": launch}
    processes = {}
    for name, way in ways.items():
        folder, notes = tmp_path / name, tmp_path / f"{name}-notes"
        folder.mkdir()
        notes.mkdir()
        (notes / "sitecustomize.py").write_text(NOTE_THE_PATH)
        processes[name] = start([*way, *words], folder, notes, [ROOT] if name == "module" else [])
    results = {}
    for name, process in processes.items():
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert "labels look wrong" in said
        assert [p.name for p in (tmp_path / name).iterdir()] == ["out"]
        results[name] = toy.outcome(tmp_path / name / "out")
        if name != "module":
            notes = [
                line.split("\t") for line in (tmp_path / f"{name}-notes" / "notes").read_text().splitlines()
            ]
            assert ["train.py", str(ROOT)] in notes
    assert results["module"] == results["file"] == results["launcher"]
    config = json.loads((tmp_path / "launcher" / "out" / "manifest.json").read_text())
    assert config["machine"]["threads"] == 1


def test_codes_of_real_processes(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NOTE_THE_PATH)
    wanted = {
        ("-m", "fastdrpl", "--version"): (0, "fastdrpl "),
        ("-m", "fastdrpl", "train", "cifar11"): (2, "did you mean 'cifar10'"),
        ("-m", "fastdrpl", "train", "cifar11", "--debug"): (1, "Traceback"),
        (str(ROOT / "fastdrpl" / "train.py"), "cifar11"): (2, "did you mean 'cifar10'"),
        ("-m", "fastdrpl"): (2, "fastdrpl prepare"),
    }
    processes = {words: start(words, tmp_path, tmp_path, [ROOT]) for words in wanted}
    for words, (code, part) in wanted.items():
        said, _ = processes[words].communicate(timeout=120)
        assert processes[words].returncode == code, said
        assert part in said
