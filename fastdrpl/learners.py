"""The networks of a stage, their one optimiser, and the update that a step ends with."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fastdrpl.compiling import Switch, put_compiled, rehearse
from fastdrpl.config import ModelConfig, OptimiserConfig
from fastdrpl.machine import Machine
from fastdrpl.meter import Meter
from fastdrpl.models import build_model
from fastdrpl.models.joined import forward_both
from fastdrpl.models.layout import choose_layout
from fastdrpl.stages import Learnt

NETWORK_SEEDS = (
    0x9E3779B9  # between the seeds of two networks; torch looks at the lower 32 bits of a seed only
)


class Trainee:
    """A network as objectives see it (`stages.Network`)."""

    def __init__(self, network: nn.Module, wrapped: nn.Module, machine: Machine, joins: bool = False):
        self.network, self._wrapped, self._machine, self._joins = network, wrapped, machine, joins
        self._layout = choose_layout(network, machine.device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """In training mode, with gradient."""
        return self._wrapped(self.lay(inputs))

    def frozen(self, inputs: Tensor) -> Tensor:
        """In training mode, leaving the running statistics of batch normalisation alone."""
        with self._untracked():
            return self._wrapped(self.lay(inputs))

    def both(self, free: Tensor, live: Tensor, *, freeze: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of a batch without gradient, then of one with; in one pass where the run joins them."""
        if self._joins and not freeze:
            return forward_both(self._wrapped, self.lay(free), self.lay(live))
        with torch.no_grad():
            first = self.frozen(free) if freeze else self(free)
        return first, self(live)

    @torch.no_grad()
    def evaluated(self, inputs: Tensor) -> Tensor:
        """In evaluation mode, without gradient; ranks use the statistics of the first."""
        self.share_statistics()
        self.network.eval()
        try:
            return self._wrapped(self.lay(inputs))
        finally:
            self.network.train()

    def lay(self, inputs: Tensor) -> Tensor:
        """The inputs in the network's layout: else its first convolution turns them in each pass and once backward."""
        return inputs.contiguous(memory_format=self._layout)

    def share_statistics(self) -> None:
        """Give every rank the running statistics of the first."""
        self._machine.from_main([b for b in self.network.buffers() if b.is_floating_point()])

    @contextlib.contextmanager
    def _untracked(self) -> Iterator[None]:
        # A momentum of 0 would not do: 0 * inf is nan, and the batches are counted all the same.
        norms = [
            layer for layer in self.network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        ]
        for layer in norms:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in norms:
                layer.track_running_stats = True


