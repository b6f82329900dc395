"""Which loader `auto` takes, what it says, and that a run keeps it."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdrpl.config import EngineConfig
from fastdrpl.errors import UserError
from fastdrpl.labels import Labels
from fastdrpl.loaders import resident
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loading import LOADERS, choose_loaders, open_loader, order_of
from fastdrpl.view import View

AUTO = EngineConfig()


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    dataset = prepare(PrepareConfig(kind="digits", out=tmp_path_factory.mktemp("x") / "digits"), quiet=True)
    split = dataset.split("train")
    return View(split, Labels(split.label, split.label, np.arange(len(split)), dataset.class_names))


def machine(device: str = "cpu", others: str = "resident") -> Any:
    """A machine of two ranks, of which the other one took the loader `others`."""
    theirs = LOADERS.index(others)
    return SimpleNamespace(device=torch.device(device), main=True, highest=lambda own: max(own, theirs))


def choose_loader(engine: EngineConfig, view: View, *rest: Any) -> str:
    return choose_loaders(engine, [view], *rest)[view.split.name]


def without(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    for library in libraries:
        for name in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, library, None)


def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "resident_bytes", lambda *_: (8 << 30, 2 << 30))


def test_what_is_mapped_or_fits_is_resident(view: View, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert choose_loader(AUTO, view, machine(), "index") == "resident"
    assert "loader resident: the train images are memory-mapped" in capsys.readouterr().err
    monkeypatch.setattr(resident, "resident_bytes", lambda *_: (1 << 30, 2 << 30))
    assert choose_loader(AUTO, view, machine("cuda"), "index") == "resident"
    assert "take 1.00 GiB of 2.0 free" in capsys.readouterr().err


def test_two_views_share_the_memory(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "resident_bytes", lambda *_: (4 << 30, 6 << 30))
    without(monkeypatch, "ffcv", "nvidia.dali")
    other = View(replace(view.split, name="test"), view.labels)
    assert choose_loaders(AUTO, [view, other], machine(), "index") == {"train": "resident", "test": "worker"}


def test_what_is_free_is_for_all_ranks_of_a_machine(view: View) -> None:
    jpeg = replace(view.split, store="jpeg")
    need, alone = resident.resident_bytes(jpeg, view.labels.source_row, torch.device("cpu"))
    assert need == len(view.split) * 16 * 16 * 3
    shared = resident.resident_bytes(jpeg, view.labels.source_row, torch.device("cpu"), 3)[1]
    assert shared == pytest.approx(alone / 3, rel=0.2)


@pytest.mark.parametrize(
    ("device", "store", "order", "first"),
    [
        ("cpu", "raw", "index", "ffcv"),
        ("cpu", "jpeg", "index", "ffcv"),
        ("cuda", "raw", "index", "ffcv"),
        ("cuda", "jpeg", "index", "dali"),
        ("cpu", "raw", "shards", "dali"),
    ],
)
def test_what_does_not_fit_goes_to_the_fastest_library(
    view: View, monkeypatch: pytest.MonkeyPatch, capsys: Any, device: str, store: Any, order: str, first: str
) -> None:
    too_large(monkeypatch)
    stored = View(replace(view.split, store=store), view.labels)
    monkeypatch.setitem(sys.modules, "ffcv", SimpleNamespace())  # as if both were installed
    monkeypatch.setitem(sys.modules, "nvidia.dali", SimpleNamespace())
    assert choose_loader(AUTO, stored, machine(device), order) == first
    assert "take 8.00 GiB of 2.0 free" in capsys.readouterr().err
    second = {"ffcv": "dali", "dali": "ffcv"}[first]
    without(monkeypatch, {"ffcv": "ffcv", "dali": "nvidia.dali"}[first])
    assert choose_loader(AUTO, stored, machine(device), order) == second
    assert "is not installed" in capsys.readouterr().err


def test_without_libraries_the_plain_one_is_taken_and_it_is_said(
    view: View, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    too_large(monkeypatch)
    without(monkeypatch, "ffcv", "nvidia.dali")
    assert choose_loader(AUTO, view, machine(), "index") == "worker"
    said = capsys.readouterr().err
    assert "ffcv is not installed" in said and "nvidia.dali is not installed" in said


def test_all_ranks_take_the_same(view: View, capsys: Any) -> None:
    assert choose_loader(AUTO, view, machine(others="worker"), "index") == "worker"
    assert "do not fit on every rank" in capsys.readouterr().err


def test_a_run_keeps_its_loader_unless_another_is_asked_for(view: View) -> None:
    before = {"train": "worker"}
    assert choose_loader(AUTO, view, machine(), "index", before) == "worker"
    assert choose_loader(EngineConfig(loader="dali"), view, machine(), "index", before) == "dali"
    assert choose_loader(AUTO, view, machine(), "index", {"test": "worker"}) == "resident"


def test_a_missing_library_that_was_asked_for_is_an_error(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "ffcv")
    with pytest.raises(UserError, match=r"pip install ffcv==1\.0\.2"):
        open_loader("ffcv", AUTO, view, machine())


def test_orders(view: View) -> None:
    assert order_of("index", view) is Order
    with pytest.raises(UserError, match="--format shards"):
        order_of("shards", view)


def test_a_run_says_and_stores_what_it_took(tmp_path: Path) -> None:
    import json

    import toy

    assert toy.train(tmp_path / "run", "--engine.loader", "auto") == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["loaders"] == {
        "train": "resident",
        "test": "resident",
    }
    assert "loader resident: the train images are memory-mapped" in toy.log_of(tmp_path / "run")
