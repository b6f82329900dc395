"""Steps that are recorded and replayed beside the same steps carried out one by one, to the bit."""

import os
import signal

import pytest
import torch
import toy
from recorded_steps import CpuGraphs

from fastdrpl.cli import parse_training
from fastdrpl.errors import PreemptedError
from fastdrpl.learners import Learners
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.modes import Ladder
from fastdrpl.run import run

COMMON = [
    *("digits", "--limit", "140", "--limit_test", "20", "--batch_size", "16", "--model.width", "4"),
    *("--engine.threads", "1", "--checkpoint.every", "1e9", "--noise.ratio", "0.2"),
]  # 140 images: eight steps of 16 and a tail of 12
METHODS = {
    "drpl": [
        *("--drpl.relabel.epochs", "3", "--drpl.relabel.milestones", "3", "--drpl.given_epochs", "1"),
        *("--drpl.semi1.epochs", "2", "--drpl.semi1.milestones", "2", "--drpl.semi2.epochs", "2"),
        *("--drpl.semi2.milestones", "2", "--drpl.average", "2", "--drpl.gamma1", "0.5"),
    ],
    "dividemix": [
        *("--method", "dividemix", "--dividemix.schedule.epochs", "4", "--dividemix.warmup_epochs", "2"),
        *("--dividemix.schedule.milestones", "4", "--dividemix.optimiser", "own"),
        *("--dividemix.batch_size", "8"),
    ],
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(PrepareConfig(kind="digits", out=folder), quiet=True)
    return folder


@pytest.fixture
def graphs(monkeypatch):
    """Captured steps on the CPU, their networks not compiled; -> all that were made."""
    made = []

    def on_cpu(device):
        made.append(CpuGraphs())
        return made[-1]

    monkeypatch.setattr("fastdrpl.runner.CudaGraphs", on_cpu)
    monkeypatch.setattr("fastdrpl.machine.build_ladder", lambda *given, **named: Ladder("captured"))
    monkeypatch.setattr("fastdrpl.learners.put_compiled", lambda *given: None)
    monkeypatch.setattr(Learners, "rehearse", lambda *given: None)
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    return made


def train(digits, folder, method):
    return run(parse_training([*COMMON, *METHODS[method], "--data", str(digits), "--run", str(folder)]))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_recorded_steps_give_the_bits_of_single_ones_also_after_a_stop_within_an_epoch(
    digits, tmp_path, monkeypatch, graphs, method
):
    """Over all stages and a resume: weights, momentum, label store and what the meter read."""
    whole, broken = tmp_path / "eager", tmp_path / "captured"
    with monkeypatch.context() as patch:
        patch.setattr("fastdrpl.machine.build_ladder", lambda *given, **named: Ladder())
        train(digits, whole, method)
    assert not graphs

    taken, sound = [0], torch.optim.SGD.step

    def step_then_ask_to_stop(self, *given):
        taken[0] += 1
        if taken[0] == 14:
            os.kill(os.getpid(), signal.SIGUSR1)
        return sound(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step_then_ask_to_stop)
        with pytest.raises(PreemptedError):
            train(digits, broken, method)
    train(digits, broken, method)
    assert sum(each.recordings for each in graphs) >= 3
    for position in range(-2, 0):
        assert toy.differing(toy.last_tensors(broken, position), toy.last_tensors(whole, position)) == []
    assert toy.outcome(broken) == toy.outcome(whole)
