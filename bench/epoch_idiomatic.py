"""The same training as one would write it in plain torch today, to be fast: the honest yardstick.

All images on the device, torchvision's transforms v2 there (which draw one crop and one flip for a whole batch, where
ours draws one for each image), autocast to bf16 where the processor has it, channels_last, fused SGD, nothing read
from the device within an epoch, and torch.compile on the network with its loss. No tracking and no test pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from bench.epoch_data import AVERAGE, DECAY, ENTROPY, MOMENTUM, PRIOR, REDRAW, Peer
from bench.epoch_ours import wait_for
from fastdrpl.machine import cpu_computes_bf16
from fastdrpl.models import build_model
from fastdrpl.models.layout import choose_layout


class Idiomatic:
    """A peer's work in plain torch; `compiled`: a mode of torch.compile, or None."""

    def __init__(self, peer: Peer, *, bf16: bool, compiled: str | None):
        self.peer, self.bf16, device = peer, bf16, peer.device
        network = build_model("preact_resnet18", peer.classes, peer.width, peer.seed)
        self.layout = choose_layout(network, device)  # where channels_last is sound
        self.network = network.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), lr=peer.rate, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )
        self.pixels = torch.from_numpy(peer.pixels).permute(0, 3, 1, 2).contiguous().to(device)
        size = peer.pixels.shape[1]
        random = [v2.RandomCrop(size, padding=peer.pad)] if peer.pad else []
        random += [v2.RandomHorizontalFlip()] if peer.flip else []
        last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(peer.mean, peer.std)]
        self.transform = v2.Compose([*random, *last])
        self.targets = torch.from_numpy(peer.targets()).to(device)
        self.labelled = torch.from_numpy(peer.labelled).to(device)
        self.ring = torch.zeros(AVERAGE, *self.targets.shape, device=device)
        self.seen = torch.zeros_like(self.targets)
        self.number = 0
        self.learn, self.guess = self._learn, self._guess
        if compiled is not None:
            self.learn = torch.compile(self._learn, mode=compiled, dynamic=False)
            self.guess = torch.compile(self._guess, mode=compiled, dynamic=False)

    def epoch(self) -> float:
        """One epoch of training, and the targets of the next; -> its mean loss."""
        self.network.train()
        order = torch.randperm(len(self.pixels), device=self.peer.device)
        total = torch.zeros((), device=self.peer.device)
        step = self._relabel_step if self.peer.task == "relabel" else self._semi_step
        for index in order.split(self.peer.batch_size):
            inputs = self.transform(self.pixels[index]).contiguous(memory_format=self.layout)
            loss = step(inputs, index)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.detach() * len(index)
        self._renew()
        self.number += 1
        wait_for(self.peer.device)
        return float(total) / len(self.pixels)

    def _relabel_step(self, inputs: Tensor, index: Tensor) -> Tensor:
        loss, probability = self.learn(inputs, self.targets[index])
        self.seen[index] = probability
        return loss

    def _semi_step(self, inputs: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen[index] = self.guess(inputs)
        coefficient, partner = self.draw_mixing(index)
        mixed = coefficient * inputs + (1 - coefficient) * inputs[partner]
        target = self.targets[index]
        # Cross entropy is linear in the target: one loss to the mixed target is both.
        return self.learn(mixed, coefficient * target + (1 - coefficient) * target[partner])[0]

    def draw_mixing(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A coefficient () from Beta(1, 1) and a partner for each of a batch: (b,) places in it."""
        device = self.peer.device
        return torch.rand((), device=device), torch.randperm(len(index), device=device)

    def _forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(inputs).float()

    def _guess(self, inputs: Tensor) -> Tensor:
        return self._forward(inputs).softmax(1)

    def _learn(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        log_probability = F.log_softmax(self._forward(inputs), 1)
        probability = log_probability.exp()
        loss = -(target * log_probability).sum(1).mean()
        loss = loss - PRIOR * probability.mean(0).log().mean()
        loss = loss - ENTROPY * (probability * log_probability).sum(1).mean()
        return loss, probability.detach()

    def _renew(self) -> None:
        if self.peer.task == "relabel":
            self.ring[self.number % AVERAGE] = self.seen
            self.targets = self.ring.mean(0)
            return
        self.targets = torch.where(self.labelled[:, None], self.targets, self.seen)
        unlabelled = (~self.labelled).nonzero()[:, 0]
        drawn = torch.randperm(len(unlabelled), device=self.peer.device)
        fresh = unlabelled[drawn[: int(REDRAW * len(unlabelled))]]
        self.targets[fresh] = 1 / self.peer.classes


def has_bf16(device: torch.device) -> bool:
    """Whether the processor computes bf16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(cpu_computes_bf16())
