"""One epoch of training: the rounds of an objective, walk beside walk, step after step.

Nothing in a step waits for the device; what an epoch measured is read once, at its end.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastdrpl.errors import UserError
from fastdrpl.eyes import Eyes
from fastdrpl.kernels.loss_head import Share
from fastdrpl.kernels.streams import stream_tensor
from fastdrpl.learners import Learners
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.order import SMALLEST_TAIL, Order, Pass
from fastdrpl.machine import Machine
from fastdrpl.runner import StepRunner
from fastdrpl.stages import WALKS, Objective, Walk, walk_view
from fastdrpl.steps import StepInputs
from fastdrpl.store import LabelStore


@dataclass(frozen=True)
class Course:
    """A walk as it is walked again and again in one epoch."""

    walk: Walk
    number: int  # among the epoch's walks
    epoch_pass: Pass
    order: Callable[[Pass], Order]  # of a repeat
    first: Order
    size: int  # images of a step that is no tail, over all ranks

    def is_regular(self, step: int) -> bool:
        """Whether a step has as many images as were asked for."""
        return self.images(step) == self.size

    def pass_of(self, repeat: int) -> Pass:
        """What keys order and augmentation of a repeat (from 0)."""
        return dataclasses.replace(self.epoch_pass, view=walk_view(self.number, repeat))

    def images(self, step: int) -> int:
        """Images of a step over all ranks."""
        return len(self.first.batch(step % len(self.first)))

    def batches(self, eyes: Eyes, machine: Machine, start: int, stop: int) -> Iterator[tuple[Batch, Tensor]]:
        """The batches of steps `start` to `stop` of a round, each with the key words of its pass."""
        number = start
        while number < stop:
            repeat, step = divmod(number, len(self.first))
            pass_ = self.pass_of(repeat)
            words = stream_tensor(pass_.stream, machine.device)
            order = self.first if repeat == 0 else self.order(pass_)
            for batch in eyes.loader.epoch(order, start_step=step):
                yield batch, words
                number += 1
                if number == stop and number % len(self.first):
                    return  # within a repeat: nothing waits for the rest of it
            if number % len(self.first) or number == start:
                raise RuntimeError(
                    f"the loader ended after step {number % len(self.first)} of {len(order)}: was it closed?"
                )


@dataclass(frozen=True)
class Rounds:
    """What an epoch walks over: the courses of each round, and how many steps each round has."""

    courses: tuple[tuple[Course, ...], ...]

    @property
    def steps(self) -> int:
        """Of the whole epoch."""
        return sum(len(courses[0].first) for courses in self.courses)

    def images(self, stop: int | None = None) -> int:
        """Images of the first `stop` steps over all ranks, or of all."""
        wanted = self.steps if stop is None else stop
        return sum(self.images_of(number) for number in range(wanted))

    def images_of(self, number: int) -> int:
        """Images of a step over all ranks, all walks together."""
        courses, step = self.at(number)
        return sum(course.images(step) for course in courses)

    def at(self, number: int) -> tuple[tuple[Course, ...], int]:
        """The courses and the step within their round of step `number` of the epoch."""
        for courses in self.courses:
            if number < len(courses[0].first):
                return courses, number
            number -= len(courses[0].first)
        raise IndexError(f"step {number} beyond the epoch's end")


def plan_rounds(
    objective: Objective,
    store: LabelStore,
    eyes: Eyes,
    epoch_pass: Pass,
    batch_size: int,
    machine: Machine,
) -> Rounds:
    """The rounds of an epoch. Raises `UserError` for batches that are too small for the ranks."""
    courses, number = [], 0
    for walks in objective.rounds(store, epoch_pass):
        row = []
        for walk in walks:
            if number == WALKS or not len(walk.index):
                raise ValueError(
                    f"rounds: got {number + 1} walks or an empty one, want at most {WALKS}, none empty"
                )
            row.append(_course(walk, number, eyes, epoch_pass, batch_size, machine))
            number += 1
        courses.append(tuple(row))
    return Rounds(tuple(courses))


def _course(
    walk: Walk, number: int, eyes: Eyes, epoch_pass: Pass, batch_size: int, machine: Machine
) -> Course:
    size = walk.batch_size or batch_size

    def order(pass_: Pass) -> Order:
        # Each rank needs two samples of every batch: walks whose size the data decide must not end a run.
        smallest = max(SMALLEST_TAIL, 2 * machine.world)
        return eyes.order(walk.index, size, pass_, True, machine.rank, machine.world, smallest)

    first = order(dataclasses.replace(epoch_pass, view=walk_view(number, 0)))
    _check_batches(first, machine)
    return Course(walk, number, epoch_pass, order, first, size)


def _check_batches(order: Order, machine: Machine) -> None:
    """Every rank needs two samples in every step: batch normalisation cannot work with one."""
    smallest = min(len(order.batch(step)) for step in (0, len(order) - 1))
    if smallest < 2 * machine.world:
        raise UserError(
            f"the smallest batch has {smallest} samples for {machine.world} rank(s)",
            fix="use another --batch_size, fewer ranks, or more images",
        )


def train_epoch(
    learners: Learners,
    objective: Objective,
    store: LabelStore,
    eyes: Eyes,
    rounds: Rounds,
    inputs: StepInputs,
    epoch_pass: Pass,
    *,
    run: StepRunner,
    start_step: int,
    after_step: Callable[[int, int], None],
) -> None:
    """The steps of one epoch from `start_step` on, each carried out by `run`.

    `after_step(done, images)` may stop it by raising.
    """
    machine = learners.machine
    widest = max(
        course.images(s) for row in rounds.courses for course in row for s in (0, len(course.first) - 1)
    )
    learners.meter.reserve(widest * max(map(len, rounds.courses)))
    most = max(map(len, rounds.courses))
    inputs.begin_epoch(epoch_pass.epoch, most, widest, objective.draw(store, epoch_pass, rounds.steps))
    reductions = (machine.total, machine.maximum) if machine.world > 1 else (None, None)
    for trainee in learners.trainees:
        trainee.network.train()
    number = start_step
    for round_number, courses, first, last in _left(rounds, start_step):
        walks = [course.batches(eyes, machine, first, last) for course in courses]
        for step in range(first, last):
            batches = tuple(inputs.put(walk, *next(batches)) for walk, batches in enumerate(walks))
            inputs.number.fill_(number)
            shares = tuple(Share(course.images(step), machine.world, *reductions) for course in courses)
            run(
                learners,
                objective,
                store,
                eyes.transform,
                inputs,
                batches,
                shares,
                round_number,
                regular=all(course.is_regular(step) for course in courses),
            )
            number += 1
            after_step(number, sum(share.count for share in shares))
        for batches_left in walks:
            next(batches_left, None)  # lets the loader see the end of its epoch


def _left(rounds: Rounds, start: int) -> Iterator[tuple[int, Sequence[Course], int, int]]:
    """What is left of an epoch from a step on: (round, courses, first step, last step) within each round."""
    for number, courses in enumerate(rounds.courses):
        steps = len(courses[0].first)
        if start < steps:
            yield number, courses, start, steps
        start = max(0, start - steps)
