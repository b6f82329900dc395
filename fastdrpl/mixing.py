"""The random numbers of mixup and of random labels, keyed by the pass, and hard labels as targets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdrpl.kernels import philox
from fastdrpl.kernels.cpu.philox import words as compiled_words
from fastdrpl.kernels.mixup import partners
from fastdrpl.kernels.pseudo_label import sample_keys
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.store import LabelStore


@dataclass(frozen=True)
class Mixing:
    """Mixup's random numbers of an epoch, on the device: a step only indexes them."""

    coefficient: Tensor  # (steps,) float32: one mixing coefficient a step
    keys: Tensor  # (N,) int64: their order within a batch gives the partners

    def of(self, number: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficient () of step `number` () and partner (b,), a permutation of the batch `index` (b,)."""
        coefficient = self.coefficient.index_select(0, number[None])[0]
        return coefficient, partners(self.keys.index_select(0, index))


def draw_mixing(store: LabelStore, epoch_pass: Pass, steps: int, alpha: float) -> Mixing:
    """A mixing coefficient from Beta(alpha, alpha) for each step and a key for each sample."""
    mix_pass = dataclasses.replace(epoch_pass, purpose=Purpose.mix)
    step_word = compiled_words(mix_pass.stream, np.arange(steps))[0]
    coefficient = philox.beta_symmetric(alpha, step_word)
    keys = sample_keys(dataclasses.replace(mix_pass, view=1).stream, store.samples, store.device)
    return Mixing(torch.as_tensor(coefficient, dtype=torch.float32, device=store.device), keys)


def draw_labels(pass_: Pass, samples: int, classes: int, device: torch.device) -> Tensor:
    """A uniformly drawn class for each sample: (N,) int64."""
    word = compiled_words(pass_.stream, np.arange(samples))[0]
    return torch.from_numpy(philox.integers(word, classes)).to(device)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """(N,) -> (N, C) float32."""
    # Not torch's own, which makes numbers of eight bytes first: targets are the largest columns there are.
    return torch.zeros(len(label), classes, device=label.device).scatter_(1, label[:, None], 1.0)
