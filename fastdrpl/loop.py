"""The loop over stages and epochs: train, look, judge, save."""

import time
from typing import Any

import torch

from fastdrpl.console import say, warn
from fastdrpl.epochs import Rounds, plan_rounds, train_epoch
from fastdrpl.errors import CollapseError, PreemptedError
from fastdrpl.evidence import write_losses
from fastdrpl.eyes import Eyes, accuracy, take
from fastdrpl.folder import COLLAPSED
from fastdrpl.judging import judge, refuse_nan
from fastdrpl.labels import Labels
from fastdrpl.loaders.order import Purpose
from fastdrpl.pace import CONTINUE, STOP, Pace
from fastdrpl.records import Position, StageRecord
from fastdrpl.runner import StepRunner
from fastdrpl.signals import StopRequest
from fastdrpl.stages import Look, Stage, learning_rate
from fastdrpl.state import RunState
from fastdrpl.steps import StepInputs


class Loop:
    """What the stages of a run are trained with: its state, the images it sees, and whom it listens to."""

    def __init__(
        self,
        state: RunState,
        labels: Labels,
        train: Eyes,
        test: Eyes | None,
        test_label: torch.Tensor | None,
        stop: StopRequest,
    ):
        self.state, self.labels, self.train, self.test = state, labels, train, test
        self._test_label, self._stop = test_label, stop
        self._inputs = StepInputs(state.machine.device, still=state.machine.ladder.mode == "captured")
        self._runner = StepRunner(state.machine)

    def run(self) -> None:
        """Train every stage that is left."""
        state = self.state
        with self._runner.stream():
            while state.position.stage < len(state.plan):
                self._stage(state.plan[state.position.stage])

    def _stage(self, stage: Stage) -> None:
        state = self.state
        if len(state.records) <= state.position.stage:
            self._begin(stage)
        epochs = stage.schedule.epochs
        if state.position.epoch > epochs:  # trained before: it had ended without enough labels
            self._judge_again(stage)
        with Pace(
            state.folder,
            state.machine,
            self._stop,
            stage=stage.name,
            epochs=epochs,
            save_every=state.config.checkpoint.every,
        ) as pace:
            while state.position.epoch <= epochs:
                self._epoch(stage, pace)
        stage.objective.end(state.store)
        state.position = Position(state.position.stage + 1)
        state.save(stage_end=stage.name)

    def _begin(self, stage: Stage) -> None:
        state = self.state
        state.records.append(StageRecord(stage.name, stage.schedule.epochs))
        epochs, milestones = stage.schedule.epochs, stage.schedule.milestones
        if state.machine.main and state.config.epochs_scale == 1 and max(milestones, default=0) > epochs:
            warn(
                f"{stage.name}: the milestones {milestones} lie beyond its {epochs} epochs; "
                "--epochs_scale shortens both alike"
            )
        own, common = state.optimiser(stage), state.config.optimiser
        if state.machine.main and own.lr != common.lr and stage.optimiser is not None:
            say(
                f"{stage.name}: its first learning rate is {own.lr:g}; --optimiser.lr, {common.lr:g}, is not used"
            )
        self._runner.forget()
        state.doing = f"beginning the stage {stage.name}"
        state.begin_stage(stage)
        stage.objective.begin(state.store, state.classes, state.pass_(0, Purpose.train))
        looks = [look for look in stage.looks if look.due(0, epochs)]
        for look in looks:
            self._look(look, 0)
        if looks:
            stage.objective.refresh(state.store, state.pass_(0, looks[0].purpose))

    def _epoch(self, stage: Stage, pace: Pace) -> None:
        state, position, record = self.state, self.state.position, self.state.records[-1]
        config, epoch, started = state.config, position.epoch, time.monotonic()
        epoch_pass = state.pass_(epoch, Purpose.train)
        batch_size = stage.batch_size or config.batch_size
        rounds = plan_rounds(stage.objective, state.store, self.train, epoch_pass, batch_size, state.machine)
        optimiser = state.optimiser(stage)
        rate = learning_rate(epoch, stage.schedule, lr=optimiser.lr, drop=optimiser.drop)
        state.learners.set_learning_rate(rate)
        pace.begin(epoch, rounds.images(), rounds.images(position.step))
        state.doing = f"training: {stage.name}, epoch {epoch}"

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

        self._steps(stage, rounds, epoch, after_step)
        loss, agreement = state.learners.meter.finish(state.machine)
        state.store.sync()
        metrics = {"stage": stage.name, "epoch": epoch, "lr": rate, "loss": loss, "agreement": agreement}
        state.doing = f"looking at test and training images: {stage.name}, epoch {epoch}"
        metrics |= self._test(stage, epoch)
        self._look_around(stage, epoch, pace)
        state.doing = f"making the next targets: {stage.name}, epoch {epoch}"
        stage.objective.refresh(state.store, epoch_pass)
        failed: CollapseError | None = None
        try:
            metrics |= self._judge(stage, epoch)
        except CollapseError as error:
            failed = error
        record.seconds += time.monotonic() - started
        state.journal.append({**metrics, "seconds": round(record.seconds, 3)})
        note = f"loss {loss:.3f}"
        if record.last is not None:
            note += f", test {record.last:.2%}"
        pace.note(note)
        position.epoch, position.step = epoch + 1, 0
        if failed is not None:
            state.save(stage_end=f"{stage.name}{COLLAPSED}")
            raise failed
        if epoch < stage.schedule.epochs and (wish := pace.wish(0)) != CONTINUE:
            self._save_or_stop(wish, pace)

    def _steps(self, stage: Stage, rounds: Rounds, epoch: int, after_step: Any) -> None:
        state = self.state
        train_epoch(
            state.learners,
            stage.objective,
            state.store,
            self.train,
            rounds,
            self._inputs,
            state.pass_(epoch, Purpose.train),
            run=self._runner,
            start_step=state.position.step,
            after_step=after_step,
        )
        state.learners.meter.refuse_bad(state.machine)

    def _save_or_stop(self, wish: int, pace: Pace) -> None:
        self.state.save()
        pace.saved()
        if wish == STOP:
            raise PreemptedError(
                f"stopped by {self._stop.name or 'another rank'}; the state is saved",
                where=str(self.state.folder.path),
                fix="the same command continues",
            )

    def _test(self, stage: Stage, epoch: int) -> dict[str, float | None]:
        """Accuracy on the test images, if it is due."""
        every, record = self.state.config.test_every, self.state.records[-1]
        if self.test is None or self._test_label is None:
            return {"test_accuracy": None}
        if epoch < stage.schedule.epochs and not (every and epoch % every == 0):
            return {"test_accuracy": None}
        pass_ = self.state.pass_(epoch, Purpose.test)
        record.last = accuracy(self.state.learners, self.test, self._test_label, pass_)
        record.best = record.last if record.best is None else max(record.best, record.last)
        return {"test_accuracy": record.last}

    def _look_around(self, stage: Stage, epoch: int, pace: Pace) -> None:
        """The looks that are due after an epoch; with --track every those of the detector too."""
        last, every = stage.schedule.epochs, self.state.config.track == "every"
        for look in stage.looks:
            tracked = every and not look.before and (look.figures or self._is_judged(stage, look))
            if not (look.due(epoch, last) or tracked):
                continue
            pace.note(f"looking at all samples: {look.read}")
            self._look(look, epoch)
            if every and look.figures and self.state.machine.main:
                place = self.state.folder.stage(stage.name) / "losses" / f"epoch-{epoch:04d}.npy"
                write_losses(place, self.state.store[look.into])

    def _is_judged(self, stage: Stage, look: Look) -> bool:
        return stage.detector is not None and look.into in stage.detector.reads

    def _look(self, look: Look, epoch: int) -> None:
        state = self.state
        pass_ = state.pass_(epoch, look.purpose)
        seen = take(state.learners, self.train, look, state.given, pass_)
        refuse_nan(seen)
        state.store.put(look.into, seen)

    def _judge(self, stage: Stage, epoch: int) -> dict[str, Any]:
        last = epoch == stage.schedule.epochs
        if stage.detector is None or not (last or self.state.config.track == "every"):
            return {}
        return judge(self.state, stage, self.labels, epoch, keep=last)

    def _judge_again(self, stage: Stage) -> None:
        """Another threshold for a stage that is trained already."""
        self.state.records[-1].warnings.append(
            "almost no label counted as right at first; the split was made anew with other settings"
        )
        judge(self.state, stage, self.labels, stage.schedule.epochs, keep=True)
