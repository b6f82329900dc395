"""Runs that are killed, stopped and damaged end in the same bits as one that nobody touched."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import scipy.special
import torch
import toy

from fastdrpl import config_file
from fastdrpl.checkpoint import FAULT_POINTS
from fastdrpl.kernels.augment import centre
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.opening import open_run
from fastdrpl.recipes import recipe_named
from fastdrpl.view import test_view as view_to_test_on


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = tmp_path_factory.mktemp("toy") / "unbroken"
    assert toy.train(run, "--checkpoint.every", "1e9") == 0, toy.log_of(run)
    return run


def newest_checkpoint_name(run) -> str:
    folder = run / "checkpoints"
    return (
        max((p.name for p in folder.iterdir() if p.name[0].isdigit()), default="") if folder.is_dir() else ""
    )


def assert_same(run, unbroken):
    for position in range(3):
        assert toy.differing(toy.last_tensors(run, position), toy.last_tensors(unbroken, position)) == []
    assert toy.outcome(run) == toy.outcome(unbroken)
    assert (run / "export" / "model.json").read_bytes() == (unbroken / "export" / "model.json").read_bytes()


def test_the_temperature_is_the_one_that_the_test_images_ask_for(unbroken):
    """By a search over many, on what the exported network says of the test images."""
    run = open_run(unbroken)
    config = config_file.overlay_run(
        recipe_named("digits").config_for("drpl"),
        config_file.read_table(unbroken / "config.toml"),
        where="config.toml",
    )
    view = view_to_test_on(config, run.data)
    file = map_file(view.split)
    pixels = np.stack([decode_row(view.split, file, int(row)) for row in view.labels.source_row])
    with torch.no_grad():
        inputs = centre(torch.from_numpy(pixels), torch.arange(len(pixels)), run.crop)
        logits = run.network(inputs).double().numpy()
    tried = np.exp(np.linspace(-3, 3, 1201))
    cost = [
        -scipy.special.log_softmax(logits / t, 1)[np.arange(60), view.labels.given].sum() + np.log(t) ** 2 / 2
        for t in tried
    ]
    found = run.calibration
    assert (found.labels, found.samples, found.wrong) == ("test", 60, None)
    assert found.temperature == pytest.approx(tried[np.argmin(cost)], rel=0.02)
    card = (unbroken / "export" / "card.md").read_text()
    assert found.describe() in card and "160, from `digits`" in card


def test_the_comparison_can_fail(unbroken):
    weights = [
        {k: v for k, v in toy.last_tensors(unbroken, p).items() if k.startswith("network.")} for p in range(3)
    ]
    assert toy.differing(weights[0], weights[1])
    assert toy.differing(weights[1], weights[2])


def test_another_seed_is_another_run(unbroken, tmp_path):
    """R20."""
    run = tmp_path / "run"
    assert toy.train(run, "--seed", "2") == 0, toy.log_of(run)
    assert toy.differing(toy.last_tensors(run), toy.last_tensors(unbroken))


def check_kills(tmp_path, kills_wanted, long) -> None:
    """kill -9, each while it trains (or saves); every checkpoint is a place to continue from."""
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    assert toy.train(unbroken, *long, "--checkpoint.every", "1e9") == 0, toy.log_of(unbroken)
    draw, kills = random.Random(12), 0
    while True:
        process = toy.start(run, *long, "--checkpoint.every", "0")
        if kills < kills_wanted:
            newest = newest_checkpoint_name(run)
            toy.wait_until(lambda: newest_checkpoint_name(run) > newest or not process.is_alive())  # noqa: B023
            time.sleep(draw.uniform(0.0, 0.1))
            process.kill()
        process.join(240)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, toy.log_of(run)
        kills += 1
    resumed = toy.log_of(run).count("continuing from")
    assert kills >= kills_wanted, f"the run was over after {kills} kills"
    assert resumed >= kills_wanted - 1, toy.log_of(run)
    assert_same(run, unbroken)


def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path):
    """R1: eight kills."""
    check_kills(tmp_path, 8, ("--drpl.semi2.epochs", "10"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("kills", "epochs"), [(25, "20"), (300, "200")])
def test_killed_many_times_it_ends_in_the_same_bits(tmp_path, kills, epochs):
    """R1: 25 and 300 kills."""
    check_kills(tmp_path, kills, ("--drpl.semi2.epochs", epochs))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("point", FAULT_POINTS)
def test_killed_at_a_point_of_each_stage_it_ends_in_the_same_bits(unbroken, tmp_path, point):
    """R2: every point of a checkpoint's writing, in the first, the second and the last stage."""
    for number, arrival in enumerate((3, 35, 60)):
        run = tmp_path / str(number)
        process = toy.FORKS.Process(target=with_fault, args=(f"{point}:{arrival}", run))
        process.start()
        process.join(240)
        assert process.exitcode == 9, "the point was never reached"
        assert toy.train(run, "--checkpoint.every", "0") == 0, toy.log_of(run)
        assert_same(run, unbroken)


