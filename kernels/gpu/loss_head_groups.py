"""Groups of rows added up: to fewer groups (`fold_kernel`), and to the loss (`value_kernel`)."""

import math

import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels.gpu import loss_head_tiles as tiles
from fastdrpl.kernels.gpu.launch import wrap_triton
from fastdrpl.kernels.gpu.loss_head_tiles import empty_numbers, warps_of

FOLD_BLOCK = 64  # columns of a program that folds
VALUE_TILE = 8192


@triton.jit
def _add_groups(peaks, totals, group, column, classes, valid):
    """Peak and total of a block of columns over a block of groups; 0 and 1 in a column that is no class."""
    in_row = column < classes
    inside = valid[:, None] & in_row[None, :]
    place = group[:, None] * classes + column[None, :]
    peak = tl.load(peaks + place, mask=inside, other=-float("inf"))
    total = tl.load(totals + place, mask=inside, other=0.0)
    largest = tl.where(in_row, tl.max(peak, 0), 0.0)
    return largest, tl.where(in_row, tl.sum(total * tl.exp(peak - largest[None, :]), 0), 1.0)


@triton.jit
def fold_kernel(
    sums,
    peaks,
    totals,
    fewer_sums,
    fewer_peaks,
    fewer_totals,
    groups,
    classes,
    FOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """FOLD groups become one; `sums`, `peaks` and `totals` as `rows_kernel` leaves them."""
    fewer = tl.program_id(0).to(tl.int64)
    group = fewer * FOLD + tl.arange(0, FOLD)
    valid = group < groups
    if peaks is not None:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        peak, total = _add_groups(peaks, totals, group, column, classes, valid)
        in_row = column < classes
        tl.store(fewer_peaks + fewer * classes + column, peak, mask=in_row)
        tl.store(fewer_totals + fewer * classes + column, total, mask=in_row)
    if tl.program_id(1) == 0:
        tl.store(fewer_sums + fewer, tl.sum(tl.load(sums + group, mask=valid, other=0.0), 0))


@triton.jit
def value_kernel(
    sums,
    peaks,
    totals,
    loss,
    log_sums,
    groups,
    classes,
    sample_weight,
    prior_weight,
    log_count,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the loss, and for the prior term the log of each class's sum of predictions (C,)."""
    group = tl.arange(0, GROUPS)
    valid = group < groups
    value = tl.sum(tl.load(sums + group, mask=valid, other=0.0), 0) * sample_weight
    if peaks is not None:
        group = group.to(tl.int64)
        parts = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            peak, total = _add_groups(peaks, totals, group, column, classes, valid)
            in_row = column < classes
            log_sum = peak + tl.log(total)
            tl.store(log_sums + column, log_sum, mask=in_row)
            parts += tl.where(in_row, log_count - log_sum, 0.0)
        value += prior_weight * (tl.sum(parts, 0) / classes)
    tl.store(loss, value)


def launch_fold(sums: Tensor, peaks: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of rows, FOLD of them made one."""
    groups, classes, with_prior = len(sums), peaks.shape[1], len(peaks) > 0
    fewer = -(-groups // tiles.FOLD)
    fewer_sums = empty_numbers(sums, fewer)
    fewer_peaks, fewer_totals = (empty_numbers(sums, fewer if with_prior else 0, classes) for _ in range(2))
    wrap_triton(fold_kernel)[(fewer, -(-classes // FOLD_BLOCK) if with_prior else 1)](
        sums,
        peaks if with_prior else None,
        totals if with_prior else None,
        fewer_sums,
        fewer_peaks if with_prior else None,
        fewer_totals if with_prior else None,
        groups,
        classes,
        FOLD=tiles.FOLD,
        BLOCK=FOLD_BLOCK,
    )
    return fewer_sums, fewer_peaks, fewer_totals


def launch_value(
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
    """The loss () and for the prior term the log of each class's sum of predictions (C,).

    Logits, targets, `rows` and the entropy's weight are for the gradient alone.
    """
    classes = logits.shape[1]
    groups = len(sums)
    loss, log_sums = empty_numbers(logits), empty_numbers(logits, classes if prior_weight else 0)
    of_sums = 1
    while of_sums < groups:
        of_sums *= 2
    block = 1
    while block < classes and 2 * block * of_sums <= VALUE_TILE:
        block *= 2
    wrap_triton(value_kernel)[(1,)](
        sums,
        peaks if prior_weight else None,
        totals if prior_weight else None,
        loss,
        log_sums,
        groups,
        classes,
        world / count,
        prior_weight,
        math.log(count),
        GROUPS=of_sums,
        BLOCK=block,
        num_warps=warps_of(of_sums * block),
    )
    return loss, log_sums
