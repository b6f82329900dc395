"""Whole runs end in the same bits whichever loader feeds them: on two ranks, and when the loader changes."""

import os
import signal
from pathlib import Path

import pytest
import toy
from need import need

from fastdrpl.loaders.prepare import PrepareConfig, prepare

LIBRARIES = {"ffcv": "ffcv", "dali": "nvidia.dali"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("feeds") / "digits"
    prepare(PrepareConfig(kind="digits", out=out, format="shards"), quiet=True)
    return out


def flags(data: Path, loader: str, order: str) -> list[str]:
    if loader in LIBRARIES:
        need(LIBRARIES[loader])
    return ["--data", str(data), "--engine.loader", loader, "--engine.workers", "1", "--order", order]


def train_on_ranks(run: Path, ranks: int, words: list[str]) -> Path:
    toy.on_ranks(toy.command, ranks, [*toy.WORDS, *words], run)
    return run


@pytest.fixture(scope="module", params=[(2, "index"), (2, "shards")], ids=str)
def resident(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory):
    """(ranks, order, the run that the resident loader feeds)."""
    ranks, order = request.param
    run = tmp_path_factory.mktemp("resident") / "run"
    return ranks, order, train_on_ranks(run, ranks, flags(data, "resident", order))


@pytest.mark.parametrize("loader", LIBRARIES)
def test_the_same_bits_from_every_loader(resident, data: Path, tmp_path: Path, loader: str) -> None:
    """R11."""
    ranks, order, first = resident
    run = train_on_ranks(tmp_path / "run", ranks, flags(data, loader, order))
    assert toy.differing(toy.last_tensors(run), toy.last_tensors(first)) == []
    assert toy.outcome(run) == toy.outcome(first)


@pytest.mark.parametrize(("loader", "order"), [("ffcv", "index"), ("dali", "shards")])
def test_stopped_in_an_epoch_and_continued_by_another_loader(
    data: Path, tmp_path: Path, loader: str, order: str
) -> None:
    whole, run, often = tmp_path / "whole", tmp_path / "run", ["--checkpoint.every", "0"]
    assert toy.train(whole, *flags(data, "resident", order)) == 0, toy.log_of(whole)
    process = toy.start(run, *flags(data, loader, order), *often)
    toy.wait_until(lambda: len(list((run / "checkpoints").glob("0*"))) > 0 if run.exists() else False)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75, toy.log_of(run)
    assert toy.train(run, *flags(data, "worker", order)) == 0, toy.log_of(run)
    assert "continuing from" in toy.log_of(run)
    assert toy.differing(toy.last_tensors(run), toy.last_tensors(whole)) == []
    assert toy.outcome(run)[1:] == toy.outcome(whole)[1:]
