"""A set of images as the loops see it, and the passes over it that only look."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastdrpl.kernels.loss_head import label_loss
from fastdrpl.learners import Learners
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.order import Order, Pass
from fastdrpl.machine import Machine
from fastdrpl.pixels import Transform
from fastdrpl.stages import Look
from fastdrpl.store import SYNC_BYTES, pieces


class OrderFactory(Protocol):
    """Makes the order of a pass; `Order` itself is one."""

    def __call__(
        self,
        index: np.ndarray,
        batch_size: int,
        pass_: Pass,
        shuffle: bool,
        rank: int,
        world: int,
        smallest_tail: int = ...,
    ) -> Order: ...


@dataclass(frozen=True)
class Eyes:
    """Where the pixels come from and how they become input."""

    loader: Loader
    transform: Transform
    samples: int
    order: OrderFactory = Order  # in which order an epoch walks
    batch_size: int = 100  # of passes that only look, over all ranks


# Bytes of a network's largest map that a CPU's cache keeps while the next layer reads them; and the batch beyond which
# more images bring nothing.
CACHED_MAPS, ENOUGH = 8 << 20, 512
GPU_PIXELS = 2048 * 32 * 32  # what fills a GPU
BEFORE_IT_WAS_CHOSEN = 500  # in runs of version 0.1


def choose_look_batch(asked: int, machine: Machine, size: int, width: int, before: int | None = None) -> int:
    """The global batch size of passes that only look: what was asked for, what the run began with, or the best here.

    On a CPU the maps of a batch should stay in its cache: images of `size` pixels a side make maps of `width` channels.
    """
    if asked or before:
        return asked or int(before or 0)
    if machine.device.type == "cuda":
        return max(64, GPU_PIXELS // size**2) * machine.world
    number = 4 if machine.precision == "fp32" else 2  # bytes
    return min(ENOUGH, max(16, CACHED_MAPS // (number * width * size**2))) * machine.world


@torch.no_grad()
def look_at_all(
    learners: Learners, eyes: Eyes, pass_: Pass, *, augmented: bool
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Walk over all samples in evaluation mode: sample index (b,) and each network's log probability (b, C)."""
    machine = learners.machine
    for trainee in learners.trainees:
        trainee.share_statistics()
    order = eyes.order(np.arange(eyes.samples), eyes.batch_size, pass_, False, machine.rank, machine.world)
    for trainee in learners.trainees:
        trainee.network.eval()
    for batch in eyes.loader.epoch(order):
        inputs = eyes.transform.train(batch, pass_.stream) if augmented else eyes.transform.plain(batch)
        logits = [trainee.network(trainee.lay(inputs)) for trainee in learners.trainees]
        yield batch.index, [torch.log_softmax(values.float(), 1) for values in logits]


def mean_prediction(log_p: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the networks' predictions: (b, C) of each -> (b, C)."""
    if len(log_p) == 1:
        return log_p[0]
    return torch.logsumexp(torch.stack(list(log_p)), 0) - float(np.log(len(log_p)))


def gather(machine: Machine, parts: Iterable[tuple[Tensor, Tensor]], samples: int) -> Tensor:
    """Rows (b, ...) by sample index, from all ranks, as one tensor (samples, ...)."""
    whole: Tensor | None = None
    for index, values in parts:
        if whole is None:
            whole = torch.zeros((samples, *values.shape[1:]), dtype=values.dtype, device=machine.device)
        whole.index_copy_(0, index, values)
    if whole is None:
        raise ValueError("no samples to look at")
    if machine.world > 1:
        for rows in pieces(whole, SYNC_BYTES):
            whole[rows] = machine.total(whole[rows])
    return whole


def take(learners: Learners, eyes: Eyes, look: Look, given: Tensor, pass_: Pass) -> Tensor:
    """What a look finds: the column (N,) or (N, C), with a last dimension of networks where it is of each."""

    def read(index: Tensor, log_p: Tensor) -> Tensor:
        if look.read == "probability":
            return log_p.exp()
        losses = label_loss(log_p, given[index])
        return losses if look.read == "loss" else (-losses).exp()

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for index, log_p in look_at_all(learners, eyes, pass_, augmented=look.augmented):
            if look.of == "mean":
                yield index, read(index, mean_prediction(log_p))
            else:
                yield index, torch.stack([read(index, each) for each in log_p], -1)

    return gather(learners.machine, parts(), eyes.samples)


def probabilities(learners: Learners, eyes: Eyes, pass_: Pass, *, augmented: bool) -> Tensor:
    """Prediction for every sample: (N, C) float32, on the device."""
    return log_probabilities(learners, eyes, pass_, augmented=augmented).exp_()


def log_probabilities(learners: Learners, eyes: Eyes, pass_: Pass, *, augmented: bool) -> Tensor:
    """The logarithms of `probabilities`."""
    walk = look_at_all(learners, eyes, pass_, augmented=augmented)
    return gather(learners.machine, ((index, mean_prediction(log_p)) for index, log_p in walk), eyes.samples)


def accuracy(learners: Learners, eyes: Eyes, label: Tensor, pass_: Pass) -> float:
    """Fraction of samples whose largest prediction is their label."""
    walk = look_at_all(learners, eyes, pass_, augmented=False)
    parts = ((i, (mean_prediction(log_p).argmax(1) == label[i]).int()) for i, log_p in walk)
    return int(gather(learners.machine, parts, eyes.samples).sum()) / eyes.samples
