"""metrics.csv and trackers: in step with the journal, through a stop and a resume, and never the end of a run."""

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import toy
from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from need import need

from fastdrpl import tracking
from fastdrpl.cli import parse_training
from fastdrpl.errors import UserError
from fastdrpl.folder import RunFolder, fingerprint_of
from fastdrpl.metrics import Metrics
from fastdrpl.run import run
from fastdrpl.tracking import Trackers, parse_trackers


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(path: Path) -> list[list[str]]:
    """Every cell but those of `seconds`, the header included."""
    with open(path, newline="") as file:
        lines = list(csv.reader(file))
    at = lines[0].index("seconds")
    return [line[:at] + line[at + 1 :] for line in lines]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What tensorboard shows of a run: tag -> (step, value)."""
    accumulator = need("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tracking" / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same toy run unbroken, and killed and stopped on its way."""
    need("tensorboard")
    folder = tmp_path_factory.mktemp("tracked")
    words = ("--track_with", "tensorboard", "--checkpoint.every", "1e9")
    assert toy.train(folder / "whole", *words) == 0, toy.log_of(folder / "whole")
    broken = folder / "broken"
    for stage, number in (("semi1", signal.SIGKILL), ("semi2", signal.SIGTERM)):
        process = toy.start(broken, *words)
        # Some epochs behind the checkpoint at the stage's end: they are told twice.
        toy.wait_until(
            lambda stage=stage, process=process: (
                sum(row["stage"] == stage for row in rows(broken / "metrics.csv")) >= 2
                if (broken / "metrics.csv").exists()
                else not process.is_alive()
            )
        )
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 75), toy.log_of(broken)
    assert toy.train(broken, *words) == 0, toy.log_of(broken)
    return {"whole": folder / "whole", "broken": broken}


def test_the_table_says_what_the_journal_says(runs: dict[str, Path]) -> None:
    for path in runs.values():
        journal = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        table = rows(path / "metrics.csv")
        assert [row["step"] for row in table] == [str(n + 1) for n in range(14)]
        for row, record in zip(table, journal, strict=True):
            for name, text in row.items():
                value = record.get(name)
                if name != "step":
                    assert text == ("" if value is None else str(value))
            assert record.keys() <= row.keys()


def test_a_broken_run_leaves_the_table_of_an_unbroken_one(runs: dict[str, Path]) -> None:
    whole, broken = (without_seconds(path / "metrics.csv") for path in runs.values())
    assert whole == broken


def test_tensorboard_reads_every_step_once(runs: dict[str, Path]) -> None:
    for path in runs.values():
        table, seen = rows(path / "metrics.csv"), scalars(path)
        for tag in ("loss", "lr", "agreement", "test_accuracy", "detection_auc"):
            wanted = [(int(row["step"]), float(row[tag])) for row in table if row[tag]]
            assert [step for step, _ in seen[tag]] == [step for step, _ in wanted] != []
            assert [value for _, value in seen[tag]] == pytest.approx([value for _, value in wanted])
    assert len(seen["loss"]) == 14 and len(seen["detection_auc"]) == 3


def test_hyperparameters_are_stored_once_and_nothing_lies_outside(runs: dict[str, Path]) -> None:
    for path in runs.values():
        (stored,) = (path / "tracking").rglob("hparams.yml")
        text = stored.read_text()
        assert "batch_size: 32" in text and "drpl.semi1.epochs: 4" in text and "noise.ratio: 0.2" in text
        assert {entry.name for entry in path.parent.iterdir()} == {
            "whole",
            "whole.log",
            "broken",
            "broken.log",
        }


