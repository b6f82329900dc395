"""R3: signals at random steps: exit 75, and not one step is trained twice."""

import os
import random
import signal

import pytest
import toy

from fastdrpl.cli import main
from fastdrpl.learners import Learners
from fastdrpl.loaders.prepare import PrepareConfig, prepare

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def check_signals(folder, monkeypatch, count: int, epochs: int) -> None:
    """`count` signals at random steps of a run of `epochs` epochs of 3 steps each, which goes on after each."""
    prepare(PrepareConfig(kind="digits", out=folder / "digits"), quiet=True)
    words = [
        *("train", "digits", "--data", str(folder / "digits"), "--limit", "48", "--limit_test", "16"),
        *("--batch_size", "16", "--model.width", "2", "--engine.threads", "1", "--engine.eval_batch", "48"),
        *("--noise.ratio", "0.2", "--method", "ce", "--ce.schedule.epochs", str(epochs)),
        *("--ce.schedule.milestones", "2", "--test_every", "0", "--checkpoint.every", "1e9"),
    ]
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    taken, sound = [0], Learners.step
    moments = set(random.Random(3).sample(range(1, 3 * epochs), count))

    def step(self, *given):
        done = sound(self, *given)
        taken[0] += 1
        if taken[0] in moments:
            os.kill(os.getpid(), SIGNALS[taken[0] % 3])
        return done

    assert main([*words, "--run", str(folder / "whole")]) == 0
    monkeypatch.setattr(Learners, "step", step)
    for _ in range(count):
        assert main([*words, "--run", str(folder / "run")]) == 75
    assert main([*words, "--run", str(folder / "run")]) == 0
    assert taken[0] == 3 * epochs, "no step is lost, none is trained again"
    assert toy.differing(toy.last_tensors(folder / "run"), toy.last_tensors(folder / "whole")) == []
    assert toy.outcome(folder / "run") == toy.outcome(folder / "whole")


def test_signals_at_random_steps_cost_no_step(tmp_path, monkeypatch):
    """R3: six of them."""
    check_signals(tmp_path, monkeypatch, 6, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_signals_at_random_steps_cost_no_step(tmp_path, monkeypatch):
    """R3: fifty."""
    check_signals(tmp_path, monkeypatch, 50, 30)
