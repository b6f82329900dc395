"""Epochs of this trainer, one at a time: the loop of a run itself, with its data, label store and files."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.state import AcceleratorState

from fastdrpl.beginning import open_beginning, write_beginning
from fastdrpl.config import AugmentConfig, Config, EngineConfig, ModelConfig
from fastdrpl.folder import RunFolder
from fastdrpl.loaders.order import Order, Purpose
from fastdrpl.loop import Loop
from fastdrpl.machine import build_machine
from fastdrpl.metrics import Metrics
from fastdrpl.pace import Pace
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.records import Position, StageRecord
from fastdrpl.settings import Schedule
from fastdrpl.signals import StopRequest
from fastdrpl.stages import learning_rate
from fastdrpl.tracking import Trackers

Task = Literal["relabel", "semi"]
STAGES = {"relabel": 0, "semi": 1}
UNLABELLED = 3  # every third sample, in the semi-supervised stage
# Steady state from the first epoch that is measured: past the milestones, and past the epochs on the given labels.
FIRST, LONG = 3, Schedule(epochs=1_000_000, milestones=(2, 2))


def config_of(
    data: Path,
    *,
    width: int,
    batch_size: int,
    test_every: int = 0,
    limit: int = 0,
    augment: AugmentConfig | None = None,
    **engine: Any,
) -> Config:
    """DRPL with the numbers of CIFAR-10, in a schedule without an end. `engine`: fields of `EngineConfig`."""
    config = recipe_named("cifar10").config_for("drpl")
    drpl = dataclasses.replace(config.drpl, relabel=LONG, semi1=LONG, given_epochs=1)  # type: ignore[attr-defined]
    return dataclasses.replace(
        config,
        data=data,
        batch_size=batch_size,
        test_every=test_every,
        limit=limit,
        model=ModelConfig(width=width),
        augment=augment or AugmentConfig(size=0, pad=-1, flip="yes"),
        engine=EngineConfig(**engine),
        drpl=drpl,
    )


class Steps(Pace):
    """Progress of a run that also keeps the loss of each step, if it is asked to."""

    keeps = False

    def watch(self, values: torch.Tensor) -> None:
        """Keep what the meter has summed up after each step."""
        self.keeps, self._values, self.sums = True, values, list[torch.Tensor]()

    def advance(self, images: int) -> None:
        """Some images were trained on."""
        super().advance(images)
        if self.keeps:
            self.sums.append(self._values[:3].clone())


class Ours:
    """A run in one of its stages; each `epoch` trains the next one, as a run does."""

    def __init__(self, config: Config, folder: Path, task: Task):
        AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision for a process
        plan, run = plan_of(config), RunFolder(folder)
        self.task, self.stage = task, plan[STAGES[task]]
        self.machine = build_machine(config.engine)
        folder.mkdir(parents=True)
        with _quiet():
            begun = open_beginning(config, plan, run, self.machine)
            write_beginning(config, begun, run, self.machine)
        self.state, self.eyes, self.data = begun.state, begun.train_eyes, begun.data
        self.state.journal = self.journal = Metrics(run, Trackers((), run.tracking, run.path, {}))
        self.state.resume_or_begin()
        samples = torch.arange(self.state.store.samples)
        self.state.store.put("labelled", samples % UNLABELLED > 0)
        self.state.position = Position(STAGES[task])
        self.state.records = [StageRecord(stage.name, LONG.epochs) for stage in plan[: STAGES[task]]]
        self.test_eyes, self.test_label = begun.test_eyes, begun.test_label
        self.loop = Loop(
            self.state, begun.train.labels, self.eyes, self.test_eyes, self.test_label, StopRequest()
        )
        with self._stream():
            self.loop._begin(self.stage)
        self.state.position.epoch = FIRST
        self.pace = Steps(
            run,
            self.machine,
            StopRequest(),
            stage=self.stage.name,
            epochs=LONG.epochs,
            save_every=float("inf"),
        )
        self._close = begun.close

    @property
    def network(self) -> torch.nn.Module:
        return self.state.learners.networks[0]

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        numbers = self.state.optimiser(self.stage)
        return learning_rate(FIRST, self.stage.schedule, lr=numbers.lr, drop=numbers.drop)

    @property
    def images(self) -> int:
        """Of an epoch."""
        return self.eyes.samples

    @property
    def steps(self) -> int:
        """Of an epoch."""
        pass_ = self.state.pass_(FIRST, Purpose.train)
        return len(Order(np.arange(self.images), self.state.config.batch_size, pass_, shuffle=False))

    def describe(self) -> str:
        """How it computes: mode and precision."""
        said = self.machine.describe()
        return f"{said['mode']}, {said['precision']}"

    def epoch(self) -> None:
        """The next epoch, until the device is done with it."""
        with _quiet(), self._stream():
            self.loop._epoch(self.stage, self.pace)
        wait_for(self.machine.device)

    def _stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where a run whose steps are recorded does everything."""
        return self.loop._runner.stream()

    def losses(self, steps: int) -> list[float]:
        """The mean loss of each of the next steps, in as many epochs as that takes."""
        found: list[float] = []
        while len(found) < steps:
            self.pace.watch(self.state.learners.meter.values)
            self.epoch()
            sums = torch.stack([torch.zeros_like(self.pace.sums[0]), *self.pace.sums]).cpu().numpy()
            found += ((sums[1:, 0] - sums[:-1, 0]) / (sums[1:, 2] - sums[:-1, 2])).tolist()
        self.pace.keeps = False
        return found[:steps]

    def last_metrics(self) -> dict[str, Any]:
        """What the journal says of the last epoch."""
        return dict(self.journal._records[-1])

    def close(self) -> None:
        """Give back files and images."""
        self.journal.__exit__(None, None, None)
        self._close()


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Nowhere(io.StringIO):
    """What a run tells its user does not belong among the rows of a bench."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    nowhere = _Nowhere()  # a progress bar keeps it
    with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
