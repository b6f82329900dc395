"""When what feeds a run breaks: an error that names the cause, wherever the run is at that moment."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import toy
from need import need

from fastdrpl.loaders import resident
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.worker import WorkerLoader

PASS = Pass(seed=1, stage=1, epoch=1, purpose=Purpose.train)


def prepare_digits(out: Path, **options: str) -> Split:
    return prepare(PrepareConfig(kind="digits", out=out, **options), quiet=True).split("train")  # type: ignore[arg-type]


def test_a_worker_that_dies_while_the_run_computes(tmp_path: Path) -> None:
    """R18."""
    split = prepare_digits(tmp_path / "digits")
    loader = WorkerLoader(split, np.arange(len(split)), workers=1)
    batches = loader.epoch(Order(np.arange(len(split)), 16, PASS, shuffle=True))
    next(batches)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    began = time.monotonic()
    while time.monotonic() < began + 1:  # nothing is raised here, where nobody could say what it means
        sum(range(1000))
    with pytest.raises(UserError, match="a loader process died"):
        for _ in batches:
            pass
    assert time.monotonic() < began + 60
    loader.close()


def cut_while_reading(split: Split, loader: Loader, reader: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Cut before the fourth batch is read: under a thread's very hands it would end this process."""
    look, calls = reader.check_length, itertools.count(1)

    def cut_and_look(*what: Any) -> None:
        if next(calls) == 4:
            os.truncate(split.path, 8192)
        look(*what)

    patch.setattr(reader, "check_length", cut_and_look)
    with pytest.raises(DataError, match=f"cut to 8192 bytes.*\\n.*{split.path.name}"):
        for _ in loader.epoch(Order(np.arange(len(split)), 16, PASS, shuffle=True)):
            pass
    loader.close()


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_file_that_is_cut_under_dali(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need("nvidia.dali")
    from fastdrpl.loaders import dali_backend

    split = prepare_digits(tmp_path / "digits", store=store)
    loader = dali_backend.DALILoader(split, np.arange(len(split)), workers=1)
    cut_while_reading(split, loader, dali_backend, monkeypatch)


def test_a_file_that_is_cut_under_the_resident_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = prepare_digits(tmp_path / "digits")
    cut_while_reading(split, resident.ResidentLoader(split, np.arange(len(split))), resident, monkeypatch)


def stop_within_an_epoch(run: Path, words: list[str]) -> None:
    """The body of a rank: asked to stop after the fourth step."""
    from fastdrpl.loaders.resident import ResidentLoader as Loader_

    plain = Loader_.epoch

    def epoch(self, order, *, start_step=0):
        for number, batch in enumerate(plain(self, order, start_step=start_step)):
            if number == 3 and int(os.environ["RANK"]) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    Loader_.epoch = epoch  # type: ignore[method-assign]
    try:
        toy.command(words, run)
    except SystemExit as end:
        sys.exit(0 if end.code == 75 else 1)


def test_half_an_epoch_of_shards_is_not_divided_anew(tmp_path: Path) -> None:
    """The ranks' pieces would overlap: images would be seen twice or never."""
    prepare_digits(tmp_path / "digits", format="shards")
    words = [*toy.WORDS, "--data", str(tmp_path / "digits"), "--limit", "800", "--order", "shards"]
    run = tmp_path / "run"
    toy.on_ranks(stop_within_an_epoch, 2, run, words)
    assert toy.train(run, *words[len(toy.WORDS) :]) == 2
    assert "stopped within an epoch on 2 rank(s); here are 1" in toy.log_of(run)
    toy.on_ranks(toy.command, 2, words, run)
    assert (run / "result.json").exists()


def test_a_loader_that_ends_early_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdrpl.cli import main

    plain = resident.ResidentLoader.epoch

    def epoch(self, order, *, start_step=0):
        for number, batch in enumerate(plain(self, order, start_step=start_step)):
            if number == 2 and order.pass_.purpose == Purpose.train:
                return
            yield batch

    monkeypatch.setattr(resident.ResidentLoader, "epoch", epoch)
    with pytest.raises(RuntimeError, match="the loader ended after step 2 of 5"):
        main([*toy.WORDS, "--run", str(tmp_path / "run")])
