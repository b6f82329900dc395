"""Nothing that is printed ends a command: every verb on a terminal that has hardly any characters."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdrpl import cli
from fastdrpl.cli import main

NAMES = ("猫", "собака", "café ☕")
SHORT = [
    "--epochs_scale",
    "0.01",
    "--batch_size",
    "8",
    "--augment.size",
    "12",
    "--model.name",
    "preact_resnet18",
]
SHORT += ["--model.width", "4", "--engine.threads", "1"]


class Terminal:
    """Standard output and error with an encoding, as a console of that kind has them."""

    def __init__(self, encoding: str) -> None:
        self.encoding, self.raw = encoding, (io.BytesIO(), io.BytesIO())

    def main(self, words: list[str]) -> int:
        """The exit code of a command in it."""
        out, err = (io.TextIOWrapper(raw, encoding=self.encoding, write_through=True) for raw in self.raw)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return main(words)
        finally:
            out.detach(), err.detach()  # or they would close what is to be read

    def out(self) -> str:
        return self.raw[0].getvalue().decode(self.encoding)

    def said(self) -> str:
        return self.out() + self.raw[1].getvalue().decode(self.encoding)


@pytest.fixture(params=["ascii", "latin-1", "cp437", "utf-8"])
def terminal(request: pytest.FixtureRequest) -> Terminal:
    return Terminal(request.param)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("фото"), np.random.default_rng(1)
    for number, name in enumerate(NAMES):
        (folder / name).mkdir()
        for k in range(12):
            pixels = np.clip(draw.normal(60 * number + 40, 20, (14, 14, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"ß{k}.png")
    (folder / NAMES[0] / "übel.png").write_text("no image")
    Path(os.fsdecode(os.fsencode(folder / NAMES[0]) + b"/\xff.png")).write_text(
        "no image, and no text as its name"
    )
    return folder


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("données") / "set"
    assert main(["prepare", "folder", "--source", str(photos), "--out", str(out), "--size", "12"]) == 0
    return out


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    run = data.parent / "läuft"
    assert main(["train", "folder", "--data", str(data), "--run", str(run), *SHORT]) == 0
    return run


def test_prepare(photos: Path, tmp_path: Path, terminal: Terminal) -> None:
    words = ["--source", str(photos), "--out", str(tmp_path / "ö→"), "--size", "12", "--test_fraction", "0.3"]
    assert terminal.main(["prepare", "folder", *words]) == 0
    said, wanted = terminal.said(), NAMES[1].encode(terminal.encoding, "backslashreplace")
    assert wanted.decode(terminal.encoding) in said and "1 of them quarantined" in said
    assert terminal.main(["prepare", "folder", *words]) == 0  # and the check of what is there
    assert terminal.main(["prepare", "folder", "--source", "няма", "--out", str(tmp_path / "x")]) == 2
    assert "the source does not exist" in terminal.said() and "Traceback" not in terminal.said()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_train_says_its_summary_and_status_its_table(data: Path, tmp_path: Path, encoding: str) -> None:
    terminal = Terminal(encoding)
    run = tmp_path / "läuft ☃"
    assert terminal.main(["train", "folder", "--data", str(data), "--run", str(run), *SHORT]) == 0
    assert json.loads((run / "result.json").read_text())["classes"] == 3
    assert "labels look wrong" in terminal.said()
    assert terminal.main(["train", "folder", "--data", str(data), "--run", str(run), *SHORT]) == 0
    assert terminal.main(["status", str(run)]) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_comes_after_a_run(run: Path, tmp_path: Path, encoding: str) -> None:
    terminal = Terminal(encoding)
    out = tmp_path / "ø→☃"
    out.mkdir()
    for words in (
        ["report", str(run), "--out", str(out / "ř.html")],
        ["fix", str(run), "--accept", "0.5", "--drop", "0.5", "--out", str(out / "ł.csv")],
        ["export", str(run), "--to", "csv", "card", "--out", str(out / "ž")],
        ["figure", "losses", str(run), "--out", str(out)],
        ["status", str(run)],
    ):
        assert terminal.main(words) == 0, terminal.said()
    assert terminal.main(["detect", str(run), "--out", str(out)]) == 2  # nobody knows the right labels
    assert "Traceback" not in terminal.said()


def test_predict_to_standard_output(run: Path, photos: Path, terminal: Terminal) -> None:
    assert terminal.main(["predict", str(run), str(photos)]) == 0
    rows = list(csv.DictReader(terminal.out().splitlines()))
    escaped = {name.encode(terminal.encoding, "backslashreplace").decode(terminal.encoding) for name in NAMES}
    assert len(rows) == 36 and {row["class"] for row in rows} <= escaped


def test_predict_to_a_file_is_utf_8(run: Path, photos: Path, tmp_path: Path, terminal: Terminal) -> None:
    assert terminal.main(["predict", str(run), str(photos), "--out", str(tmp_path / "é.csv")]) == 0
    with open(tmp_path / "é.csv", newline="", encoding="utf-8") as file:
        assert {row["class"] for row in csv.DictReader(file)} <= set(NAMES)
    assert "36 images labelled, 2 unreadable" in terminal.said()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["recipes"], 0),
        (["status", "ниде"], 2),
        (["вербум"], 2),
        (["confusion", "--images", "ниде", "--out", "x.npz"], 2),
        (["doctor", "ниде"], 2),
        (["bench", "loaders", "--data", "ниде"], 2),
    ],
)
def test_the_other_verbs(words: list[str], code: int, terminal: Terminal) -> None:
    assert terminal.main(words) == code
    assert "Traceback" not in terminal.said() and terminal.said()


def test_bench_shows_its_table(data: Path, terminal: Terminal) -> None:
    assert (
        terminal.main(
            ["bench", "loaders", "--data", str(data), "--images", "20", "--turns", "1", "--workers", "0"]
        )
        == 0
    )
    assert "Fastest here" in terminal.said()


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_a_verb_may_print_whatever_it_likes(
    verb: str, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    from rich.console import Console
    from rich.table import Table

    from fastdrpl.console import fail, say, warn

    def talk(words: list[str]) -> int:
        table = Table(title="─ 表 ─")
        table.add_column("\udcff")
        table.add_row("🐈")
        Console().print(table)
        for tell in (print, say, warn, fail):
            tell("→ \udcff 猫")
        return 0

    monkeypatch.setitem(cli.VERBS, verb, talk)
    assert terminal.main([verb]) == 0 and terminal.said().count("\\udcff") >= 4


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0"}]
)
def test_a_real_process_in_the_c_locale(environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    """With PYTHONUTF8=0 the names of files are no text either: classes are the same all the same."""
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONIOENCODING")}
    clean |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"} | environment
    words = ["prepare", "folder", "--source", str(photos), "--out", str(tmp_path / "out"), "--size", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "fastdrpl", *words], env=clean, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    classes = json.loads((tmp_path / "out" / "dataset.json").read_text())["class_names"]
    assert sorted(classes) == sorted(NAMES)


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_stream_ends_nothing(closed: str, tmp_path: Path) -> None:
    command = f'exec "{sys.executable}" -m fastdrpl prepare digits --out "{tmp_path}/d" {closed}>&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=100)
    assert done.returncode == 0 and (tmp_path / "d" / "dataset.json").exists(), done.stderr
