"""The Triton twin of `fastdrpl.kernels.loss_head`: two launches forward, one backward.

`rows_kernel` walks over the rows of the logits: normaliser, loss, entropy, prediction, and for the prior term each
column's sum over a group of rows, in log space. `value_kernel` adds the groups up to the loss; where there are many,
`fold_kernel` has added 64 of them to one before, as often as it takes; and with several ranks their reductions come
in between. `gradient_kernel` reads logits and targets once more. Sums have a fixed order: no result depends on which
program ran first.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels.gpu.launch import register, wrap_triton
from fastdrpl.kernels.loss_head import (
    LossHead,
    Prediction,
    Regulariser,
    Share,
    entropy,
    loss_head_reference,
    predict_reference,
)
from fastdrpl.kernels.mixup import mix

LARGEST_BLOCK = 2048  # columns a program holds at once; rows of more classes are walked over in blocks
TILE = 2048  # rows times columns a program holds at once: with 8 elements in a thread nothing is spilled
MOST_GROUPS = 32  # groups of rows that are left to the last launch, which is a single program
MANY_GROUPS = 256  # enough of them to occupy a GPU: from there on longer groups cost less than more of them
FOLD = 64  # groups that one launch of `fold_kernel` makes one
FOLD_BLOCK = 64
VALUE_TILE = 8192
NO_CLASS = tl.constexpr(2**30)


# --- kernels ---


@triton.jit
def _load_logits(logits, row, column, stride_row, stride_column, inside):
    """A tile of logits in float32, -infinity outside."""
    place = row[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
    return tl.load(logits + place, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def _load_target(target, sample, column, classes, inside, LABELS: tl.constexpr):
    """A tile of the samples' targets, 0 outside; of integer labels their one-hot rows."""
    if LABELS:
        label = tl.load(target + sample)
        return ((label[:, None] == column[None, :]) & inside).to(tl.float32)
    else:
        return tl.load(target + sample[:, None] * classes + column[None, :], mask=inside, other=0.0)


@triton.jit
def _mix_target(own, target, other, coefficient, column, classes, inside, LABELS: tl.constexpr):
    """The samples' targets mixed with those of their partners: equation 1 is linear in them."""
    weight = tl.load(coefficient)
    return weight * own + (1.0 - weight) * _load_target(target, other, column, classes, inside, LABELS)


@triton.jit
def _first_largest(values, column, inside, best, best_class):
    """Largest value so far in each row and its class; of equals the first. What is no number never wins."""
    values = tl.where(inside, values, -float("inf"))
    here = tl.max(values, 1)
    first = tl.min(tl.where(values == here[:, None], column[None, :], NO_CLASS), 1)
    better = (here > best) & (first < NO_CLASS)
    return tl.where(better, here, best), tl.where(better, first, best_class)


