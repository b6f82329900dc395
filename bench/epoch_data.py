"""What the peers of an epoch train on: the images of a prepared dataset as plain arrays, and the task."""

from dataclasses import dataclass

import numpy as np
import torch

from bench.epoch_ours import Ours, Task
from fastdrpl.eyes import Eyes
from fastdrpl.loaders.order import Order, Pass, Purpose

PRIOR, ENTROPY = 0.8, 0.4  # weights of the two terms beside the cross entropy
AVERAGE, REDRAW = 10, 0.2
MOMENTUM, DECAY = 0.9, 1e-4


@dataclass(frozen=True)
class Peer:
    """One side's work: the same images, labels, network and rate as ours."""

    task: Task
    pixels: np.ndarray  # (N, H, W, 3) uint8
    given: np.ndarray  # (N,) int64
    labelled: np.ndarray  # (N,) bool
    test_pixels: np.ndarray
    test_label: np.ndarray
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int
    flip: bool
    width: int
    batch_size: int
    rate: float
    device: torch.device
    seed: int = 1  # of the weights

    def targets(self) -> np.ndarray:
        """(N, C) float32: the given labels; in the semi-supervised stage a random class where there is none."""
        start = np.eye(self.classes, dtype=np.float32)[self.given]
        if self.task == "semi":
            drawn = np.random.default_rng(1).integers(0, self.classes, len(self.given))
            start[~self.labelled] = np.eye(self.classes, dtype=np.float32)[drawn[~self.labelled]]
        return start


def peer_of(ours: Ours) -> Peer:
    """The peers' work for a run of ours."""
    transform, state = ours.eyes.transform, ours.state
    if ours.test_eyes is None or ours.test_label is None:
        raise ValueError("the data have no test images; want some")
    return Peer(
        task=ours.task,
        pixels=_pixels(ours.eyes),
        given=state.given.cpu().numpy(),
        labelled=state.store["labelled"].cpu().numpy(),
        test_pixels=_pixels(ours.test_eyes),
        test_label=ours.test_label.cpu().numpy(),
        classes=state.classes,
        mean=transform.mean,
        std=transform.std,
        pad=transform.pad,
        flip=transform.flip,
        width=state.config.model.width,
        batch_size=state.config.batch_size,
        rate=ours.rate,
        device=ours.machine.device,
        seed=state.config.seed,
    )


def _pixels(eyes: Eyes) -> np.ndarray:
    """(N, H, W, 3) uint8 of all samples, in their order."""
    order = Order(np.arange(eyes.samples), 1000, Pass(0, 0, 0, Purpose.test), shuffle=False)
    return np.concatenate([batch.pixels[batch.rows].cpu().numpy() for batch in eyes.loader.epoch(order)])
