"""The Triton twin of `fastdrpl.kernels.pseudo_label`.

The ring is read once and written in the same launch. The samples to make uniform are those whose (key, index) is at
most that of the last one chosen, which a radix selection finds digit by digit (`selection`); the index as the lowest
digits gives ties to the smaller one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdrpl.kernels import pseudo_label as reference
from fastdrpl.kernels.gpu.launch import register, wrap_triton
from fastdrpl.kernels.gpu.philox import draw_words, sort_key
from fastdrpl.kernels.gpu.selection import BINS, DIGIT_BITS, count_digits, find_digits

KEY_DIGITS = tl.constexpr(8)  # 63 bits
TILE = 1024  # numbers that a program handles at a time
CLASSES_AT_ONCE = 1024
BLOCK = 4096  # samples that a program counts
KEYS_AT_ONCE = 1024  # samples that a program draws keys for


# --- the ring ---


@triton.jit
def _pass_ring(
    ring,
    prediction,
    mean,
    samples,
    length,
    classes,
    slot,
    filled,
    AVERAGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < samples) & (column < classes)
    here = row * classes + column
    first = row * length * classes + column
    fresh = tl.load(prediction + here, mask=inside, other=0.0).to(ring.dtype.element_ty)
    if AVERAGE:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for other in tl.range(0, filled, loop_unroll_factor=5):  # so many loads are under way at once
            held = tl.load(ring + first + other * classes, mask=inside & (other != slot), other=0.0)
            total += tl.where(other == slot, fresh, held).to(tl.float32)
        tl.store(mean + here, tl.div_rn(total, tl.zeros_like(total) + filled), mask=inside)
    tl.store(ring + first + slot * classes, fresh, mask=inside)


def _ring_grid(ring: Tensor, tile: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The programs for a ring (N, length, C), and the rows and columns of each."""
    samples, _, classes = ring.shape
    columns = min(triton.next_power_of_2(classes), CLASSES_AT_ONCE, tile)
    rows = tile // columns
    return (triton.cdiv(samples, rows), triton.cdiv(classes, columns)), {"ROWS": rows, "COLUMNS": columns}


def launch_ring_put(ring: Tensor, epoch: int, prediction: Tensor, tile: int = TILE) -> None:
    """Put predictions (N, C) into the ring (N, length, C), contiguous both."""
    if ring.numel() == 0:
        return
    samples, length, classes = ring.shape
    grid, sizes = _ring_grid(ring, tile)
    slot, filled = (epoch - 1) % length, min(epoch, length)
    wrap_triton(_pass_ring)[grid](
        ring, prediction, prediction, samples, length, classes, slot, filled, AVERAGE=False, **sizes
    )


def launch_ring_average(ring: Tensor, epoch: int, prediction: Tensor, mean: Tensor, tile: int = TILE) -> None:
    """Put predictions (N, C) into the ring (N, length, C), and its mean into `mean` (N, C), all contiguous."""
    if ring.numel() == 0:
        return
    samples, length, classes = ring.shape
    grid, sizes = _ring_grid(ring, tile)
    slot, filled = (epoch - 1) % length, min(epoch, length)
    wrap_triton(_pass_ring)[grid](
        ring, prediction, mean, samples, length, classes, slot, filled, AVERAGE=True, **sizes
    )


# --- keys ---


