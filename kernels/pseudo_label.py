"""Pseudo-labels: the mean of the last predictions, and the uniform redraw (paper III-A and the published code).

What: at the end of an epoch its predictions go into a ring of the last epochs, whose mean is the next epoch's target
(stage 1); or they become the targets themselves, but for a fresh fifth of the samples, which becomes uniform (stages
2 and 3). Why a twin: of the ring's slots each is read once and one is written, where plain tensor code also reads the
written slot, and copies what it averages when the ring is fp16; and the fifth is chosen without a sort and without
waiting for the device. A ring that lies in main memory, or in a file that is mapped into it, is gone through in pieces,
also for a run on a GPU. Its cost for N samples, C classes and a ring of L slots of r bytes: 8 + L r bytes and L
additions for each of N C numbers; 1 + 8 C bytes and about twelve reads of 9 bytes for each sample of stages 2 and 3.
The references come first, then the public operations; the twin is `gpu/pseudo_label.py`.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastdrpl.kernels import philox
from fastdrpl.kernels.dispatch import choose
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import check_stream, draw_words, words_on

RING_TYPES = (torch.float32, torch.float16)
# A count that is short of a whole number by no more is that number: 0.29 * 100 is 28.999...
COUNT_TOLERANCE = 5e-7
PIECE_BYTES = (
    32 << 20
)  # of a ring in main memory that are averaged at a time: bounds what torch copies for it

# --- the references ---


def ring_write(ring: Tensor, epoch: int, prediction: Tensor) -> None:
    """Put the predictions (N, C) of an epoch (1, 2, ...) into the ring (N, length, C), over the oldest."""
    ring[:, (epoch - 1) % ring.shape[1]] = prediction.to(ring.dtype)


def ring_mean(ring: Tensor, epoch: int) -> Tensor:
    """Mean of the last `length` epochs' predictions, or of as many as there are: (N, length, C) -> (N, C) float32.

    The order in which torch adds depends on the processor; `ring_mean_in_order` has one that does not.
    """
    return ring[:, : min(epoch, ring.shape[1])].mean(1, dtype=torch.float32)


def ring_mean_in_order(ring: Tensor, epoch: int) -> Tensor:
    """`ring_mean` with the slots added one after the other, as on a GPU: the same bits on every device."""
    filled = min(epoch, ring.shape[1])
    total = ring[:, 0].float()
    for slot in range(1, filled):
        total = total + ring[:, slot].float()
    return total / filled


def redraw_count(fraction: float, among: Tensor) -> Tensor:
    """How many of the samples `among` (N,) bool a fraction of them is, rounded down: () int64, on their device."""
    exact = fraction * among.sum().double()
    whole = exact.floor()
    return (whole + (whole + 1 - exact <= COUNT_TOLERANCE)).long()


def redraw_uniform(target: Tensor, among: Tensor, keys: Tensor, count: int | Tensor) -> Tensor:
    """Targets (N, C) in which `count` of the samples `among` (N,) bool are uniform: those with the smallest keys (N,).

    Exactly `count` of them (fewer only if `among` has fewer); keys are below 2^63 - 1, ties go to the smaller index.
    """
    order = torch.argsort(keys.masked_fill(~among, torch.iinfo(torch.int64).max), stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    drawn = (rank < count) & among
    return torch.where(drawn[:, None], 1.0 / target.shape[1], target)


def renewed_targets(
    target: Tensor, prediction: Tensor, labelled: Tensor, keys: Tensor, count: Tensor
) -> Tensor:
    """Targets (N, C) of the next epoch: as they are where `labelled` (N,) bool, else the prediction (N, C), or uniform.

    Uniform are the `count` unlabelled samples with the smallest keys (N,) int64.
    """
    unlabelled = ~labelled
    return redraw_uniform(torch.where(unlabelled[:, None], prediction, target), unlabelled, keys, count)


def sample_keys_reference(stream: Tensor, samples: int) -> Tensor:
    """`sample_keys` of a stream's tensor, on its device, in plain torch."""
    word0, word1, _, _ = draw_words(stream, torch.arange(samples, device=stream.device))
    return philox.shuffle_keys(word0, word1)


# --- the public operations ---