def test_it_is_no_part_of_the_identity() -> None:
    config = parse_training([*toy.WORDS[1:]])
    other = dataclasses.replace(config, track_with="tensorboard")
    assert fingerprint_of(config) == fingerprint_of(other)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", r"unknown tracker 'tensorbord'; did you mean 'tensorboard'\?"),
        ("nonsense", "one of aim, .*tensorboard"),
        ("tensorboard,clearml", "(?s)clearml: its package is not installed.*pip install 'clearml'"),
        ("comet_ml", "pip install 'comet-ml'"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    names: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    config = parse_training([*toy.WORDS[1:], "--track_with", names, "--run", str(tmp_path / "run")])
    with pytest.raises(UserError, match=message):
        run(config)
    assert list(tmp_path.iterdir()) == []


def test_names_are_read_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard", "wandb"])
    assert parse_trackers("") == parse_trackers(" , ") == ()
    assert parse_trackers("wandb, tensorboard,wandb") == ("wandb", "tensorboard")


class Recorder:
    """A tracker as Accelerate wants it, that fails where it is told to."""

    requires_logging_directory = False
    fails: str | None = None
    calls: list[Any]

    def __init__(self, project: str, **options: Any):
        self.said = [project, options]
        type(self).calls.append(self)

    def _do(self, *what: Any) -> None:
        self.said.append(what)
        if what[0] == self.fails:
            raise ConnectionError("the server is gone\nand more")

    def start(self) -> None:
        self._do("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._do("settings", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._do("log", step, values)

    def finish(self) -> None:
        self._do("finish")


@pytest.mark.parametrize("fails", [None, "start", "settings", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_left(
    fails: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Recorder):
        calls: list[Any] = []  # noqa: RUF012

    class Sound(Recorder):
        calls: list[Any] = []  # noqa: RUF012

    Failing.fails = fails
    PartialState()
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "failing", Failing)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "sound", Sound)
    trackers = Trackers(("failing", "sound"), tmp_path / "tracking", tmp_path, {"a.b": (1, 2), "none": None})
    with Metrics(RunFolder(tmp_path), trackers) as metrics:
        metrics.truncate(0)
        for epoch in (1, 2):
            metrics.append({"stage": "ce", "epoch": epoch, "loss": 0.5, "test_accuracy": None})
    said = capsys.readouterr().err
    assert said.count("warning: failing failed") == (fails is not None)
    assert "sound" not in said and ("(ConnectionError: the server is gone)" in said) == (fails is not None)
    numbers = {"epoch": 1, "loss": 0.5}
    (tracker,) = Sound.calls
    assert tracker.said == [
        "fastdrpl",
        {},
        ("start",),
        ("settings", {"a.b": "(1, 2)"}),
        ("log", 1, numbers),
        ("log", 2, {**numbers, "epoch": 2}),
        ("finish",),
    ]
    assert len(rows(tmp_path / "metrics.csv")) == 2


def test_trackers_end_where_a_run_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sound(Recorder):
        calls: list[Any] = []  # noqa: RUF012

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "sound", Sound)
    trackers = Trackers(("sound",), tmp_path / "tracking", tmp_path, {})
    with pytest.raises(RuntimeError), Metrics(RunFolder(tmp_path), trackers) as metrics:
        metrics.truncate(0)
        raise RuntimeError
    assert Sound.calls[0].said[-1] == ("finish",)


def test_columns_of_later_stages_come_behind_and_the_header_fits_every_row(tmp_path: Path) -> None:
    with Metrics(RunFolder(tmp_path), Trackers((), tmp_path, tmp_path, {})) as metrics:
        metrics.truncate(0)
        assert (tmp_path / "metrics.csv").read_text().count("\n") == 1
        metrics.append({"stage": "a, b", "epoch": 1, "loss": float("nan")})
        length = metrics.sync()
        metrics.append({"stage": "c", "epoch": 1, "loss": 0.25, "detection_auc": 0.5})
        text = (tmp_path / "metrics.csv").read_text()
        assert text.splitlines()[0].split(",")[-1] == "detection_auc"
        assert [
            (row["stage"], row["loss"], row["detection_auc"]) for row in rows(tmp_path / "metrics.csv")
        ] == [
            ("a, b", "", ""),
            ("c", "0.25", "0.5"),
        ]
        metrics.truncate(length)
        assert len(rows(tmp_path / "metrics.csv")) == 1