@triton.jit
def _draw_keys(keys, stream, samples, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word0, word1, _, _ = draw_words(stream, index)
    tl.store(keys + index, sort_key(word0, word1), mask=index < samples)


def launch_draw_keys(stream: Tensor, samples: int, block: int = KEYS_AT_ONCE) -> Tensor:
    """A key for each of the samples 0..N-1 from a stream (`philox.stream_tensor`): (N,) int64 below 2^63."""
    keys = torch.empty(samples, dtype=torch.int64, device=stream.device)
    if samples:
        wrap_triton(_draw_keys)[(triton.cdiv(samples, block),)](keys, stream, samples, BLOCK=block)
    return keys


# --- the redraw ---


@triton.jit
def _last_chosen(count, histograms, state, step):
    """What is known, after `step` digits, of the last sample chosen: its key's and index's upper digits, (1,) each.

    Kept in `state` for the next launch, with its rank (0, 1, ...) among the samples with the same upper digits.
    """
    one = tl.arange(0, 1)
    key, index = one.to(tl.int64), one.to(tl.int64)
    rank = tl.load(count + one) - 1
    if step > 0:
        if step > 1:
            before = state + (step - 1) * 3 + one
            key, index, rank = tl.load(before), tl.load(before + 1), tl.load(before + 2)
        digit, rank = find_digits(histograms + (step - 1) * BINS + one, rank)
        if step > KEY_DIGITS:
            index = (index << DIGIT_BITS) | digit
        else:
            key = (key << DIGIT_BITS) | digit
    if tl.program_id(0) == 0:
        here = state + step * 3 + one
        tl.store(here, key)
        tl.store(here + 1, index)
        tl.store(here + 2, rank)
    return key, index


@triton.jit
def _narrow(keys, labelled, count, histograms, state, samples, step, shift, BLOCK: tl.constexpr):
    """Count the next digit, which starts at bit `shift`, of the samples that share the digits found so far."""
    key, index = _last_chosen(count, histograms, state, step)
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < samples
    candidate = inside & (tl.load(labelled + sample, mask=inside, other=1) == 0)
    word = tl.load(keys + sample, mask=inside, other=0)
    if step >= KEY_DIGITS:
        candidate = candidate & (word == key) & (((sample >> shift) >> DIGIT_BITS) == index)
        word = sample
    else:
        candidate = candidate & (((word >> shift) >> DIGIT_BITS) == key)
    count_digits(histograms + step * BINS, (word >> shift) & (BINS - 1), candidate)


@triton.jit
def _settle(count, histograms, state, steps):
    _last_chosen(count, histograms, state, steps)


@triton.jit
def _renew(
    target,
    prediction,
    labelled,
    keys,
    count,
    last_chosen,
    samples,
    classes,
    uniform,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    key, index = tl.load(last_chosen), tl.load(last_chosen + 1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    unlabelled = (row < samples) & (tl.load(labelled + row, mask=row < samples, other=1) == 0)
    own = tl.load(keys + row, mask=unlabelled, other=0)
    drawn = unlabelled & (tl.load(count) > 0) & ((own < key) | ((own == key) & (row <= index)))
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    written = unlabelled[:, None] & (column < classes)[None, :]
    place = row[:, None] * classes + column[None, :]
    guess = tl.load(prediction + place, mask=written & ~drawn[:, None], other=0.0)
    tl.store(target + place, tl.where(drawn[:, None], uniform, guess), mask=written)


def launch_renew(
    target: Tensor,
    prediction: Tensor,
    labelled: Tensor,
    keys: Tensor,
    count: Tensor,
    tile: int = TILE,
    block: int = BLOCK,
) -> None:
    """Make unlabelled rows of `target` (N, C) their prediction (N, C), or uniform for the `count` smallest keys.

    `labelled`: (N,) bool, `keys`: (N,) int64 below 2^63, `count`: () int64 on the device; all contiguous.
    """
    if target.numel() == 0:
        return
    samples, classes = target.shape
    labelled = labelled.view(torch.uint8)
    key_digits, digit_bits, bins = KEY_DIGITS.value, DIGIT_BITS.value, BINS.value
    steps = key_digits + max(1, -(-(samples - 1).bit_length() // digit_bits))
    histograms = torch.zeros((steps, bins), dtype=torch.int32, device=target.device)
    state = torch.empty((steps + 1, 3), dtype=torch.int64, device=target.device)
    for step in range(steps):
        left = (key_digits if step < key_digits else steps) - step
        shift = digit_bits * (left - 1)
        wrap_triton(_narrow)[(triton.cdiv(samples, block),)](
            keys, labelled, count, histograms, state, samples, step, shift, BLOCK=block, num_warps=8
        )
    wrap_triton(_settle)[(1,)](count, histograms, state, steps)
    columns = min(triton.next_power_of_2(classes), CLASSES_AT_ONCE, tile)
    rows = tile // columns
    wrap_triton(_renew)[(triton.cdiv(samples, rows), triton.cdiv(classes, columns))](
        target,
        prediction,
        labelled,
        keys,
        count,
        state[steps],
        samples,
        classes,
        1.0 / classes,
        ROWS=rows,
        COLUMNS=columns,
    )


# --- the operations, with their references on the CPU ---


def _put(ring: Tensor, epoch: int, prediction: Tensor, tile: int = TILE) -> None:
    reference.ring_write(ring, epoch, prediction)


def _average(ring: Tensor, epoch: int, prediction: Tensor, mean: Tensor, tile: int = TILE) -> None:
    reference.ring_write(ring, epoch, prediction)
    mean.copy_(reference.ring_mean_in_order(ring, epoch))


def _keys(stream: Tensor, samples: int, block: int = KEYS_AT_ONCE) -> Tensor:
    return reference.sample_keys_reference(stream, samples)


def _renewed(
    target: Tensor,
    prediction: Tensor,
    labelled: Tensor,
    keys: Tensor,
    count: Tensor,
    tile: int = TILE,
    block: int = BLOCK,
) -> None:
    target.copy_(reference.renewed_targets(target, prediction, labelled, keys, count))


ring_put = register("ring_put", _put, mutates=("ring",))(launch_ring_put)
ring_average = register("ring_average", _average, mutates=("ring", "mean"))(launch_ring_average)
draw_keys = register("draw_keys", _keys)(launch_draw_keys)
renew = register("renew_targets", _renewed, mutates=("target",))(launch_renew)
