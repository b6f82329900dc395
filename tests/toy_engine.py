"""A small set of random images, and an epoch of training on it without a run around it."""

import numpy as np
import pytest

from fastdrpl.config import EngineConfig, OptimiserConfig
from fastdrpl.epochs import plan_rounds, train_epoch
from fastdrpl.eyes import Eyes
from fastdrpl.learners import Learners
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.machine import build_machine
from fastdrpl.models import build_model
from fastdrpl.pixels import Transform
from fastdrpl.runner import StepRunner
from fastdrpl.steps import StepInputs

N, C = 83, 4


@pytest.fixture(scope="module")
def machine():
    return build_machine(EngineConfig(device="cpu", threads=1, precision="fp32"))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pixels") / "pixels"
    path.write_bytes(pixels.tobytes() + bytes(2**21 - pixels.nbytes))
    offset = np.arange(N, dtype=np.int64) * 192
    label = draw.integers(0, C, N)
    return Split("train", path, 8, 8, "raw", label, np.ones(N, bool), offset, np.full(N, 192), 2**21)


@pytest.fixture
def eyes(split):
    transform = Transform(8, 2, True, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    return Eyes(ResidentLoader(split, np.arange(N)), transform, N)


def new_learners(machine, **settings):
    return Learners([build_model("preact_resnet18", C, 4, seed=1)], OptimiserConfig(**settings), machine)


def one_epoch(learners, objective, store, eyes, pass_, after_step, start_step=0):
    rounds = plan_rounds(objective, store, eyes, pass_, 16, learners.machine)
    inputs = StepInputs(learners.machine.device)
    train_epoch(
        learners,
        objective,
        store,
        eyes,
        rounds,
        inputs,
        pass_,
        run=StepRunner(learners.machine),
        start_step=start_step,
        after_step=after_step,
    )
