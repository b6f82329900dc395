"""Steps that are recorded and replayed beside the same steps carried out one by one, to the bit."""

import os
import signal

import pytest
import torch
import toy
from recorded_steps import CpuGraphs
from tiny_training import RELABEL, SEMI, Training

from fastdrpl.cli import parse_training
from fastdrpl.errors import PreemptedError, UserError
from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.learners import Learners
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.methods.drpl import Relabel
from fastdrpl.modes import Ladder
from fastdrpl.run import run
from fastdrpl.runner import WARM_UP


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """What a C++ compiler makes is no torch operation, so the recorder here would not see it."""
    monkeypatch.setattr("fastdrpl.learners.put_compiled", lambda *given: None)


def both(objective, epochs=2, **named):
    """The same epochs in captured and in eager mode."""
    captured, eager = Training(Ladder("captured"), objective, **named), Training(Ladder(), objective, **named)
    for number in range(1, epochs + 1):
        assert captured.epoch(number) == eager.epoch(number)
    return captured, eager


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("objective", [RELABEL, SEMI], ids=["relabel", "semi"])
def test_replayed_steps_have_the_bits_of_single_ones(objective, moving):
    captured, eager = both(objective, moving=moving)
    assert captured.runner.captures == 1 and captured.graphs.recordings == 1
    assert eager.runner.captures == 0
    assert captured.runner.replays == 2 * 5 - WARM_UP, "all steps but the first three and the tails"
    assert toy.differing(captured.numbers(), eager.numbers()) == []
    assert captured.addresses[WARM_UP:] == [captured.addresses[WARM_UP]] * (len(captured.addresses) - WARM_UP)


def test_joined_forward_passes_are_replayed_to_the_bit():
    captured, eager = both(SEMI, joins=True)
    assert captured.runner.replays == 2 * 5 - WARM_UP
    assert toy.differing(captured.numbers(), eager.numbers()) == []


def test_weights_are_cast_anew_in_each_replay():
    captured, eager = both(SEMI, precision="bf16")
    assert captured.machine.precision == "bf16" and captured.runner.replays > 0
    assert toy.differing(captured.numbers(), eager.numbers()) == []


def test_another_epoch_is_not_the_same_numbers_again():
    """The comparison above can fail."""
    captured, eager = Training(Ladder("captured"), SEMI), Training(Ladder(), SEMI)
    captured.epoch(1), captured.epoch(2)
    eager.epoch(1), eager.epoch(3)
    assert toy.differing(captured.numbers(), eager.numbers())


def test_what_moves_in_memory_is_recorded_anew():
    captured, eager = both(RELABEL, epochs=1)

    def change(training, what):
        if what == "store":
            training.store.put("target", training.store["target"].double())
            training.store.put("target", training.store["target"].float())
        elif what == "load":
            columns = {name: value.clone() for name, value in training.store.state().items()}
            training.store.load(columns)
        elif what == "slots":
            training.inputs.begin_epoch(1, 3, 40, None)
        elif what == "meter":
            training.learners.meter.reserve(500)
        else:
            training.new_learners()

    for number, what in enumerate(("store", "load", "slots", "meter", "learners"), 2):
        recorded = captured.graphs.recordings
        for training in (captured, eager):
            change(training, what)
        assert captured.epoch(number) == eager.epoch(number), what
        assert captured.graphs.recordings == recorded + 1, what
        assert toy.differing(captured.numbers(), eager.numbers()) == [], what
    recorded = captured.graphs.recordings
    assert captured.epoch(8) == eager.epoch(8)
    assert captured.graphs.recordings == recorded, "nothing moved"


class Reads(Relabel):
    """Asks the device for a number in each step, as no objective may."""

    def loss(self, step):
        step.number.add(0).item()
        return super().loss(step)


def test_a_step_that_cannot_be_recorded_steps_down_and_says_why():
    objective, told = Reads(Regulariser(0.8, 0.4), 1, 2), []
    captured = Training(Ladder("captured", say=told.append), objective)
    eager = Training(Ladder(), objective)
    for number in (1, 2):
        assert captured.epoch(number) == eager.epoch(number)
    assert captured.machine.describe()["mode"] == "compiled"
    assert len(told) == 1
    assert "a step cannot be recorded: RuntimeError: aten._local_scalar_dense" in told[0]
    assert captured.machine.describe()["mode_reasons"][0] in told[0]
    assert toy.differing(captured.numbers(), eager.numbers()) == []


def test_a_step_that_cannot_be_recorded_ends_a_run_that_asked_for_it():
    captured = Training(Ladder("captured", named=True), Reads(Regulariser(0.8, 0.4), 1, 2))
    with pytest.raises(UserError, match=r"--engine.mode captured cannot be had: a step cannot be recorded"):
        captured.epoch(1)
    assert captured.runner.replays == 0


# --- whole runs ---

COMMON = [
    *("digits", "--limit", "90", "--limit_test", "20", "--batch_size", "16", "--model.width", "4"),
    *("--engine.threads", "1", "--checkpoint.every", "1e9", "--noise.ratio", "0.2"),
]  # 90 images: five steps of 16 and a tail of 10
METHODS = {
    "drpl": [
        *("--drpl.relabel.epochs", "3", "--drpl.relabel.milestones", "3", "--drpl.given_epochs", "1"),
        *("--drpl.semi1.epochs", "2", "--drpl.semi1.milestones", "2", "--drpl.semi2.epochs", "2"),
        *("--drpl.semi2.milestones", "2", "--drpl.average", "2", "--drpl.gamma1", "0.5"),
    ],
    "dividemix": [
        *("--method", "dividemix", "--dividemix.schedule.epochs", "4", "--dividemix.warmup_epochs", "1"),
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