@triton.jit
def rows_kernel(
    logits,
    target,
    index,
    partner,
    coefficient,
    given,
    store,
    prediction,
    label_loss,
    predicted,
    wanted,
    rows,
    sums,
    peaks,
    totals,
    batch,
    classes,
    stride_row,
    stride_column,
    entropy_weight,
    LABELS: tl.constexpr,
    ENTROPY: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A group of STEPS times ROWS rows: everything of a single row, and the group's part of the sums over rows.

    `rows` (4, b): each row's largest logit, log of the normaliser after it, entropy, sum of the target.
    `sums` (groups,): loss without the prior term. `peaks` and `totals` (groups, C): the group's
    sum of predictions of a class is exp(peak) total. STEPS is 1 unless one block holds all classes.
    """
    group = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    group_loss = tl.zeros((ROWS,), tl.float32)
    group_peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    group_total = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        row = (group * STEPS + step) * ROWS + tl.arange(0, ROWS)
        valid = row < batch
        if index is not None:
            sample = tl.load(index + row, mask=valid, other=0)
            if partner is not None:
                other = tl.load(index + tl.load(partner + row, mask=valid, other=0))

        if ONE_BLOCK:
            inside = valid[:, None] & (block < classes)[None, :]
            only = _load_logits(logits, row, block, stride_row, stride_column, inside)
            peak = tl.where(valid, tl.max(only, 1), 0.0)
            total = tl.sum(tl.exp(only - peak[:, None]), 1)
        else:
            peak = tl.full((ROWS,), -float("inf"), tl.float32)
            for start in range(0, classes, BLOCK):
                column = start + block
                inside = valid[:, None] & (column < classes)[None, :]
                x = _load_logits(logits, row, column, stride_row, stride_column, inside)
                peak = tl.maximum(peak, tl.max(x, 1))
            peak = tl.where(valid, peak, 0.0)
            total = tl.zeros((ROWS,), tl.float32)
            for start in range(0, classes, BLOCK):
                column = start + block
                inside = valid[:, None] & (column < classes)[None, :]
                x = _load_logits(logits, row, column, stride_row, stride_column, inside)
                total += tl.sum(tl.exp(x - peak[:, None]), 1)
        log_total = tl.log(tl.where(valid, total, 1.0))

        loss = tl.zeros((ROWS,), tl.float32)
        entropy = tl.zeros((ROWS,), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        best = tl.full((ROWS,), -1.0, tl.float32)
        best_class = tl.zeros((ROWS,), tl.int32)
        most = tl.full((ROWS,), -float("inf"), tl.float32)
        most_class = tl.zeros((ROWS,), tl.int32)
        for start in range(0, classes, BLOCK):
            column = start + block
            in_row = column < classes
            inside = valid[:, None] & in_row[None, :]
            logit = (
                only if ONE_BLOCK else _load_logits(logits, row, column, stride_row, stride_column, inside)
            )
            log_p = tl.where(inside, logit - peak[:, None] - log_total[:, None], 0.0)
            p = tl.where(inside, tl.exp(log_p), 0.0)
            best, best_class = _first_largest(p, column, inside, best, best_class)
            if prediction is not None:
                tl.store(prediction + row[:, None] * classes + column[None, :], p, mask=inside)
            if store is not None:
                tl.store(store + sample[:, None] * classes + column[None, :], p, mask=inside)
            if target is not None:
                own = _load_target(target, sample, column, classes, inside, LABELS)
                most, most_class = _first_largest(own, column, inside, most, most_class)
                mixed = own
                if partner is not None:
                    mixed = _mix_target(own, target, other, coefficient, column, classes, inside, LABELS)
                mass += tl.sum(mixed, 1)
                if LABELS:  # the other classes play no part, also where their probability is 0
                    loss -= tl.sum(tl.where(mixed > 0, log_p, 0.0), 1)
                else:
                    loss -= tl.sum(mixed * log_p, 1)
            if ENTROPY:
                entropy -= tl.sum(p * log_p, 1)
            if peaks is not None:
                log_p = tl.where(valid[:, None], log_p, -float("inf"))
                here = tl.max(log_p, 0)
                if ONE_BLOCK:
                    here = tl.maximum(here, group_peak)
                of_rows = tl.where(valid[:, None], tl.exp(log_p - here[None, :]), 0.0)
                if ONE_BLOCK:
                    group_total = group_total * tl.exp(group_peak - here) + tl.sum(of_rows, 0)
                    group_peak = here
                else:
                    tl.store(peaks + group * classes + column, here, mask=in_row)
                    tl.store(totals + group * classes + column, tl.sum(of_rows, 0), mask=in_row)

        tl.store(predicted + row, best_class.to(tl.int64), mask=valid)
        if label_loss is not None:
            label = tl.load(given + sample)
            place = row * stride_row + label * stride_column
            known = valid & (label >= 0) & (label < classes)
            at_label = tl.load(logits + place, mask=known, other=float("nan")).to(tl.float32)
            tl.store(label_loss + row, log_total - (at_label - peak), mask=valid)
        if target is not None:
            tl.store(wanted + row, most_class.to(tl.int64), mask=valid)
            if LABELS:
                loss = tl.where(mass > 0, loss, float("nan"))  # a label that is no class
            tl.store(rows + row, peak, mask=valid)
            tl.store(rows + batch + row, log_total, mask=valid)
            tl.store(rows + 2 * batch + row, entropy, mask=valid)
            tl.store(rows + 3 * batch + row, mass, mask=valid)
            if ENTROPY:
                loss += entropy_weight * entropy
            group_loss += tl.where(valid, loss, 0.0)

    if target is not None:
        tl.store(sums + group, tl.sum(group_loss, 0))
    if peaks is not None and ONE_BLOCK:
        tl.store(peaks + group * classes + block, group_peak, mask=block < classes)
        tl.store(totals + group * classes + block, group_total, mask=block < classes)


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
        only = _load_logits(logits, row, block, stride_row, stride_column, inside)
    if log_sums is not None:
        held = tl.zeros((ROWS,), tl.float32)  # sum over classes of the row's parts of their sums
        for start in range(0, classes, BLOCK):
            column = start + block
            inside = valid[:, None] & (column < classes)[None, :]
            logit = (
                only if ONE_BLOCK else _load_logits(logits, row, column, stride_row, stride_column, inside)
            )
            log_p = tl.where(inside, logit - peak - log_total, 0.0)
            held += tl.sum(_share_of_class(log_p, log_sums, column, classes, inside), 1)

    for start in range(0, classes, BLOCK):
        column = start + block
        inside = valid[:, None] & (column < classes)[None, :]
        logit = only if ONE_BLOCK else _load_logits(logits, row, column, stride_row, stride_column, inside)
        log_p = tl.where(inside, logit - peak - log_total, 0.0)
        p = tl.exp(log_p)
        mixed = _load_target(target, sample, column, classes, inside, LABELS)
        if partner is not None:
            mixed = _mix_target(mixed, target, other, coefficient, column, classes, inside, LABELS)
        each = mass * p - mixed
        if ENTROPY:
            each -= entropy_weight * p * (log_p + entropy)
        each *= sample_weight
        if log_sums is not None:
            part = _share_of_class(log_p, log_sums, column, classes, inside)
            each -= prior_weight * (part - p * held[:, None])
        place = row[:, None] * classes + column[None, :]
        tl.store(gradient + place, (scale * each).to(gradient.dtype.element_ty), mask=inside)


# --- launchers ---


class Tile(NamedTuple):
    """A group of rows: `steps` times `rows` of them; and how many columns a program holds at once."""

    rows: int
    steps: int
    block: int

    def groups(self, batch: int) -> int:
        """Into how many groups a batch is cut."""
        return -(-batch // (self.rows * self.steps))


def tile_of(batch: int, classes: int) -> Tile:
    """How a batch is cut up; rows and block are powers of two."""
    tile = Tile(1, 1, LARGEST_BLOCK)
    if classes > LARGEST_BLOCK:
        # Each group writes two numbers a class: where there are many rows, groups are longer and blocks narrower.
        while tile.groups(batch) > MANY_GROUPS and tile.block > LARGEST_BLOCK // 16:
            tile = Tile(2 * tile.rows, 1, tile.block // 2)
        return tile
    while tile.block >= 2 * classes:
        tile = tile._replace(block=tile.block // 2)
    while tile.groups(batch) > MOST_GROUPS and 2 * tile.rows * tile.block <= TILE:
        tile = tile._replace(rows=2 * tile.rows)
    while tile.groups(batch) > (MOST_GROUPS if tile.steps < 2 else MANY_GROUPS) and tile.steps < 16:
        tile = tile._replace(steps=2 * tile.steps)
    return tile


def groups_left(batch: int, classes: int, most: int) -> int:
    """How many groups of rows `launch_rows` leaves."""
    groups = tile_of(batch, classes).groups(batch)
    while groups > most:
        groups = -(-groups // FOLD)
    return groups


def warps_of(tile: int) -> int:
    """Groups of 32 threads for a tile: 8 elements a thread in most."""
    return max(1, min(8, tile // 256))


def launch_rows(
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
    """Everything that belongs to a row, and the sums over at most `most_groups` groups of rows.

    -> prediction (b, C), label loss (b,), predicted (b,), wanted (b,), and for `launch_value` rows (4, b), sums (G,),
    peaks (G, C) and totals (G, C); empty are those that nothing asks for. b >= 1.
    """
    batch, classes = logits.shape
    tile = tile_of(batch, classes)
    groups = tile.groups(batch)
    with_target = target is not None
    prediction = _numbers(logits, batch if keep_prediction else 0, classes)
    label_loss = _numbers(logits, 0 if given is None else batch)
    predicted = torch.empty(batch, dtype=torch.int64, device=logits.device)
    wanted = torch.empty(batch if with_target else 0, dtype=torch.int64, device=logits.device)
    rows = _numbers(logits, 4, batch if with_target else 0)
    sums = _numbers(logits, groups if with_target else 0)
    peaks, totals = (_numbers(logits, groups if with_prior else 0, classes) for _ in range(2))
    wrap_triton(rows_kernel)[(groups,)](
        logits,
        target,
        index,
        partner,
        coefficient,
        given,
        store,
        prediction if keep_prediction else None,
        None if given is None else label_loss,
        predicted,
        wanted,
        rows,
        sums,
        peaks if with_prior else None,
        totals if with_prior else None,
        batch,
        classes,
        logits.stride(0),
        logits.stride(1),
        entropy_weight,
        LABELS=target is not None and target.ndim == 1,
        ENTROPY=entropy_weight != 0,
        ONE_BLOCK=classes <= tile.block,
        STEPS=tile.steps,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=warps_of(tile.rows * tile.block),
    )
    while len(sums) > most_groups:
        sums, peaks, totals = _launch_fold(sums, peaks, totals)
    return prediction, label_loss, predicted, wanted, rows, sums, peaks, totals


def _launch_fold(sums: Tensor, peaks: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of rows, FOLD of them made one."""
    groups, classes, with_prior = len(sums), peaks.shape[1], len(peaks) > 0
    fewer = -(-groups // FOLD)
    fewer_sums = _numbers(sums, fewer)
    fewer_peaks, fewer_totals = (_numbers(sums, fewer if with_prior else 0, classes) for _ in range(2))
    wrap_triton(fold_kernel)[(fewer, -(-classes // FOLD_BLOCK) if with_prior else 1)](
        sums,
        peaks if with_prior else None,
        totals if with_prior else None,
        fewer_sums,
        fewer_peaks if with_prior else None,
        fewer_totals if with_prior else None,
        groups,
        classes,
        FOLD=FOLD,
        BLOCK=FOLD_BLOCK,
    )
    return fewer_sums, fewer_peaks, fewer_totals


def _numbers(like: Tensor, *shape: int) -> Tensor:
    """Memory for float32 numbers on the device of another tensor."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)


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
    loss, log_sums = _numbers(logits), _numbers(logits, classes if prior_weight else 0)
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


# --- the same in torch: what the operations do with CPU tensors ---


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


# --- operations ---

# What may change memory has no gradient, and what has one changes none: torch allows either in one operation.
loss_rows = register("loss_rows", rows_reference, mutates=("store",))(launch_rows)
loss_value = register("loss_value", value_reference)(launch_value)
loss_gradient = register("loss_gradient", gradient_reference)(launch_gradient)


def save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what `loss_gradient` takes."""
    logits, target, index, partner, coefficient, rows, _, _, _, *ctx.weights = inputs
    ctx.save_for_backward(logits, target, index, partner, coefficient, rows, output[1])
    ctx.set_materialize_grads(False)  # else the unused gradient of the second output is filled with zeros


def pass_gradient(ctx: Any, grad_loss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient with respect to the logits, and to nothing else."""
    gradient = None if grad_loss is None else loss_gradient(grad_loss, *ctx.saved_tensors, *ctx.weights)
    return gradient, *[None] * 12


loss_value.register_autograd(pass_gradient, setup_context=save_for_gradient)


# --- what `fastdrpl.kernels.loss_head` calls ---


def loss_head(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    share: Share,
    *,
    partner: Tensor | None,
    coefficient: Tensor | None,
    given: Tensor | None,
    regulariser: Regulariser,
    store: Tensor | None,
    keep_prediction: bool,
) -> LossHead:
    """Twin of `loss_head_reference`, for b >= 1."""
    entropy_weight, prior_weight = regulariser.entropy_weight, regulariser.prior_weight
    index = index.contiguous()
    pair = (None if partner is None else partner.contiguous(), coefficient)
    total, maximum = share.total, share.maximum
    over_ranks = prior_weight != 0 and total is not None and maximum is not None
    prediction, label_loss, predicted, wanted, rows, sums, peaks, totals = loss_rows(
        logits.detach(),
        target,
        index,
        *pair,
        given,
        store,
        entropy_weight,
        prior_weight != 0,
        keep_prediction,
        1 if over_ranks else MOST_GROUPS,
    )
    if over_ranks and total is not None and maximum is not None:
        # (C,), as on a rank without samples, which takes the reference
        largest = maximum(peaks[0])
        peaks, totals = largest[None], total(totals[0] * (peaks[0] - largest).exp())[None]
    weights = (entropy_weight, prior_weight, share.count, share.world)
    loss, _ = loss_value(logits, target, index, *pair, rows, sums, peaks, totals, *weights)
    return LossHead(
        loss,
        prediction if keep_prediction else None,
        None if given is None else label_loss,
        predicted,
        wanted,
    )


def predict(logits: Tensor, index: Tensor | None, store: Tensor | None) -> Prediction:
    """Twin of `predict_reference`, for b >= 1."""
    keep = store is None
    rows = None if index is None else index.contiguous()
    prediction, _, predicted, *_ = loss_rows(
        logits.detach(), None, rows, None, None, None, store, 0.0, False, keep, MOST_GROUPS
    )
    return Prediction(prediction if keep else None, predicted)
