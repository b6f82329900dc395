"""The backward launch of the loss head: the gradient with respect to the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels.gpu.launch import wrap_triton
from fastdrpl.kernels.gpu.loss_head_tiles import load_logits, load_target, mix_target, tile_of, warps_of


@triton.jit
def _share_of_class(log_p, log_sums, column, classes, inside):
    """A row's part of each class's sum of predictions, 0 outside."""
    log_sum = tl.load(log_sums + column, mask=column < classes, other=0.0)
    return tl.where(inside, tl.exp(log_p - log_sum[None, :]), 0.0)


@triton.jit
def gradient_kernel(
    grad_loss,
    logits,
    target,
    index,
    partner,
    coefficient,
    rows,
    log_sums,
    gradient,
    batch,
    classes,
    stride_row,
    stride_column,
    sample_weight,
    entropy_weight,
    prior_weight,
    LABELS: tl.constexpr,
    ENTROPY: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The formula of `gradient_reference`, a group of ROWS rows in a program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < batch
    block = tl.arange(0, BLOCK)
    sample = tl.load(index + row, mask=valid, other=0)
    if partner is not None:
        other = tl.load(index + tl.load(partner + row, mask=valid, other=0))
    peak = tl.load(rows + row, mask=valid, other=0.0)[:, None]
    log_total = tl.load(rows + batch + row, mask=valid, other=0.0)[:, None]
    entropy = tl.load(rows + 2 * batch + row, mask=valid, other=0.0)[:, None]
    mass = tl.load(rows + 3 * batch + row, mask=valid, other=0.0)[:, None]
    scale = tl.load(grad_loss)

    if ONE_BLOCK:
        inside = valid[:, None] & (block < classes)[None, :]
        only = load_logits(logits, row, block, stride_row, stride_column, inside)
    if log_sums is not None:
        held = tl.zeros((ROWS,), tl.float32)  # sum over classes of the row's parts of their sums
        for start in range(0, classes, BLOCK):
            column = start + block
            inside = valid[:, None] & (column < classes)[None, :]
            logit = only if ONE_BLOCK else load_logits(logits, row, column, stride_row, stride_column, inside)
            log_p = tl.where(inside, logit - peak - log_total, 0.0)
            held += tl.sum(_share_of_class(log_p, log_sums, column, classes, inside), 1)

    for start in range(0, classes, BLOCK):
        column = start + block
        inside = valid[:, None] & (column < classes)[None, :]
        logit = only if ONE_BLOCK else load_logits(logits, row, column, stride_row, stride_column, inside)
        log_p = tl.where(inside, logit - peak - log_total, 0.0)
        p = tl.exp(log_p)
        mixed = load_target(target, sample, column, classes, inside, LABELS)
        if partner is not None:
            mixed = mix_target(mixed, target, other, coefficient, column, classes, inside, LABELS)
        each = mass * p - mixed
        if ENTROPY:
            each -= entropy_weight * p * (log_p + entropy)
        each *= sample_weight
        if log_sums is not None:
            part = _share_of_class(log_p, log_sums, column, classes, inside)
            each -= prior_weight * (part - p * held[:, None])
        place = row[:, None] * classes + column[None, :]
        tl.store(gradient + place, (scale * each).to(gradient.dtype.element_ty), mask=inside)


def launch_gradient(
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
    """Gradient of `grad_loss` () times the loss with respect to the logits: (b, C), in their type."""
    batch, classes = logits.shape
    tile = tile_of(batch, classes)
    gradient = torch.empty((batch, classes), dtype=logits.dtype, device=logits.device)
    wrap_triton(gradient_kernel)[(-(-batch // tile.rows),)](
        grad_loss,
        logits,
        target,
        index,
        partner,
        coefficient,
        rows,
        log_sums if prior_weight else None,
        gradient,
        batch,
        classes,
        logits.stride(0),
        logits.stride(1),
        world / count,
        entropy_weight,
        prior_weight * world / classes,
        LABELS=target.ndim == 1,
        ENTROPY=entropy_weight != 0,
        ONE_BLOCK=classes <= tile.block,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=warps_of(tile.rows * tile.block),
    )
    return gradient
