"""A run under way: what a checkpoint holds, and the loops over stages and epochs that change it.

State is written only between two steps, so that a run that goes on takes the very next step.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fastdrpl.checkpoint import checkpoint_name, next_sequence, prune, write_checkpoint
from fastdrpl.config import Config
from fastdrpl.console import say, warn
from fastdrpl.detecting import as_column, keep_evidence, name_warnings, split_labels
from fastdrpl.engine import Eyes, Learner, accuracy, losses_to, probabilities, train_epoch
from fastdrpl.errors import CollapseError, NonFiniteError, PreemptedError, UserError
from fastdrpl.folder import RunFolder
from fastdrpl.journal import Journal
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loading import open_loader, order_of
from fastdrpl.machine import Machine
from fastdrpl.methods import stages_of
from fastdrpl.models import build_model
from fastdrpl.pace import CONTINUE, STOP, Pace
from fastdrpl.pixels import resolve_transform
from fastdrpl.saving import NoJournal, Position, StageRecord, find_checkpoint
from fastdrpl.signals import StopRequest
from fastdrpl.stages import Stage, learning_rate
from fastdrpl.store import LabelStore
from fastdrpl.view import View


class Training:
    """A run under way: its learner, label store and position, and the files they go to."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        machine: Machine,
        data: Dataset,
        train: View,
        test: View | None,
        identity: dict[str, str],
        stop: StopRequest,
        journal: Journal | NoJournal,
        loaders: Mapping[str, str],
    ):
        self.config, self.folder, self.machine, self.data = config, folder, machine, data
        self.train, self.test, self.identity = train, test, identity
        self._stop, self._journal = stop, journal
        self.plan = stages_of(config)
        self.classes = len(train.labels.class_names)
        self.position = Position()
        self.records: list[StageRecord] = []
        transform = resolve_transform(config.augment, data)

        def eyes(view: View) -> Eyes:
            loader = open_loader(loaders[view.split.name], config.engine, view, machine)
            return Eyes(loader, transform, len(view.labels), order_of(config.order, view))

        self.train_eyes = eyes(train)
        self.test_eyes = None
        if test is not None:
            self.test_eyes = eyes(test)
            self._test_label = torch.tensor(test.labels.truth, device=machine.device)
        many = machine.world > 1
        self.store = LabelStore(len(train.labels), machine.device, machine.total if many else None)
        self.given = torch.tensor(train.labels.given, device=machine.device)
        self.learner = self._fresh_learner()
        if machine.main:
            where = machine.describe()
            say(
                f"{where['gpu'] or 'CPU'}, {machine.precision}, {machine.world} rank(s), {machine.threads} threads, "
                f"loader {type(self.train_eyes.loader).__name__}, {len(train.labels)} training images, "
                f"{self.classes} classes"
            )

    def close(self) -> None:
        """Give back the loaders."""
        self.train_eyes.loader.close()
        if self.test_eyes is not None:
            self.test_eyes.loader.close()

    def _fresh_learner(self) -> Learner:
        model = self.config.model
        network = build_model(model.name, self.classes, model.width, self.config.seed)
        return Learner(
            network.to(self.machine.device),
            self.config.optimiser,
            self.machine,
            sync_bn=self.config.engine.sync_bn,
        )

    def pass_(self, epoch: int, purpose: Purpose) -> Pass:
        """A pass of the present stage."""
        return Pass(self.config.seed, self.position.stage + 1, epoch, purpose)

    # --- saving ---

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, or start."""
        found = find_checkpoint(self.folder, self.machine, self.identity)
        if found is None:
            self._journal.truncate(0)
            self.store.put("given", self.given)
            return
        state = found.state
        self.position = Position(**state["position"])
        self._refuse_other_ranks(state.get("ranks", self.machine.world))
        self.records = [StageRecord(**record) for record in state["records"]]
        tensors = {name: value.to(self.machine.device) for name, value in found.tensors.items()}
        self.learner.load(tensors)
        if self.machine.accelerator.scaler is not None:
            self.machine.accelerator.scaler.load_state_dict(state["scaler"])
        prefix = "store."
        self.store.load(
            {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        )
        self._journal.truncate(state["journal"])
        if self.machine.main:
            at = self.position
            name = self.plan[at.stage].name if at.stage < len(self.plan) else "the end"
            say(f"continuing from {found.path.name}: {name}, epoch {at.epoch}, step {at.step}")

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
        self.learner.meter.refuse_bad(self.machine)
        self.store.sync()
        tensors = {**self.learner.tensors(), **{f"store.{n}": v for n, v in self.store.state().items()}}
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
                    "journal": self._journal.sync(),
                    "ranks": self.machine.world,
                },
                identity=self.identity,
            )
            prune(self.folder.checkpoints, self.config.checkpoint.keep)
        self.machine.wait()

    # --- training ---

    def stages(self) -> None:
        """Train every stage that is left."""
        while self.position.stage < len(self.plan):
            self._train_stage(self.plan[self.position.stage])

    def _train_stage(self, stage: Stage) -> None:
        if len(self.records) <= self.position.stage:
            self.records.append(StageRecord(stage.name, stage.schedule.epochs))
            epochs, milestones = stage.schedule.epochs, stage.schedule.milestones
            if self.machine.main and self.config.epochs_scale == 1 and max(milestones, default=0) > epochs:
                warn(
                    f"{stage.name}: the milestones {milestones} lie beyond its {epochs} epochs; "
                    "--epochs_scale shortens both alike"
                )
            self._begin_stage(stage)
        index = np.arange(len(self.train.labels))
        if stage.samples == "labelled":
            index = np.flatnonzero(self.store["labelled"].cpu().numpy())
        checkpoint = self.config.checkpoint
        with Pace(
            self.folder,
            self.machine,
            self._stop,
            stage=stage.name,
            epochs=stage.schedule.epochs,
            save_every=checkpoint.every,
        ) as pace:
            while self.position.epoch <= stage.schedule.epochs:
                self._train_epoch(stage, index, pace)
        self.position = Position(self.position.stage + 1)
        self.save(stage_end=stage.name)

    def _begin_stage(self, stage: Stage) -> None:
        if stage.start == "fresh":
            self.learner = self._fresh_learner()
        stage.objective.begin(self.store, self.classes, self.pass_(0, Purpose.train))
        if stage.guess:
            guess_pass = self.pass_(0, Purpose.label_guess)
            guess = probabilities(
                self.learner,
                self.train_eyes,
                guess_pass,
                batch_size=self.config.engine.eval_batch,
                augmented=True,
            )
            self.store.put("prediction", guess)
            stage.objective.refresh(self.store, guess_pass)

    def _train_epoch(self, stage: Stage, index: np.ndarray, pace: Pace) -> None:
        config, position, record = self.config, self.position, self.records[-1]
        epoch, started = position.epoch, time.monotonic()
        epoch_pass = self.pass_(epoch, Purpose.train)
        order = self.train_eyes.order(
            index, config.batch_size, epoch_pass, True, self.machine.rank, self.machine.world
        )
        _check_batches(order, self.machine)
        rate = learning_rate(epoch, stage.schedule, lr=config.optimiser.lr, drop=config.optimiser.drop)
        self.learner.set_learning_rate(rate)
        pace.begin(epoch, len(index), sum(len(order.batch(step)) for step in range(position.step)))

        def after_step(done: int, images: int) -> None:
            nonlocal started
            position.step = done
            record.images += images
            pace.advance(images)
            wish = pace.wish(done)
            if wish != CONTINUE:
                record.seconds += time.monotonic() - started
                started = time.monotonic()
                self._save_or_stop(wish, pace)

        train_epoch(
            self.learner,
            stage,
            self.store,
            self.train_eyes,
            order,
            epoch_pass,
            start_step=position.step,
            after_step=after_step,
        )
        self.learner.meter.refuse_bad(self.machine)
        loss, agreement = self.learner.meter.finish(self.machine)
        self.store.commit(lambda store: stage.objective.refresh(store, epoch_pass))
        metrics = {"stage": stage.name, "epoch": epoch, "lr": rate, "loss": loss, "agreement": agreement}
        metrics |= self._look_around(stage, epoch, pace)
        record.seconds += time.monotonic() - started
        self._journal.append({**metrics, "seconds": round(record.seconds, 3)})
        note = f"loss {loss:.3f}"
        if record.last is not None:
            note += f", test {record.last:.2%}"
        pace.note(note)
        position.epoch, position.step = epoch + 1, 0
        if epoch < stage.schedule.epochs and (wish := pace.wish(0)) != CONTINUE:
            self._save_or_stop(wish, pace)

    def _save_or_stop(self, wish: int, pace: Pace) -> None:
        self.save()
        pace.saved()
        if wish == STOP:
            raise PreemptedError(
                f"stopped by {self._stop.name or 'another rank'}; the state is saved",
                where=str(self.folder.path),
                fix="the same command continues",
            )

    def _look_around(self, stage: Stage, epoch: int, pace: Pace) -> dict[str, Any]:
        """After an epoch: test, track the losses and detect, as far as it is due; -> metrics."""
        config, last = self.config, epoch == stage.schedule.epochs
        metrics: dict[str, Any] = {"test_accuracy": None}
        if self.test_eyes is not None and (last or (config.test_every and epoch % config.test_every == 0)):
            record = self.records[-1]
            record.last = metrics["test_accuracy"] = accuracy(
                self.learner,
                self.test_eyes,
                self._test_label,
                self.pass_(epoch, Purpose.test),
                batch_size=config.engine.eval_batch,
            )
            record.best = record.last if record.best is None else max(record.best, record.last)
        if stage.gamma is not None and (last or config.track == "every"):
            pace.note("taking the losses of all samples")
            metrics |= self._detect(stage, epoch, stage.gamma, keep=last)
        return metrics

    def _detect(self, stage: Stage, epoch: int, gamma: float, *, keep: bool) -> dict[str, Any]:
        """Losses of all samples, and the split they give; the last epoch's goes into the label store."""
        augmented = self.config.drpl.track_augment == "train"

        def losses(purpose: Purpose) -> torch.Tensor:
            return losses_to(
                self.learner,
                self.train_eyes,
                self.given,
                self.pass_(epoch, purpose),
                batch_size=self.config.engine.eval_batch,
                augmented=augmented,
            )

        fit = losses(Purpose.track_fit)
        score = losses(Purpose.track_score) if self.config.drpl.track_passes == 2 and augmented else fit
        for values in (fit, score):
            _refuse_nan(values)
        labels, compat = self.train.labels, self.config.drpl.posterior
        if keep:
            self.store.put(f"loss_{stage.name}", score)
        try:
            detection, figures = split_labels(fit, score, labels, gamma, compat=compat)
        except CollapseError:
            if keep and stage.splits:
                raise
            if self.machine.main:  # nothing depends on this one
                warn(f"{stage.name}, epoch {epoch}: almost nothing counts as clean at gamma {gamma:g}")
            return {}
        if keep:
            record = self.records[-1]
            if stage.splits:
                self.store.put("labelled", as_column(detection.labelled, self.machine.device))
                self.store.put("posterior", as_column(detection.p_noisy, self.machine.device))
            record.detection = figures
            record.warnings = name_warnings(detection, labels)
            if self.machine.main:
                keep_evidence(
                    self.folder.stage(stage.name), stage.name, detection, figures, score, labels, gamma
                )
                for warning in record.warnings:
                    warn(f"{stage.name}: {warning}")
        return {f"detection_{name}": value for name, value in figures.items()}


def _refuse_nan(losses: torch.Tensor) -> None:
    """Raise `NonFiniteError` for losses that detection cannot use; infinite ones count as the largest."""
    bad = torch.isnan(losses)
    if bool(bad.any()) or not bool(torch.isfinite(losses).any()):
        samples = bad.nonzero()[:10, 0].tolist()
        raise NonFiniteError(
            f"the losses of {int(bad.sum())} samples are no numbers, so no label can be judged",
            where=f"sample ids {samples}",
            fix="look at these images, or start another --run with a lower --optimiser.lr",
        )


def _check_batches(order: Order, machine: Machine) -> None:
    """Every rank needs two samples in every step: batch normalisation cannot work with one."""
    smallest = min(len(order.batch(step)) for step in (0, len(order) - 1))
    if smallest < 2 * machine.world:
        raise UserError(
            f"the smallest batch has {smallest} samples for {machine.world} rank(s)",
            fix="use another --batch_size, fewer ranks, or more images",
        )