def with_fault(fault, run):
    os.environ["FASTDRPL_FAULT"] = fault
    toy.command([*toy.WORDS, "--checkpoint.every", "0"], run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_75(unbroken, tmp_path, number):
    """R3."""
    run = tmp_path / "run"
    codes, log = [], run.with_suffix(".log")

    def begun():
        return log.read_text().count("training images, ") if log.exists() else 0

    for moment in (0.3, 0.8, 0.5):
        before = begun()
        process = toy.start(run, "--checkpoint.every", "1e9")
        toy.wait_until(lambda before=before: begun() > before)  # from here on it listens
        time.sleep(moment)
        began = time.monotonic()
        os.kill(process.pid, number)
        process.join(60)
        assert time.monotonic() - began < 30
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    assert 75 in codes, toy.log_of(run)
    assert set(codes) <= {75, 0}, toy.log_of(run)
    assert "the same command continues" in toy.log_of(run)
    if codes[-1] != 0:
        assert toy.train(run, "--checkpoint.every", "1e9") == 0
    assert_same(run, unbroken)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(unbroken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for made in ("result.json", "labels.parquet"):
        (run / made).unlink()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    weights = newest / "tensors-000.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert toy.train(run) == 0, toy.log_of(run)
    log = toy.log_of(run)
    assert newest.name in log
    assert "continuing from 00000001-stage-semi1" in log
    assert toy.outcome(run) == toy.outcome(unbroken)


def test_a_finished_run_prints_its_result_and_changes_nothing(unbroken):
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"}
    assert toy.train(unbroken) == 0
    assert "Test accuracy" in toy.log_of(unbroken)
    after = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after


def test_another_configuration_in_the_folder_lists_what_differs(unbroken):
    assert toy.train(unbroken, "--seed", "3", "--drpl.gamma2", "0.4") == 2
    log = toy.log_of(unbroken)
    assert "seed: 1 there, 3 now" in log
    assert "drpl.gamma2: 0.5 there, 0.4 now" in log


def test_a_folder_in_use_is_refused(tmp_path):
    run = tmp_path / "run"
    first = toy.start(run, "--drpl.semi2.epochs", "400")
    toy.wait_until((run / "metrics.jsonl").exists)
    try:
        assert toy.train(run, "--drpl.semi2.epochs", "400") == 2
        assert str(first.pid) in toy.log_of(run)
        assert first.is_alive()
    finally:
        first.kill()
        first.join(60)


def test_both_loaders_give_the_same_run(unbroken, tmp_path):
    run = tmp_path / "run"
    assert toy.train(run, "--engine.loader", "worker", "--engine.workers", "1") == 0, toy.log_of(run)
    assert_same(run, unbroken)


def test_the_files_of_a_run(unbroken):
    for name in (
        "config.toml",
        "manifest.json",
        "metrics.jsonl",
        "metrics.csv",
        "result.json",
        "labels.parquet",
        "noise.npz",
        "noise.json",
        "export/model.safetensors",
        "export/model.json",
        "export/card.md",
        "stages/relabel/losses.npy",
        "stages/relabel/detection.json",
        "stages/semi1/histogram.png",
    ):
        assert (unbroken / name).is_file(), name
    result = json.loads((unbroken / "result.json").read_text())
    assert result["accuracy"].keys() == {"best", "last"}
    assert [stage["name"] for stage in result["stages"]] == ["relabel", "semi1", "semi2"]
    for stage in result["stages"]:
        assert stage.keys() >= {"name", "epochs", "seconds", "images_per_second", "accuracy", "detection"}
    assert result["stages"][0]["detection"].keys() == {"labelled", "unlabelled", "auc", "tpr", "fpr"}
    assert len(toy.outcome(unbroken)[0]) == 6 + 4 + 4
    rows = toy.outcome(unbroken)[2]
    assert [row["index"] for row in rows] == list(range(160))
    assert sum(row["is_noisy"] for row in rows) == 32
    assert all(row["is_noisy"] == (row["given"] != row["truth"]) for row in rows)
    labelled = sum(row["labelled"] for row in rows)
    assert labelled == result["stages"][1]["detection"]["labelled"]
