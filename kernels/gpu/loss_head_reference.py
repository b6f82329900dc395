"""The loss head's three operations in torch: what they do with CPU tensors, and what tests compare kernels with."""

import math

import torch
from torch import Tensor

from fastdrpl.kernels.gpu.loss_head_tiles import groups_left
from fastdrpl.kernels.loss_head import Regulariser, Share, entropy, loss_head_reference, predict_reference
from fastdrpl.kernels.mixup import mix


def rows_reference(
    logits: Tensor,
    target: Tensor | None,
    index: Tensor | None,
    partner: Tensor | None,
    coefficient: Tensor | None,
    given: Tensor | None,
    store: Tensor | None,
    entropy_weight: float,
    with_prior: bool,
    keep_prediction: bool,
    most_groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `launch_rows`; the first group holds all rows, and the others none."""
    batch, classes = logits.shape
    nothing = logits.new_empty(0, dtype=torch.float32)
    none = nothing.new_empty(0, classes)
    if target is None or index is None:
        prediction, predicted = predict_reference(logits, index, store)
        kept = prediction if keep_prediction and prediction is not None else none
        wanted, rows = predicted.new_empty(0), nothing.new_empty(4, 0)
        return kept, nothing, predicted, wanted, rows, nothing.clone(), none.clone(), none.clone()
    head = loss_head_reference(
        logits,
        target,
        index,
        Share(batch),
        partner=partner,
        coefficient=coefficient,
        given=given,
        regulariser=Regulariser(0.0, entropy_weight),
        store=store,
        keep_prediction=keep_prediction,
    )
    peak = logits.float().amax(1)
    log_probability = torch.log_softmax(logits.float(), 1)
    log_total = torch.logsumexp(logits.float() - peak[:, None], 1)
    each_entropy = entropy(log_probability) if entropy_weight else torch.zeros_like(peak)
    mass = _mixed_target(target, index, partner, coefficient, classes).sum(1)
    groups = groups_left(batch, classes, most_groups)
    sums = nothing.new_zeros(groups)
    sums[0] = head.loss * batch
    peaks = nothing.new_full((groups if with_prior else 0, classes), -torch.inf)
    totals = torch.zeros_like(peaks)
    if with_prior:
        peaks[0] = log_probability.amax(0)
        totals[0] = (log_probability - peaks[0]).exp().sum(0)
    return (
        none if head.prediction is None else head.prediction,
        nothing if head.label_loss is None else head.label_loss,
        head.predicted,
        head.wanted.clone(),
        torch.stack([peak, log_total, each_entropy, mass]),
        sums,
        peaks,
        totals,
    )


def value_reference(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    partner: Tensor | None,
    coefficient: Tensor | None,
    rows: Tensor,
    sums: Tensor,
    peaks: Tensor,
    totals: Tensor,
    entropy_weight: float,
    prior_weight: float,
    count: int,
    world: int,
) -> tuple[Tensor, Tensor]:
    """As `launch_value`."""
    loss = sums.sum() * (world / count)
    if not prior_weight:
        return loss, sums.new_empty(0)
    log_sums = torch.logsumexp(peaks + totals.log(), 0)
    return loss + prior_weight * (math.log(count) - log_sums).mean(), log_sums


def gradient_reference(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    partner: Tensor | None,
    coefficient: Tensor | None,
    rows: Tensor,
    log_sums: Tensor,
    entropy_weight: float,
    prior_weight: float,
    count: int,
    world: int,
) -> Tensor:
    """As `launch_gradient`: of each term of equations 1 and 2 through the softmax.

    With p the prediction, s the target, H the entropy and P_c the sum of p_c over the global batch:
    cross entropy (sum_c s_c) p - s, entropy -p (log p + H), prior -(1/C) (p / P - p sum_c p_c / P_c).
    """
    peak, log_total, each_entropy, mass = rows[..., None]
    log_p = logits.float() - peak - log_total
    p = log_p.exp()
    each = mass * p - _mixed_target(target, index, partner, coefficient, logits.shape[1])
    if entropy_weight:
        each = each - entropy_weight * p * (log_p + each_entropy)
    each = each * (world / count)
    if prior_weight:
        part = (log_p - log_sums).exp()
        each = each - prior_weight * world / logits.shape[1] * (part - p * part.sum(1, keepdim=True))
    return (grad_loss * each).to(logits.dtype)


def _mixed_target(
    target: Tensor, index: Tensor, partner: Tensor | None, coefficient: Tensor | None, classes: int
) -> Tensor:
    own = target.index_select(0, index)
    if target.ndim == 1:
        own = torch.nn.functional.one_hot(own, classes).float()
    return own if partner is None or coefficient is None else mix(own, partner, coefficient)
