"""MixMatch's parts, as DivideMix puts them together: sharpened targets, mixing that keeps the order, three loss terms.

MixMatch is Berthelot et al., arXiv 1905.02249; DivideMix is Li, Socher and Hoi, arXiv 2002.07394, whose equations are
cited. Rows of several augmentations of one batch lie one after the other. Everything is float32 and asks the host for
nothing; `Share.count` is that of the rows it is used for (`share_of_copies`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdrpl.kernels.loss_head import Share, cross_entropy, prior
from fastdrpl.kernels.mixup import partners
from fastdrpl.kernels.pseudo_label import sample_keys
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.mixing import draw_mixing
from fastdrpl.store import LabelStore


def sharpen(probability: Tensor, temperature: float) -> Tensor:
    """Sharpen(p, T)_c = p_c^(1/T) / sum_k p_k^(1/T) (equation 4): (b, C) -> (b, C); the largest class stays so.

    As a softmax of log p / T: powers of small numbers would underflow, all of them at a low temperature.
    """
    return torch.softmax(probability.log() / temperature, 1)


def refine_labels(prediction: Tensor, label: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Co-refinement, Sharpen(w y + (1 - w) p, T) (equations 3 and 4): (b, C), (b,) int64, (b,) -> (b, C)."""
    mixed = (1.0 - weight)[:, None] * prediction
    return sharpen(mixed.scatter_add(1, label[:, None], weight[:, None]), temperature)


@dataclass(frozen=True)
class Matching:
    """The random numbers of an epoch's steps, and what else changes from step to step; a step only indexes them."""

    coefficient: Tensor  # (steps,) float32 in [0.5, 1]: lambda' of equation 6
    keys: Tensor  # (copies, N) int64: the order of a step's rows by them gives the partners
    weight: Tensor  # (steps,) float32: that of the unlabelled term

    def coefficient_of(self, number: Tensor) -> Tensor:
        """() of step `number` ()."""
        return self.coefficient.index_select(0, number[None])[0]

    def weight_of(self, number: Tensor) -> Tensor:
        """() of step `number` ()."""
        return self.weight.index_select(0, number[None])[0]

    def partner(self, rows: list[tuple[int, Tensor]]) -> Tensor:
        """A permutation of rows that lie one after the other, given as (number of the copy, (b,) sample index)."""
        return partners(torch.cat([self.keys[copy].index_select(0, index) for copy, index in rows]))


def draw_matching(
    store: LabelStore, epoch_pass: Pass, weight: Tensor, *, alpha: float, copies: int
) -> Matching:
    """Beta(alpha, alpha) for each step, the larger of it and its complement (equations 5 and 6), and the keys.

    `weight` (steps,) is handed on. Each of the `copies` in which a sample appears has keys of its own.
    """
    mixing = draw_mixing(store, epoch_pass, len(weight), alpha)
    mix_pass = dataclasses.replace(epoch_pass, purpose=Purpose.mix)
    # The mixing itself takes views 0 and 1.
    more = [
        sample_keys(dataclasses.replace(mix_pass, view=1 + copy).stream, store.samples, store.device)
        for copy in range(1, copies)
    ]
    coefficient = torch.maximum(mixing.coefficient, 1.0 - mixing.coefficient)
    return Matching(coefficient, torch.stack([mixing.keys, *more]), weight.to(store.device, torch.float32))


def ramp_up(position: Tensor, length: float) -> Tensor:
    """A weight that grows linearly from 0 to 1 over `length` epochs, then stays.

    `position`: (n,) epochs since the start, with fractions -> (n,).
    """
    return (position / length).clamp(0.0, 1.0)


def share_of_copies(share: Share, copies: int) -> Share:
    """The share of `copies` rows for each sample of a batch."""
    return dataclasses.replace(share, count=copies * share.count)


def squared_error(log_probability: Tensor, target: Tensor) -> Tensor:
    """Mean over the classes of (p - q)^2 of each row: (b, C), (b, C) -> (b,).

    Equation 10 sums over the classes; its published code, for which the weights were chosen, takes the mean.
    """
    return (log_probability.exp() - target).square().mean(1)


def imbalance(log_probability: Tensor, share: Share) -> Tensor:
    """Divergence of the uniform distribution from the mean prediction of the global batch (equation 11): (b, C) -> ().

    sum_c (1/C) log((1/C) / mean_c), 0 at its least; this rank's part as `prior` gives it.
    """
    return prior(log_probability, share) - math.log(log_probability.shape[1])


def matching_loss(
    logits: Tensor, target: Tensor, labelled: Share, unlabelled: Share | None, rows: int, weight: Tensor
) -> Tensor:
    """L = L_X + weight L_U + L_reg (equations 9 to 12): (b, C) logits and mixed targets -> (), this rank's part.

    The first `rows` rows are labelled and learn by cross entropy, the others by squared error. Without others
    (`unlabelled` None) L_U is left out.
    """
    log_p = torch.log_softmax(logits.float(), 1)
    loss = labelled.mean(cross_entropy(log_p[:rows], target[:rows]))
    everything = labelled
    if unlabelled is not None:
        loss = loss + weight * unlabelled.mean(squared_error(log_p[rows:], target[rows:]))
        everything = dataclasses.replace(labelled, count=labelled.count + unlabelled.count)
    return loss + imbalance(log_p, everything)
