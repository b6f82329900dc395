"""Two real processes (gloo) against one: the same steps, the same label store, the same split."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torch import nn

from fastdrpl.config import EngineConfig, OptimiserConfig
from fastdrpl.detectors.beta_mixture import detect
from fastdrpl.epochs import plan_rounds, train_epoch
from fastdrpl.eyes import Eyes, take
from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.learners import Learners
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.machine import build_machine
from fastdrpl.methods.drpl import Relabel
from fastdrpl.pixels import Transform
from fastdrpl.runner import StepRunner
from fastdrpl.stages import Look
from fastdrpl.steps import StepInputs
from fastdrpl.store import LabelStore

ROOT = Path(__file__).resolve().parent.parent
N, C = 90, 4


def images(folder: Path) -> Split:
    """90 images of 4 classes that differ in colour, as a plain file of pixels."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, C, N)
    pixels = draw.integers(0, 90, (N, 8, 8, 3), dtype=np.uint8)
    pixels[np.arange(N), :, :, label % 3] += (60 + 40 * (label // 3)).astype(np.uint8)[:, None, None]
    path = folder / "pixels"
    path.write_bytes(pixels.tobytes() + bytes(2**21 - pixels.nbytes))
    offset = np.arange(N, dtype=np.int64) * 192
    return Split("train", path, 8, 8, "raw", label, np.ones(N, bool), offset, np.full(N, 192), 2**21)


def steps(folder: str, mode: str = "eager") -> None:
    """Three epochs of relabelling without batch normalisation, on this process's share; rank 0 writes what came out."""
    if mode == "compiled":  # what dynamo and autograd make of the network, without waiting for a C++ compiler
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    machine = build_machine(EngineConfig(device="cpu", threads=1, precision="fp32", mode=mode))
    split = images(Path(folder) / str(machine.rank))
    eyes = Eyes(
        ResidentLoader(split, np.arange(N)),
        Transform(8, 2, True, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)),
        N,
        batch_size=40,
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, C))
    learners = Learners([network], OptimiserConfig(), machine)
    objective = Relabel(Regulariser(0.8, 0.4), 1, 10)
    store = LabelStore(N, machine.device, machine.total if machine.world > 1 else None)
    store.put("given", torch.as_tensor(split.label))
    objective.begin(store, C, Pass(1, 1, 0, Purpose.train))
    seen, inputs = [], StepInputs(machine.device)
    for epoch in range(1, 4):
        pass_ = Pass(1, 1, epoch, Purpose.train)
        rounds = plan_rounds(objective, store, eyes, pass_, 32, machine)
        assert rounds.images_of(rounds.steps - 1) == 26  # 26 images left: 13 for each of two ranks
        train_epoch(
            learners,
            objective,
            store,
            eyes,
            rounds,
            inputs,
            pass_,
            run=StepRunner(machine),
            start_step=0,
            after_step=lambda done, images: seen.append(images),
        )
        learners.meter.refuse_bad(machine)
        loss = learners.meter.finish(machine)
        store.sync()
        objective.refresh(store, pass_)
    look = Look(into="loss", read="loss", augmented=True, purpose=Purpose.track_fit)
    losses = take(learners, eyes, look, store["given"], Pass(1, 1, 3, Purpose.track_fit)).numpy()
    split_here = detect(losses, losses, split.label, C, 0.5)
    if machine.main:
        weights = {f"weight{k}": p.detach().numpy() for k, p in enumerate(network.parameters())}
        np.savez(
            Path(folder) / f"world{machine.world}.npz",
            target=store["target"],
            loss=loss,
            images=seen,
            losses=losses,
            mode=machine.ladder.mode,
            **weights,
        )
    np.save(Path(folder) / f"split{machine.world}-{machine.rank}.npy", split_here.labelled)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for rank in range(2):
        (folder / str(rank)).mkdir()
    for world in (1, 2):
        toy.on_ranks(steps, world, str(folder))
    return folder


def test_two_ranks_take_the_steps_of_one(both):
    """R12: without batch normalisation two ranks differ from one by the order of sums only."""
    one, two = (np.load(both / f"world{world}.npz") for world in (1, 2))
    assert one["images"].tolist() == two["images"].tolist() == [32, 32, 26] * 3
    for name in set(one.files) - {"mode"}:
        assert np.allclose(one[name], two[name], rtol=1e-4, atol=1e-5), name
    assert one["loss"][0] > 0
    assert one["losses"].std() > 0.01  # not a comparison of constants


def test_the_same_losses_give_the_same_split_on_every_rank(both):
    """R12."""
    losses = np.load(both / "world2.npz")["losses"]
    alone = detect(losses, losses, images(both / "0").label, C, 0.5).labelled
    for rank in range(2):
        assert np.array_equal(np.load(both / f"split2-{rank}.npy"), alone)


@pytest.mark.slow
def test_two_ranks_compiled_take_the_steps_of_two_eager_ones(both, tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    toy.on_ranks(steps, 2, str(tmp_path), "compiled")
    compiled, eager = (np.load(folder / "world2.npz") for folder in (tmp_path, both))
    assert str(compiled["mode"]) == "compiled" and str(eager["mode"]) == "eager"
    for name in set(eager.files) - {"mode"}:
        assert np.allclose(compiled[name], eager[name], rtol=1e-4, atol=1e-5), name


def torchrun(run: Path, *extra: str) -> subprocess.Popen:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    words = [str(ROOT / "fastdrpl" / "train.py"), *toy.WORDS[1:], "--run", str(run), *extra]
    with open(run.with_suffix(".log"), "a") as log:
        return subprocess.Popen([*launcher, *words], env=environment, stdout=log, stderr=log)


def test_two_ranks_stopped_by_a_signal_end_in_the_bits_of_an_unbroken_run(tmp_path):
    """R3."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert torchrun(whole, "--engine.ranks", "2").wait(200) == 0, toy.log_of(whole)
    process = torchrun(run)
    toy.wait_until(
        lambda: "relabel" in (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else 0
    )
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to both
    began = time.monotonic()
    assert process.wait(60) != 0
    assert time.monotonic() - began < 30
    assert "the same command continues" in toy.log_of(run)
    assert torchrun(run).wait(200) == 0, toy.log_of(run)
    assert "continuing from" in toy.log_of(run)
    assert toy.differing(toy.last_tensors(run), toy.last_tensors(whole)) == []
    assert toy.outcome(run)[1:] == toy.outcome(whole)[1:]


def test_fewer_ranks_than_asked_for_is_an_error(tmp_path):
    run = tmp_path / "run"
    assert toy.train(run, "--engine.ranks", "2") == 2
    assert "1 process started, but --engine.ranks asks for 2" in toy.log_of(run)