def ring_update(ring: Tensor, epoch: int, prediction: Tensor, mean: Tensor | None = None) -> None:
    """Put an epoch's predictions into the ring, and the mean of what it then holds into `mean`, where one is given.

    `ring`: (N, length, C) float32 or float16, `prediction`: (N, C), `mean`: (N, C), both float32, all on one device;
    the ring may lie in main memory where they are on a GPU. Ring and mean are contiguous and written in place.
    `epoch`: 1, 2, ... The source is section III-A. For a prediction on a GPU the slots are added in their order
    (`ring_mean_in_order`), wherever the ring lies. Raises TypeError and ValueError for other tensors.
    """
    samples, length, classes = _check_ring(ring)
    device = prediction.device if prediction.is_cuda and ring.device.type == "cpu" else ring.device
    _check_matrix("prediction", prediction, (samples, classes), device)
    if mean is not None:
        _check_matrix("mean", mean, (samples, classes), device, contiguous=True)
    if epoch < 1 or length < 1:
        raise ValueError(f"epoch {epoch} of a ring of {length}: wanted both at least 1")
    if choose("pseudo_label", ring.device.type) == "triton":
        from fastdrpl.kernels.gpu.pseudo_label import ring_average, ring_put

        if mean is None:
            ring_put(ring, epoch, prediction.contiguous())
        else:
            ring_average(ring, epoch, prediction.contiguous(), mean)
        return
    average = ring_mean if device.type == ring.device.type else ring_mean_in_order
    for rows in _pieces(samples, length * classes * ring.element_size()):
        ring_write(ring[rows], epoch, prediction[rows].to(ring.device))
        if mean is not None:
            mean[rows].copy_(average(ring[rows], epoch))


def sample_keys(stream: Stream | Tensor, samples: int, device: torch.device) -> Tensor:
    """A sorting key for each of the samples 0..N-1, drawn from a stream: (N,) int64 below 2^63, on the device.

    The stream may be a tensor on the device (`streams.stream_tensor`). Raises TypeError or ValueError for another.
    """
    stream = check_stream(stream, device)
    if choose("pseudo_label", device.type) == "triton":
        from fastdrpl.kernels.gpu import pseudo_label as twin

        return twin.draw_keys(words_on(stream, device), samples)
    if isinstance(stream, Tensor):
        return sample_keys_reference(stream, samples)
    from fastdrpl.kernels.cpu.philox import words

    word0, word1, _, _ = words(stream, np.arange(samples))
    return torch.from_numpy(philox.shuffle_keys(word0, word1)).to(device)


def renew_targets(
    target: Tensor, prediction: Tensor, labelled: Tensor, stream: Stream | Tensor, fraction: float
) -> None:
    """Make the targets of the next epoch, in place: unlabelled samples take their prediction, some become uniform.

    `target`, `prediction`: (N, C) float32, `labelled`: (N,) bool, on one device; the target is contiguous. Uniform
    becomes exactly the given fraction of the unlabelled samples, rounded down, chosen by the keys that the stream
    draws: another set for every epoch (published code; the paper does not state it). On a GPU nothing waits for the
    device. Raises TypeError and ValueError for other tensors, and for a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of samples to redraw: got {fraction}, want 0 to 1")
    _check_matrix("target", target, None, target.device, contiguous=True)
    _check_matrix("prediction", prediction, tuple(target.shape), target.device)
    if labelled.dtype != torch.bool:
        raise TypeError(f"labelled: got {labelled.dtype}, want torch.bool")
    if labelled.shape != target.shape[:1] or labelled.device != target.device:
        raise ValueError(
            f"labelled: got shape {tuple(labelled.shape)} on {labelled.device}, "
            f"want ({len(target)},) on {target.device}"
        )
    keys = sample_keys(stream, len(target), target.device)
    count = redraw_count(fraction, ~labelled)
    if choose("pseudo_label", target.device.type) == "triton":
        from fastdrpl.kernels.gpu import pseudo_label as twin

        twin.renew(target, prediction.contiguous(), labelled.contiguous(), keys, count)
    else:
        target.copy_(renewed_targets(target, prediction, labelled, keys, count))


def _pieces(rows: int, row_bytes: int) -> Iterator[slice]:
    """The rows in pieces of about `PIECE_BYTES`, all of nearly the same length."""
    count = max(1, min(rows, math.ceil(rows * row_bytes / PIECE_BYTES)))
    for number in range(count):
        yield slice(rows * number // count, rows * (number + 1) // count)


def _check_ring(ring: Tensor) -> tuple[int, int, int]:
    if ring.dtype not in RING_TYPES:
        raise TypeError(f"ring: got {ring.dtype}, want torch.float32 or torch.float16")
    if ring.ndim != 3 or not ring.is_contiguous():
        raise ValueError(
            f"ring: got shape {tuple(ring.shape)}, strides {ring.stride()}, want (N, length, C), contiguous"
        )
    samples, length, classes = ring.shape
    return samples, length, classes


def _check_matrix(
    name: str,
    values: Tensor,
    shape: tuple[int, ...] | None,
    device: torch.device,
    *,
    contiguous: bool = False,
) -> None:
    if values.dtype != torch.float32:
        raise TypeError(f"{name}: got {values.dtype}, want torch.float32")
    if values.ndim != 2 or (shape is not None and tuple(values.shape) != shape):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, want {shape or '(N, C)'}")
    if contiguous and not values.is_contiguous():
        raise ValueError(f"{name}: got strides {values.stride()}, want a contiguous tensor to write to")
    if values.device != device:
        raise ValueError(f"{name}: got a tensor on {values.device}, want one on {device}")
