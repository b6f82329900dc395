"""Every method of the table, and none by name: it trains, survives kills to the bit, runs on two ranks, predicts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from PIL import Image

from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.methods import METHODS, load_method
from fastdrpl.settings import scale_epoch

ALIKE = Path(__file__).resolve().parent.parent / "fastdrpl" / "compare" / "grids" / "digits-alike.csv"
UNIFORM = ("--noise.kind", "uniform", "--noise.ratio", "0.4")
NONUNIFORM = (
    *("--noise.kind", "matrix", "--noise.ratio", "0.3"),
    *("--noise.matrix", str(ALIKE), "--noise.matrix_diagonal", "drop"),
)
SCALE = 0.1
OFTEN = "0.05"  # seconds between checkpoints


def words_of(method: str, *extra: str) -> list[str]:
    """A run of some seconds. Thresholds are wide: after few epochs next to no label looks right."""
    words = [
        "train",
        "digits",
        "--method",
        method,
        "--limit",
        "160",
        "--limit_test",
        "40",
        "--batch_size",
        "32",
    ]
    words += [
        "--model.width",
        "2",
        "--epochs_scale",
        str(SCALE),
        "--engine.threads",
        "1",
        "--engine.eval_batch",
        "80",
    ]
    return [*words, "--detect.collapse", "relax", "--test_every", "0", *extra]


def train(run: Path, method: str, *extra: str, fault: str = "") -> int:
    """In a process of its own; the exit code. `fault`: where it dies as by `kill -9`."""
    os.environ["FASTDRPL_FAULT"] = fault
    try:
        process = toy.FORKS.Process(target=with_fault, args=(fault, words_of(method, *extra), run))
        process.start()
        process.join(400)
    finally:
        del os.environ["FASTDRPL_FAULT"]
    return process.exitcode


def with_fault(fault: str, words: list[str], run: Path) -> None:
    os.environ["FASTDRPL_FAULT"] = fault
    toy.command(words, run)


@pytest.fixture(scope="module", params=METHODS)
def whole(request, tmp_path_factory):
    """The method and its unbroken run."""
    run = tmp_path_factory.mktemp(request.param) / "whole"
    assert train(run, request.param, *UNIFORM) == 0, toy.log_of(run)
    return request.param, run


def test_it_trains_and_says_which_labels_look_wrong(whole):
    method, run = whole
    result = json.loads((run / "result.json").read_text())
    assert result["method"] == method
    assert result["epochs_scale"] == SCALE
    assert result["noise_rate"] == pytest.approx(0.4)
    table = toy.outcome(run)[2]
    posterior = np.array([row["p_noisy"] for row in table])
    assert posterior.shape == (160,)
    assert ((posterior >= 0) & (posterior <= 1)).all()
    assert sum(not row["labelled"] for row in table) == result["suspects"]
    assert 0 <= result["accuracy"]["last"] <= 1
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert np.isfinite(json.loads(line)["loss"])
    for values in toy.last_tensors(run).values():
        assert torch.isfinite(values.float()).all()


@pytest.mark.parametrize("arrivals", [(3,), pytest.param((2, 5, 1), marks=pytest.mark.slow)], ids=len)
def test_killed_and_continued_it_ends_in_the_same_bits(whole, tmp_path, arrivals):
    """R1: dies right after a checkpoint; one is written several times in each run, however quick the machine."""
    method, unbroken = whole
    run = tmp_path / "killed"
    deaths = 0
    for arrival in arrivals:
        code = train(
            run, method, *UNIFORM, "--checkpoint.every", OFTEN, fault=f"checkpoint.after-rename:{arrival}"
        )
        assert code in (0, 9), toy.log_of(run)
        deaths += code == 9
        if code == 0:
            break
    assert deaths, "it was killed at least once"
    assert train(run, method, *UNIFORM, "--checkpoint.every", OFTEN) == 0, toy.log_of(run)
    stages = sum("-stage-" in path.name for path in list_checkpoints(unbroken / "checkpoints"))
    for position in range(-stages, 0):
        assert toy.differing(toy.last_tensors(run, position), toy.last_tensors(unbroken, position)) == []
    assert toy.outcome(run) == toy.outcome(unbroken)


def test_its_network_predicts(whole, tmp_path, capsys):
    from fastdrpl.cli import main

    _, run = whole
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    assert main(["predict", str(run), str(tmp_path / "x.png")]) == 0
    header, line = capsys.readouterr().out.strip().splitlines()
    assert header == "file,class,probability"
    assert 0 <= float(line.rsplit(",", 1)[1]) <= 1


def rank_of(words: list[str], folder: Path) -> None:
    """On one of two ranks: carry out the run and write down the split that this rank ends with."""
    import fastdrpl.run as module
    from fastdrpl.cli import parse_training

    sound = module.finish

    def finish(state, *given):
        rank = state.machine.rank
        np.savez(
            folder / f"rank-{rank}.npz", **{k: state.store[k].numpy() for k in ("labelled", "posterior")}
        )
        return sound(state, *given)

    module.finish = finish
    module.run(parse_training([*words[1:], "--run", str(folder / "run")]))


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_end_with_one_split(method, tmp_path):
    """R12."""
    toy.on_ranks(rank_of, 2, words_of(method, *NONUNIFORM, "--engine.ranks", "2"), tmp_path)
    first, second = (np.load(tmp_path / f"rank-{rank}.npz") for rank in range(2))
    for name in ("labelled", "posterior"):
        assert np.array_equal(first[name], second[name]), name
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["noise_rate"] == pytest.approx(0.3, abs=0.02)
    assert result["suspects"] == int((~first["labelled"]).sum())


@pytest.mark.parametrize("method", METHODS)
def test_every_schedule_moves_with_epochs_scale(method):
    import dataclasses

    from fastdrpl.plan import plan_of
    from fastdrpl.recipes import recipe_named

    config = recipe_named("cifar10").config_for(method)
    full = plan_of(config)
    for scale in (0.1, 0.5, 2.0):
        scaled = plan_of(dataclasses.replace(config, epochs_scale=scale))
        assert [stage.name for stage in scaled] == [stage.name for stage in full]
        total = sum(stage.schedule.epochs for stage in full)
        assert sum(stage.schedule.epochs for stage in scaled) == pytest.approx(
            scale_epoch(total, scale), abs=len(full)
        )
    assert load_method(method).summary
