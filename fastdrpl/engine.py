"""The training loop: one epoch of steps, and the passes that only look.

Nothing in a step waits for the device; what an epoch measured is read once, at its end.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastdrpl.config import OptimiserConfig
from fastdrpl.errors import NonFiniteError
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.order import Order, Pass
from fastdrpl.losses import Share, label_loss
from fastdrpl.machine import Machine
from fastdrpl.pixels import Augmented, Transform
from fastdrpl.stages import Stage, Step
from fastdrpl.store import LabelStore

SKIPPED_IN_A_ROW = 20  # fp16 steps without an update, after which the scale is not what is wrong


class Learner:
    """A network, its optimiser and what the running epoch has measured, on one machine."""

    def __init__(
        self, network: nn.Module, optimiser: OptimiserConfig, machine: Machine, *, sync_bn: bool = False
    ):
        self.machine, self.settings = machine, optimiser
        if sync_bn:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if machine.device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sgd = torch.optim.SGD(
            network.parameters(),
            lr=optimiser.lr,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
            fused=True,  # the fused step is skipped on the device where `found_inf` is 1
        )
        machine.accelerator.free_memory()
        self.network = network
        self.wrapped, self._optimiser = machine.accelerator.prepare(network, sgd)
        self.sgd = sgd
        for parameter in network.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.meter = Meter(machine.device)

    def set_learning_rate(self, rate: float) -> None:
        """For the steps that follow."""
        for group in self.sgd.param_groups:
            group["lr"] = rate

    def step(self, loss: Tensor, index: Tensor) -> None:
        """Backward and update; not applied, from the first loss or gradient on that is no finite number."""
        finite = torch.isfinite(loss.detach())
        # A bad loss poisons its own gradients, so that after their all-reduce every rank sees it; and all that follow.
        poison = torch.where(finite & (self.meter.bad == 0), 1.0, torch.nan)
        self.machine.accelerator.backward(loss * poison)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        bad = ~torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
        if self.machine.precision == "fp16":  # the scaler skips such steps; some are normal
            self.meter.note_skipped(bad)
            bad = ~finite
        self.meter.note_bad(bad, index)
        if self.machine.precision != "fp16":
            self.sgd.found_inf = self.meter.bad  # type: ignore[attr-defined]
        self._optimiser.step()
        self._optimiser.zero_grad()

    @contextlib.contextmanager
    def _statistics_frozen(self) -> Iterator[None]:
        norms = [
            layer for layer in self.network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        ]
        momenta = [layer.momentum for layer in norms]
        for layer in norms:
            layer.momentum = 0.0
        try:
            yield
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum

    def frozen_forward(self, inputs: Tensor) -> Tensor:
        """A forward pass in training mode that leaves the running statistics alone."""
        with self._statistics_frozen():
            return self.wrapped(inputs)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: weights, statistics, momentum and meters."""
        self.machine.from_main([b for b in self.network.buffers() if b.is_floating_point()])
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            tensors[f"momentum.{name}"] = self.sgd.state[parameter]["momentum_buffer"]
        tensors["meter"] = self.machine.stack(self.meter.values)
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors, bit for bit."""
        prefix = "network."
        self.network.load_state_dict(
            {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        )
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                self.sgd.state[parameter]["momentum_buffer"].copy_(tensors[f"momentum.{name}"])
        self.meter.load(tensors["meter"], self.machine)


class Meter:
    """Sums of the running epoch, on the device: loss, agreement with targets, samples; fp16 steps skipped in a row."""

    def __init__(self, device: torch.device):
        self.device = device
        self.values = torch.zeros(4, dtype=torch.float64, device=device)
        self.bad = torch.zeros((), device=device)  # 1 from the first non-finite step on
        self._bad_index: Tensor | None = None

    def note(self, loss: Tensor, agreed: Tensor, share: Share) -> None:
        """Add a step: its loss, weighted by the samples of the global batch, and (b,) bool."""
        self.values[0] += loss.detach().double() * (share.count / share.world)
        self.values[1] += agreed.sum()
        self.values[2] += len(agreed)

    def note_bad(self, bad: Tensor, index: Tensor) -> None:
        """Keep the samples (b,) of the first bad step."""
        first = bad & (self.bad == 0)
        if self._bad_index is None or len(self._bad_index) < len(index):
            longer = torch.full((len(index),), -1, dtype=torch.int64, device=self.device)
            if self._bad_index is not None:
                longer[: len(self._bad_index)] = self._bad_index
            self._bad_index = longer
        kept = self._bad_index[: len(index)]
        kept.copy_(torch.where(first, index, kept))
        self.bad = torch.maximum(self.bad, bad.to(self.bad.dtype))

    def note_skipped(self, skipped: Tensor) -> None:
        """Count fp16 steps whose gradients overflowed, in a row; a row that is too long stays."""
        too_long = self.values[3] >= SKIPPED_IN_A_ROW
        self.values[3] = torch.where(skipped | too_long, self.values[3] + skipped, 0.0)

    def refuse_bad(self, machine: Machine) -> None:
        """Raise `NonFiniteError` with the sample ids if a step was bad on any rank; the weights are from before it."""
        if machine.highest(int(self.bad)):
            raise NonFiniteError(
                "the loss or a gradient is not a finite number; the update was not applied",
                where=f"batch with sample ids {self._bad_samples(machine)}",
                fix="look at these images, or start another --run with a lower --optimiser.lr",
            )
        skipped = machine.highest(int(self.values[3]))
        if skipped >= SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{skipped} fp16 steps in a row had gradients that are not finite",
                fix="start another --run with a lower --optimiser.lr, or with --engine.precision bf16 or fp32",
            )

    def _bad_samples(self, machine: Machine) -> list[int]:
        """Sample ids of the first bad global batch, from all ranks."""
        own = torch.empty(0, dtype=torch.int64) if self._bad_index is None else self._bad_index.cpu()
        padded = torch.full((machine.highest(len(own)),), -1, dtype=torch.int64)
        padded[: len(own)] = own
        return [i for i in machine.stack(padded.to(machine.device)).flatten().tolist() if i >= 0]

    def load(self, rows: Tensor, machine: Machine) -> None:
        """Take this rank's row; with another number of ranks than before, rank 0 takes the sums."""
        own = rows[machine.rank] if len(rows) == machine.world else rows.sum(0) * machine.main
        self.values.copy_(own)
        self.values[3] = rows[:, 3].max()  # ranks skip together: this is no sum

    def finish(self, machine: Machine) -> tuple[float, float]:
        """Mean loss and agreement of the epoch over all ranks, then start again at zero."""
        loss, agreed, samples, _ = machine.stack(self.values).sum(0).tolist()
        self.values[:3] = 0.0
        return loss / samples, agreed / samples