class Learners:
    """The networks of a stage with one optimiser for all: what one of them does not learn in a step it keeps."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimiser: OptimiserConfig,
        machine: Machine,
        *,
        sync_bn: bool = False,
        joins: bool = False,
    ):
        self.machine, self.settings, self.sync_bn = machine, optimiser, sync_bn
        self.meter = Meter(machine.device)
        if sync_bn:
            networks = [nn.SyncBatchNorm.convert_sync_batchnorm(network) for network in networks]
        networks = [
            network.to(memory_format=choose_layout(network, machine.device))  # type: ignore[call-overload]
            for network in networks
        ]
        self._compiling = Switch()
        if machine.ladder.mode != "eager":
            for network in networks:
                put_compiled(network, self._compiling, machine.ladder)
        # A tensor, so that a captured step reads what is in force; fused CUDA kernels read float32.
        exact = torch.float32 if machine.device.type == "cuda" else torch.float64
        self.rate = torch.tensor(optimiser.lr, dtype=exact, device=machine.device)
        parameters = [parameter for network in networks for parameter in network.parameters()]
        sgd = torch.optim.SGD(
            parameters,
            lr=self.rate,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
            fused=True,  # the fused step is skipped on the device where `found_inf` is 1
        )
        machine.accelerator.free_memory()
        *wrapped, self._optimiser = machine.accelerator.prepare(*networks, sgd)
        self.networks = tuple(networks)
        self.trainees = tuple(
            Trainee(network, outer, machine, joins) for network, outer in zip(networks, wrapped, strict=True)
        )
        self.sgd = sgd
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @contextlib.contextmanager
    def compiled(self, wanted: bool) -> Iterator[None]:
        """In the block networks that train run compiled, if that is wanted and the mode of the run has it."""
        self._compiling.on = wanted and self.machine.ladder.mode != "eager"
        try:
            yield
        finally:
            self._compiling.on = False

    def rehearse(self, inputs: Tensor) -> None:
        """See whether the networks compile, on inputs (b, 3, H, W) of a training step; nothing of them changes.

        Steps down on all ranks where they do not, or raises `UserError` (`modes.Ladder`).
        """
        ladder = self.machine.ladder
        if ladder.mode != "eager":
            rehearse(self.networks[0], self._compiling, ladder, self.trainees[0].lay(inputs))
        if self.machine.highest(int(ladder.mode == "eager")):
            ladder.step_down("eager", "torch.compile failed on another rank")

    def forget_gradients(self) -> None:
        """Of a step that was broken off."""
        self._optimiser.zero_grad()

    def set_learning_rate(self, rate: float) -> None:
        """For the steps that follow."""
        self.rate.fill_(rate)
        for group in self.sgd.param_groups:
            group["lr"] = self.rate

    def step(self, loss: Tensor, index: Tensor, learnt: Sequence[Learnt] = ()) -> list[Tensor]:
        """Backward and update; not applied, from the first loss or gradient on that is no finite number.

        -> the new rows of what is learnt per sample, and last a number () that is not 0 where they must not be used.
        """
        finite = torch.isfinite(loss.detach())
        # A bad loss poisons its own gradients, so that after their all-reduce every rank sees it; and all that follow.
        poison = torch.where(finite & (self.meter.bad == 0), 1.0, torch.nan)
        scaler = self.machine.accelerator.scaler
        scale = None if scaler is None else scaler.scale(torch.ones((), device=self.machine.device))
        self.machine.accelerator.backward(loss * poison)
        gradients = [
            parameter.grad
            for group in self.sgd.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        bad = ~torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())
        # Rows that learn are of one rank only: what is wrong with them must not make ranks differ.
        own = [item.rows.grad for item in learnt if item.rows.grad is not None]
        skipped = bad | ~torch.isfinite(torch.stack(torch._foreach_norm(own)).sum()) if own else bad
        if self.machine.precision == "fp16":  # the scaler skips such steps; some are normal
            self.meter.note_skipped(bad)
            bad = ~finite
        self.meter.note_bad(bad, index)
        if self.machine.precision != "fp16":
            self.sgd.found_inf = self.meter.bad  # type: ignore[attr-defined]
        self._optimiser.step()
        self._optimiser.zero_grad()
        return [
            *(self._descend(item, scale) for item in learnt),
            torch.maximum(self.meter.bad, skipped.to(self.meter.bad.dtype)),
        ]

    def _descend(self, item: Learnt, scale: Tensor | None) -> Tensor:
        """One step of plain gradient descent on the mean loss of the global batch."""
        if item.rows.grad is None:
            raise ValueError(f"what is learnt in column {item.column!r} takes no part in the loss")
        # A loss is `world` times this rank's part, which data parallelism averages; these rows are of one rank only.
        gradient = item.rows.grad / self.machine.world
        return item.rows.detach() - item.rate * (gradient if scale is None else gradient / scale)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: weights, statistics, momentum and meters; the first network's names have no number."""
        tensors: dict[str, Tensor] = {}
        for number, trainee in enumerate(self.trainees):
            trainee.share_statistics()
            mark = _mark(number)
            for name, value in trainee.network.state_dict().items():
                tensors[f"network{mark}.{name}"] = value
            for name, parameter in trainee.network.named_parameters():
                tensors[f"momentum{mark}.{name}"] = self.sgd.state[parameter]["momentum_buffer"]
        tensors["meter"] = self.machine.stack(self.meter.values)
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors, bit for bit."""
        for number, network in enumerate(self.networks):
            prefix = f"network{_mark(number)}."
            network.load_state_dict(
                {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
            )
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    momentum = tensors[f"momentum{_mark(number)}.{name}"]
                    self.sgd.state[parameter]["momentum_buffer"].copy_(momentum)
        self.meter.load(tensors["meter"], self.machine)


def _mark(number: int) -> str:
    return "" if number == 0 else str(number + 1)


def fresh_networks(
    count: int, model: ModelConfig, classes: int, seed: int, machine: Machine
) -> list[nn.Module]:
    """Newly initialised networks on the device; the first is the same for every stage, the others differ from it."""
    return [
        build_model(model.name, classes, model.width, (seed + number * NETWORK_SEEDS) % 2**64).to(
            machine.device
        )
        for number in range(count)
    ]
