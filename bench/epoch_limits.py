"""What an epoch cannot be faster than: the bare loop, and the arithmetic at the measured rate of this device."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.epoch_data import DECAY, MOMENTUM, Peer
from bench.epoch_ours import Ours, wait_for
from bench.kernel_timing import measure_copy
from bench.rows import measure
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.models import build_model
from fastdrpl.models.layout import choose_layout

SGD_BYTES = 20  # of a parameter: weight, momentum and gradient read, weight and momentum written, float32


def bare_loop(ours: Ours, peer: Peer) -> Callable[[], None]:
    """As many steps as an epoch of ours on one batch: forward, backward, fused SGD; no data and nothing else.

    In the semi-supervised stage a forward pass without a graph more. Precision, memory layout and, where ours
    compiles, torch.compile as in ours.
    """
    network = build_model("preact_resnet18", peer.classes, peer.width, peer.seed).to(peer.device)
    for own, other in zip(network.parameters(), ours.network.parameters(), strict=True):
        own.data = torch.empty_strided(other.shape, other.stride(), device=peer.device).copy_(own.data)
    optimiser = torch.optim.SGD(
        network.parameters(), lr=peer.rate, momentum=MOMENTUM, weight_decay=DECAY, fused=True
    )
    pass_ = Pass(1, 1, 1, Purpose.train)
    order = Order(np.arange(ours.images), peer.batch_size, pass_, shuffle=True)
    sizes = [len(order.batch(step)) for step in range(len(order))]
    largest = int(np.argmax(sizes))  # a short tail joins the batch before it
    batch = next(iter(ours.eyes.loader.epoch(order, start_step=largest)))
    inputs = ours.eyes.transform.train(batch, pass_.stream)
    inputs = inputs.contiguous(memory_format=choose_layout(network, peer.device))
    label = torch.from_numpy(peer.given).to(peer.device)[batch.index]
    kind = torch.bfloat16 if ours.machine.precision == "bf16" else torch.float16
    network.train()

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(peer.device.type, kind, enabled=ours.machine.precision != "fp32"):
            return network(images)

    if ours.machine.describe()["mode"] != "eager":
        mode = "reduce-overhead" if peer.device.type == "cuda" else None
        forward = torch.compile(forward, mode=mode, dynamic=False)

    def epoch() -> None:
        for size in sizes:
            if peer.task == "semi":
                with torch.no_grad():
                    forward(inputs[:size])
            F.cross_entropy(forward(inputs[:size]).float(), label[:size]).backward()
            optimiser.step()
            optimiser.zero_grad()
        wait_for(peer.device)

    return epoch


def flops_of(peer: Peer) -> float:
    """Floating point operations of training on one image, as torch counts them (a multiply-add is two)."""
    network = build_model("preact_resnet18", peer.classes, peer.width, peer.seed)
    size = peer.pixels.shape[1]
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, size, size))
        forward = counter.get_total_flops()
        network(torch.zeros(2, 3, size, size)).sum().backward()
    both = counter.get_total_flops() - forward
    return (both + (forward if peer.task == "semi" else 0)) / 2


def measure_product(device: torch.device, precision: str) -> float:
    """Floating point operations a second of a large matrix product of random numbers on this device."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
    calls = 10 if device.type == "cuda" else 1

    def several() -> None:
        for _ in range(calls):
            left @ right
        wait_for(device)

    return 2 * n**3 * calls / float(np.median(measure(several, warmup=2, repeats=7)))


def limit_seconds(peer: Peer, images: int, rate: float) -> float:
    """Of an epoch: its arithmetic at the rate of a matrix product, on a GPU also the bytes that SGD moves."""
    seconds = flops_of(peer) * images / rate
    if peer.device.type != "cuda":
        return seconds
    parameters = sum(
        weight.numel() for weight in build_model("preact_resnet18", peer.classes, peer.width, 1).parameters()
    )
    steps = -(-images // peer.batch_size)
    return seconds + steps * parameters * SGD_BYTES / measure_copy(peer.device, 1 << 30, 5)