class OrderFactory(Protocol):
    """Makes the order of a pass; `Order` itself is one."""

    def __call__(
        self, index: np.ndarray, batch_size: int, pass_: Pass, shuffle: bool, rank: int, world: int
    ) -> Order: ...


@dataclass(frozen=True)
class Eyes:
    """A set of images as the loops see it: where the pixels come from and how they become input."""

    loader: Loader
    transform: Transform
    samples: int
    order: OrderFactory = Order  # in which order an epoch walks


def train_epoch(
    learner: Learner,
    stage: Stage,
    store: LabelStore,
    eyes: Eyes,
    order: Order,
    epoch_pass: Pass,
    *,
    start_step: int,
    after_step: Callable[[int, int], None],
) -> None:
    """The steps of one epoch from `start_step` on. `after_step(done, images)` may stop it by raising."""
    machine = learner.machine
    draws = stage.objective.draw(store, epoch_pass, len(order))
    numbers = torch.arange(len(order), device=machine.device)
    reductions = (machine.total, machine.maximum) if machine.world > 1 else (None, None)
    learner.network.train()
    number = start_step - 1
    for number, batch in enumerate(eyes.loader.epoch(order, start_step=start_step), start=start_step):
        share = Share(len(order.batch(number)), machine.world, *reductions)
        outcome = stage.objective.loss(
            Step(
                network=learner.wrapped,
                frozen_statistics=learner.frozen_forward,
                images=Augmented(eyes.transform, batch, epoch_pass),
                index=batch.index,
                store=store,
                share=share,
                number=numbers[number],
                draws=draws,
            )
        )
        learner.step(outcome.loss, batch.index)
        learner.meter.note(outcome.loss, outcome.predicted == outcome.wanted, share)
        after_step(number + 1, share.count)
    if number + 1 != len(order):
        raise RuntimeError(f"the loader ended after step {number + 1} of {len(order)}: was it closed?")


@torch.no_grad()
def look(
    learner: Learner, eyes: Eyes, pass_: Pass, *, batch_size: int, augmented: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk over all samples in evaluation mode: sample index (b,) and log probability (b, C) of each batch."""
    machine = learner.machine
    machine.from_main([buffer for buffer in learner.network.buffers() if buffer.is_floating_point()])
    order = eyes.order(np.arange(eyes.samples), batch_size, pass_, False, machine.rank, machine.world)
    learner.network.eval()
    for batch in eyes.loader.epoch(order):
        inputs = eyes.transform.train(batch, pass_) if augmented else eyes.transform.plain(batch)
        yield batch.index, torch.log_softmax(learner.network(inputs).float(), 1)


def gather(machine: Machine, parts: Iterator[tuple[Tensor, Tensor]], samples: int) -> Tensor:
    """Rows (b, ...) by sample index, from all ranks, as one tensor (samples, ...)."""
    whole: Tensor | None = None
    for index, values in parts:
        if whole is None:
            whole = torch.zeros((samples, *values.shape[1:]), dtype=values.dtype, device=machine.device)
        whole.index_copy_(0, index, values)
    if whole is None:
        raise ValueError("no samples to look at")
    return machine.total(whole) if machine.world > 1 else whole


def losses_to(
    learner: Learner, eyes: Eyes, given: Tensor, pass_: Pass, *, batch_size: int, augmented: bool
) -> Tensor:
    """Loss of every sample to its given label: (N,) float32, on the device."""
    walk = look(learner, eyes, pass_, batch_size=batch_size, augmented=augmented)
    parts = ((index, label_loss(log_p, given[index])) for index, log_p in walk)
    return gather(learner.machine, parts, eyes.samples)


def probabilities(learner: Learner, eyes: Eyes, pass_: Pass, *, batch_size: int, augmented: bool) -> Tensor:
    """Prediction for every sample: (N, C) float32, on the device."""
    walk = look(learner, eyes, pass_, batch_size=batch_size, augmented=augmented)
    return gather(learner.machine, ((index, log_p.exp()) for index, log_p in walk), eyes.samples)


def accuracy(learner: Learner, eyes: Eyes, label: Tensor, pass_: Pass, *, batch_size: int) -> float:
    """Fraction of samples whose largest prediction is their label."""
    walk = look(learner, eyes, pass_, batch_size=batch_size, augmented=False)
    right = gather(
        learner.machine, ((i, (log_p.argmax(1) == label[i]).int()) for i, log_p in walk), eyes.samples
    )
    return int(right.sum()) / eyes.samples
