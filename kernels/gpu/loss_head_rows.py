"""The first launch of the loss head: everything of a single row, and each group's part of the sums over rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels.gpu.launch import wrap_triton
from fastdrpl.kernels.gpu.loss_head_groups import launch_fold
from fastdrpl.kernels.gpu.loss_head_tiles import (
    empty_numbers,
    load_logits,
    load_target,
    mix_target,
    tile_of,
    warps_of,
)

NO_CLASS = tl.constexpr(2**30)


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
            only = load_logits(logits, row, block, stride_row, stride_column, inside)
            peak = tl.where(valid, tl.max(only, 1), 0.0)
            total = tl.sum(tl.exp(only - peak[:, None]), 1)
        else:
            peak = tl.full((ROWS,), -float("inf"), tl.float32)
            for start in range(0, classes, BLOCK):
                column = start + block
                inside = valid[:, None] & (column < classes)[None, :]
                x = load_logits(logits, row, column, stride_row, stride_column, inside)
                peak = tl.maximum(peak, tl.max(x, 1))
            peak = tl.where(valid, peak, 0.0)
            total = tl.zeros((ROWS,), tl.float32)
            for start in range(0, classes, BLOCK):
                column = start + block
                inside = valid[:, None] & (column < classes)[None, :]
                x = load_logits(logits, row, column, stride_row, stride_column, inside)
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
            logit = only if ONE_BLOCK else load_logits(logits, row, column, stride_row, stride_column, inside)
            log_p = tl.where(inside, logit - peak[:, None] - log_total[:, None], 0.0)
            p = tl.where(inside, tl.exp(log_p), 0.0)
            best, best_class = _first_largest(p, column, inside, best, best_class)
            if prediction is not None:
                tl.store(prediction + row[:, None] * classes + column[None, :], p, mask=inside)
            if store is not None:
                tl.store(store + sample[:, None] * classes + column[None, :], p, mask=inside)
            if target is not None:
                own = load_target(target, sample, column, classes, inside, LABELS)
                most, most_class = _first_largest(own, column, inside, most, most_class)
                mixed = own
                if partner is not None:
                    mixed = mix_target(own, target, other, coefficient, column, classes, inside, LABELS)
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
    prediction = empty_numbers(logits, batch if keep_prediction else 0, classes)
    label_loss = empty_numbers(logits, 0 if given is None else batch)
    predicted = torch.empty(batch, dtype=torch.int64, device=logits.device)
    wanted = torch.empty(batch if with_target else 0, dtype=torch.int64, device=logits.device)
    rows = empty_numbers(logits, 4, batch if with_target else 0)
    sums = empty_numbers(logits, groups if with_target else 0)
    peaks, totals = (empty_numbers(logits, groups if with_prior else 0, classes) for _ in range(2))
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
        sums, peaks, totals = launch_fold(sums, peaks, totals)
    return prediction, label_loss, predicted, wanted, rows, sums, peaks, totals
