"""A tiny network trained epoch by epoch on tiny images, and where everything lies that its steps touch."""

import dataclasses

import numpy as np
import torch
from accelerate.state import AcceleratorState
from recorded_steps import CpuGraphs
from torch import nn

from fastdrpl.config import EngineConfig, OptimiserConfig
from fastdrpl.epochs import plan_rounds, train_epoch
from fastdrpl.eyes import Eyes
from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.learners import Learners
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.machine import build_machine
from fastdrpl.methods.drpl import Relabel, SemiSupervised, Settings
from fastdrpl.modes import Ladder
from fastdrpl.pixels import Transform
from fastdrpl.runner import StepRunner
from fastdrpl.steps import StepInputs
from fastdrpl.store import LabelStore

N, C, BATCH = 46, 3, 8  # five steps of 8 and a tail of 6
DRAW = np.random.default_rng(3)
PIXELS = torch.from_numpy(DRAW.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8))
GIVEN = torch.from_numpy(DRAW.integers(0, C, N))


class Loader:
    """Batches as a loader hands them out; `moving`: each made in another place, as those that decode do."""

    def __init__(self, moving: bool, device: torch.device):
        self.moving, self.pixels = moving, PIXELS.to(device)

    def epoch(self, order, *, start_step=0):
        for step in range(start_step, len(order)):
            index = torch.from_numpy(order.index[order.own(step)].copy()).to(self.pixels.device)
            if self.moving:
                yield Batch(self.pixels[index], torch.arange(len(index), device=index.device), index)
            else:
                yield Batch(self.pixels, index.clone(), index)


class Training:
    """An objective on a tiny network, epoch by epoch."""

    def __init__(
        self, ladder: Ladder, objective, *, moving=False, device="cpu", precision="fp32", joins=False
    ):
        if torch.cuda.is_available():  # Accelerate holds one device and precision for a process
            AcceleratorState._reset_state(reset_partial_state=True)
        machine = build_machine(EngineConfig(device=device, threads=1, precision=precision, mode="eager"))
        self.machine = dataclasses.replace(machine, ladder=ladder)
        self.graphs = CpuGraphs() if device == "cpu" else None
        self.runner = StepRunner(self.machine, self.graphs)
        self.inputs = StepInputs(machine.device, still=True)
        self.objective, self.joins = objective, joins
        self.eyes = Eyes(Loader(moving, machine.device), Transform(8, 1, True, (0.5,) * 3, (0.2,) * 3), N)
        self.store = LabelStore(N, machine.device)
        self.store.put("given", GIVEN)
        self.store.put("labelled", GIVEN < 2)
        objective.begin(self.store, C, Pass(1, 1, 0, Purpose.train))
        self.addresses: list[dict[str, int]] = []
        self.new_learners()

    def new_learners(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, C)
        )
        self.learners = Learners(
            [network.to(self.machine.device)], OptimiserConfig(lr=0.02), self.machine, joins=self.joins
        )

    def epoch(self, number: int) -> tuple[float, float]:
        pass_ = Pass(1, 1, number, Purpose.train)
        rounds = plan_rounds(self.objective, self.store, self.eyes, pass_, BATCH, self.machine)
        self.learners.set_learning_rate(0.02 / number)
        with self.runner.stream():
            train_epoch(
                self.learners,
                self.objective,
                self.store,
                self.eyes,
                rounds,
                self.inputs,
                pass_,
                run=self.runner,
                start_step=0,
                after_step=lambda done, images: self.addresses.append(self.touched()),
            )
        self.learners.meter.refuse_bad(self.machine)
        measured = self.learners.meter.finish(self.machine)
        self.objective.refresh(self.store, pass_)
        return measured

    def touched(self) -> dict[str, int]:
        """Where everything lies that a step reads and writes."""
        learners, inputs, meter = self.learners, self.inputs, self.learners.meter
        found = {f"store {name}": value for name, value in self.store.state().items()}
        found |= {f"shared {name}": value for name, value in self.store.shared_state().items()}
        found |= dict(learners.networks[0].state_dict(keep_vars=True))
        found |= {
            f"momentum {k}": value["momentum_buffer"] for k, value in enumerate(learners.sgd.state.values())
        }
        found |= {"rate": learners.sgd.param_groups[0]["lr"], "bad": meter.bad, "values": meter.values}
        found |= {"bad index": meter._bad_index, "number": inputs.number, "epoch": inputs.epoch}
        for k, slot in enumerate(inputs.slots):
            found |= {f"rows {k}": slot.rows, f"index {k}": slot.index, f"words {k}": slot.words}
            found |= {f"pixels {k}": slot.pixels}
        if dataclasses.is_dataclass(inputs.draws):
            found |= {
                item.name: getattr(inputs.draws, item.name) for item in dataclasses.fields(inputs.draws)
            }
        return {name: value.data_ptr() for name, value in found.items() if value is not None}

    def numbers(self) -> dict[str, torch.Tensor]:
        return {**self.learners.tensors(), **{f"store.{k}": v.clone() for k, v in self.store.state().items()}}


RELABEL = Relabel(Regulariser(0.8, 0.4), 1, 2)
SEMI = SemiSupervised(Regulariser(0.8, 0.4), Settings())
