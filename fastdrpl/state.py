"""The state of a run under way: what a checkpoint holds, how it is written, and how a run goes on from it."""

import dataclasses
import re

import torch

from fastdrpl.checkpoint import (
    Checkpoint,
    checkpoint_name,
    list_checkpoints,
    newest_checkpoint,
    next_sequence,
    prune,
    read_checkpoint,
    sequence_of,
    write_checkpoint,
)
from fastdrpl.config import Config, OptimiserConfig
from fastdrpl.console import say, warn
from fastdrpl.errors import UserError
from fastdrpl.folder import RunFolder
from fastdrpl.journal import NoJournal
from fastdrpl.learners import Learners, fresh_networks
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.machine import Machine
from fastdrpl.metrics import Metrics
from fastdrpl.records import Position, StageRecord
from fastdrpl.stages import Stage
from fastdrpl.store import Allocate, LabelStore


class RunState:
    """Networks, optimiser, label store, position and records of a run; all of it is in its checkpoints.

    Written only between two steps, so that a run that goes on takes the very next step.
    """

    def __init__(
        self,
        config: Config,
        plan: tuple[Stage, ...],
        folder: RunFolder,
        machine: Machine,
        identity: dict[str, str],
        journal: Metrics | NoJournal,
        given: torch.Tensor,
        classes: int,
        rings: Allocate | None = None,
    ):
        self.config, self.plan, self.folder, self.machine = config, plan, folder, machine
        self.identity, self.journal, self.classes = identity, journal, classes
        self.doing = "making the networks"  # for who is told that it could not be done
        self.position = Position()
        self.records: list[StageRecord] = []
        total = machine.total if machine.world > 1 else None
        self.store = LabelStore(len(given), machine.device, total, rings)
        self.given = given
        self.learners = self._fresh(plan[0])

    def optimiser(self, stage: Stage) -> OptimiserConfig:
        """What a stage is trained with."""
        return stage.optimiser or self.config.optimiser

    def pass_(self, epoch: int, purpose: Purpose) -> Pass:
        """A pass of the present stage."""
        return Pass(self.config.seed, self.position.stage + 1, epoch, purpose)

    def begin_stage(self, stage: Stage) -> None:
        """The networks of a stage: new ones, or those there are, with their momentum if the optimiser is the same."""
        if stage.start == "fresh":
            self.learners = self._fresh(stage)
        elif len(self.learners.networks) != stage.networks or self.learners.settings != self.optimiser(stage):
            networks = list(self.learners.networks)[: stage.networks]
            missing = self._networks(stage.networks)[len(networks) :]
            self.learners = self._learners([*networks, *missing], self.optimiser(stage))

    def _fresh(self, stage: Stage) -> Learners:
        return self._learners(self._networks(stage.networks), self.optimiser(stage))

    def _networks(self, count: int) -> list[torch.nn.Module]:
        return fresh_networks(count, self.config.model, self.classes, self.config.seed, self.machine)

    def _learners(self, networks: list[torch.nn.Module], optimiser: OptimiserConfig) -> Learners:
        engine = self.config.engine
        return Learners(
            networks, optimiser, self.machine, sync_bn=engine.sync_bn, joins=engine.forwards == "joined"
        )

    def resume_or_begin(self) -> None:
        """Go on from the newest checkpoint that verifies, or start."""
        found = find_checkpoint(self.folder, self.machine, self.identity)
        if found is None:
            self.journal.truncate(0)
            self.store.put("given", self.given)
            return
        state = found.state
        self.position = Position(**state["position"])
        self._refuse_other_ranks(state.get("ranks", self.machine.world))
        self.records = [StageRecord(**record) for record in state["records"]]
        self._load_learners(found.tensors)
        if self.machine.accelerator.scaler is not None:
            self.machine.accelerator.scaler.load_state_dict(state["scaler"])
        columns, shared = (_under(prefix, found.tensors) for prefix in ("store.", "shared."))
        self.store.load(columns, shared, state.get("rings", ()))
        self.journal.truncate(state["journal"])
        if self.machine.main:
            at = self.position
            name = self.plan[at.stage].name if at.stage < len(self.plan) else "the end"
            say(f"continuing from {found.path.name}: {name}, epoch {at.epoch}, step {at.step}")

    def _load_learners(self, tensors: dict[str, torch.Tensor]) -> None:
        """Networks as many as the checkpoint has, with the optimiser of the last stage that began."""
        count = len({name.partition(".")[0] for name in tensors if re.match(r"network\d*\.", name)})
        begun = max(0, len(self.records) - 1)
        optimiser = self.optimiser(self.plan[min(begun, len(self.plan) - 1)])
        if count != len(self.learners.networks) or optimiser != self.learners.settings:
            self.learners = self._learners(self._networks(count), optimiser)
        self.learners.load(tensors)

    def _refuse_other_ranks(self, before: int) -> None:
        """In the order of shards each rank walks a piece of its own: half an epoch cannot be divided anew."""
        if self.config.order == "shards" and self.position.step and before != self.machine.world:
            raise UserError(
                f"this run stopped within an epoch on {before} rank(s); here are {self.machine.world}",
                where=str(self.folder.path),
                fix=f"continue it on {before} rank(s); with --order shards others can take over between epochs only",
            )

    def save(self, stage_end: str | None = None) -> None:
        """Write a checkpoint of this very moment; every rank must call it after the same step."""
        self.learners.meter.refuse_bad(self.machine)
        self.store.sync()
        tensors = {
            **self.learners.tensors(),
            **{f"store.{name}": value for name, value in self.store.state().items()},
            **{f"shared.{name}": value for name, value in self.store.shared_state().items()},
        }
        scaler = self.machine.accelerator.scaler
        if self.machine.main:
            write_checkpoint(
                self.folder.checkpoints,
                checkpoint_name(next_sequence(self.folder.checkpoints), stage_end),
                tensors,
                {
                    "position": dataclasses.asdict(self.position),
                    "records": [dataclasses.asdict(record) for record in self.records],
                    "scaler": scaler.state_dict() if scaler is not None else None,
                    "journal": self.journal.sync(),
                    "ranks": self.machine.world,
                    "rings": list(self.store.rings),
                },
                identity=self.identity,
            )
            prune(self.folder.checkpoints, self.config.checkpoint.keep)
        self.machine.wait()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def find_checkpoint(run: RunFolder, machine: Machine, identity: dict[str, str]) -> Checkpoint | None:
    """The newest checkpoint that verifies for rank 0; the others read the same one, or fail."""
    folder, number = run.checkpoints, 0
    found = None
    if machine.main:
        found = newest_checkpoint(folder, identity=identity, on_skip=lambda error: warn(str(error)))
        number = 0 if found is None else sequence_of(found.path) + 1
    number = machine.highest(number)
    if number and found is None:
        path = next(path for path in list_checkpoints(folder) if sequence_of(path) == number - 1)
        found = read_checkpoint(path, identity=identity)
    return found
