"""One step of training: inputs at fixed places, and a body that computes on them.

`StepInputs` holds everything that changes from step to step as device tensors that stay where they are and are filled
by copies; `body` is the same Python whether it runs as it is, compiled or captured: it allocates nothing that lasts,
rebinds nothing and asks the host for nothing.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdrpl.kernels.loss_head import Share
from fastdrpl.kernels.streams import WORDS
from fastdrpl.learners import Learners
from fastdrpl.loaders.batch import Batch
from fastdrpl.pixels import Augmented, Transform
from fastdrpl.stages import Minibatch, Objective, Outcome, Step
from fastdrpl.store import LabelStore


@dataclass
class Slot:
    """Where the batch of one walk is put: views of the first b rows are what a step sees."""

    rows: Tensor  # (largest batch,) int64
    index: Tensor  # (largest batch,) int64
    words: Tensor  # (5,) int64: the key words of the pass
    pixels: Tensor | None = None  # where steps find the images, if they must not move
    copied: bool = False  # these are copies, as the loader's move


class StepInputs:
    """What changes from step to step and from epoch to epoch, on the device.

    `still`: the images too stay where they are, as captured steps need it. `placed` counts the times that something
    moved in memory.
    """

    def __init__(self, device: torch.device, *, still: bool = False):
        self.device, self.still = device, still
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)
        self.slots: list[Slot] = []
        self.draws: Any = None
        self.placed = 0

    def begin_epoch(self, epoch: int, walks: int, batch: int, draws: Any) -> None:
        """Room for the walks of an epoch, its number and its random numbers."""
        self.epoch.fill_(epoch)
        if len(self.slots) < walks or len(self.slots[0].rows) < batch:
            self.slots = [
                Slot(self._numbers(batch), self._numbers(batch), self._numbers(WORDS)) for _ in range(walks)
            ]
            self.placed += 1
        self._place_draws(draws)

    def _numbers(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self.device)

    def _place_draws(self, draws: Any) -> None:
        """Copy the tensors of an epoch's draws over those of the last, if they have the same shapes."""
        if draws is not None and not _alike(self.draws, draws):
            self.draws = draws
            self.placed += 1
        elif draws is not None:
            for item in dataclasses.fields(draws):
                value = getattr(draws, item.name)
                if isinstance(value, Tensor):
                    getattr(self.draws, item.name).copy_(value)
        elif self.draws is not None:
            self.draws = None
            self.placed += 1

    def put(self, walk: int, batch: Batch, words: Tensor) -> Batch:
        """The batch of a walk, its rows and index moved into the slot."""
        slot, b = self.slots[walk], len(batch.index)
        rows, index = slot.rows[:b], slot.index[:b]
        rows.copy_(batch.rows)
        index.copy_(batch.index)
        slot.words.copy_(words)
        return Batch(self._settle(slot, batch.pixels) if self.still else batch.pixels, rows, index)

    def _settle(self, slot: Slot, pixels: Tensor) -> Tensor:
        """The images where they stay: where they are, or copied if the loader makes each batch in another place."""
        if slot.pixels is None:
            slot.pixels = pixels
        elif not slot.copied and not _same_place(slot.pixels, pixels):
            slot.pixels, slot.copied = torch.empty_like(pixels), True
            self.placed += 1
        if not slot.copied:
            return slot.pixels
        if len(slot.pixels) < len(pixels) or slot.pixels.shape[1:] != pixels.shape[1:]:
            slot.pixels = torch.empty_like(pixels)
            self.placed += 1
        slot.pixels[: len(pixels)].copy_(pixels)
        return slot.pixels


def _same_place(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _alike(one: Any, other: Any) -> bool:
    """Whether two draws are of one kind, with tensors of the same shapes and equal other values."""
    if type(one) is not type(other) or not dataclasses.is_dataclass(one):
        return False
    for item in dataclasses.fields(one):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return False
        if isinstance(a, Tensor) and (a.shape != b.shape or a.dtype != b.dtype):
            return False
        if not isinstance(a, Tensor) and a != b:
            return False
    return True


def body(
    learners: Learners,
    objective: Objective,
    store: LabelStore,
    transform: Transform,
    inputs: StepInputs,
    batches: tuple[Batch, ...],
    shares: tuple[Share, ...],
    round_number: int,
) -> None:
    """Loss, gradients, update, what the objective wants written, meter."""
    step = Step(
        networks=learners.trainees,
        batches=tuple(
            Minibatch(Augmented(transform, batch, inputs.slots[walk].words), batch.index, share)
            for walk, (batch, share) in enumerate(zip(batches, shares, strict=True))
        ),
        store=store,
        number=inputs.number,
        epoch=inputs.epoch,
        draws=inputs.draws,
        round=round_number,
    )
    outcome = objective.loss(step)
    loss = total_loss(outcome)
    seen = step.index if len(batches) == 1 else torch.cat([batch.index for batch in step.batches])
    *rows, refused = learners.step(loss, seen, outcome.learnt)
    for write in outcome.writes:
        store.write(write.column, write.index, write.values, unless=learners.meter.bad)
    for item, values in zip(outcome.learnt, rows, strict=True):
        store.write(item.column, item.index, values, unless=refused)
    learners.meter.note(loss, outcome.predicted == outcome.wanted, step.share)


def total_loss(outcome: Outcome) -> Tensor:
    """The sum of the networks' losses: each network's gradient is that of its own."""
    if isinstance(outcome.loss, Tensor):
        return outcome.loss
    losses = [loss for loss in outcome.loss if loss is not None]
    if not losses:
        raise ValueError("no network learns in this step: want a loss for at least one")
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
