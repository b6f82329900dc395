"""The loss head with the update of the label store, and the end of an epoch, beside their references."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernel_timing import ROOM, Place, Run, compare, compiled, free_bytes
from fastdrpl.kernels.loss_head import Regulariser, Share, loss_head, loss_head_reference
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.pseudo_label import (
    redraw_count,
    renew_targets,
    renewed_targets,
    ring_mean,
    ring_update,
    ring_write,
    sample_keys,
)

STREAM = Stream(1, 2, 3, 4)
SAMPLES = 50_000  # of a label store
LENGTH, EPOCH = 10, 7  # of its ring


def bench_loss_head(place: Place, batch: int, classes: int) -> None:
    """Loss, its gradient and the update of the label store."""
    samples = max(SAMPLES, batch) if place.on_gpu else max(SAMPLES // 10, batch)
    if 3 * samples * classes * 4 > ROOM * free_bytes(place.device):
        print(
            f"\nloss head, batch {batch}, {classes} classes: left out, the label store does not fit in memory"
        )
        return
    generator = torch.Generator(place.device).manual_seed(2)
    random: dict[str, Any] = {"device": place.device, "generator": generator}
    logits = torch.randn(batch, classes, **random).to(place.dtype).requires_grad_()
    target = torch.softmax(torch.randn(samples, classes, **random), 1)
    batches = [torch.randperm(samples, **random)[:batch] for _ in range(place.calls)]
    partner = torch.randperm(batch, **random)
    coefficient = torch.tensor(0.3, device=place.device)
    weights = {"prior_weight": 0.8, "entropy_weight": 0.4}
    stores = {name: torch.zeros_like(target) for name in ("kernel", "other")}
    # The mean's gradients would be below any tolerance.
    slope = torch.tensor(float(batch), device=place.device)

    def ours(number: int) -> list[Tensor]:
        head = loss_head(
            logits,
            target,
            batches[number % place.calls],
            partner=partner,
            coefficient=coefficient,
            store=stores["kernel"],
            **weights,
        )
        return [head.loss.detach(), *torch.autograd.grad(head.loss, logits, slope)]

    def by_reference(run: Callable[..., Any]) -> Run:
        def call(number: int) -> list[Tensor]:
            head = run(
                logits,
                target,
                batches[number % place.calls],
                Share(batch),
                partner=partner,
                coefficient=coefficient,
                given=None,
                regulariser=Regulariser(**weights),
                store=stores["other"],
                keep_prediction=False,
            )
            return [head.loss.detach(), *torch.autograd.grad(head.loss, logits, slope)]

        return call

    numbers = batch * classes
    sides = {
        "kernel": (ours, numbers * 16),
        "reference": (by_reference(loss_head_reference), numbers * 64),
    }
    if (quick := compiled(place, loss_head_reference)) is not None:
        sides["reference, torch.compile"] = (by_reference(quick), numbers * 64)
    # Forward: logits, two targets, prediction; backward: logits, two targets, gradient.
    moved = numbers * ((place.dtype.itemsize + 12) + (2 * place.dtype.itemsize + 8))
    compare(
        place, "loss head and store update", (batch, classes), moved, sides, 1e-2 if place.on_gpu else 1e-5
    )
    if stores["other"].any():  # else the reference was left out
        torch.testing.assert_close(stores["kernel"], stores["other"], atol=1e-6, rtol=1e-5)


def bench_commit(place: Place, samples: int, classes: int) -> None:
    """End of an epoch: the ring takes the predictions, its mean becomes the targets, a fifth of them uniform."""
    numbers = samples * classes
    if numbers * 4 * (2 * LENGTH + 12) > ROOM * free_bytes(place.device):
        print(f"\nstore commit, {samples} samples, {classes} classes: left out, does not fit in memory")
        return
    generator = torch.Generator(place.device).manual_seed(3)
    random: dict[str, Any] = {"device": place.device, "generator": generator}
    prediction = torch.softmax(torch.randn(samples, classes, **random), 1)
    labelled = torch.rand(samples, **random) < 0.5
    state = {
        name: (
            torch.rand(samples, LENGTH, classes, device=place.device, generator=generator.manual_seed(4)),
            torch.zeros(samples, classes, device=place.device),
            torch.empty(samples, classes, device=place.device),
        )
        for name in ("kernel", "reference")
    }

    def ours(_: int) -> tuple[Tensor, ...]:
        ring, target, guess = state["kernel"]
        ring_update(ring, EPOCH, prediction, guess)
        renew_targets(target, guess, labelled, STREAM, 0.2)
        return target, ring[0]

    def by_reference(_: int) -> tuple[Tensor, ...]:
        ring, target, _ = state["reference"]
        ring_write(ring, EPOCH, prediction)
        keys = sample_keys(STREAM, samples, place.device)
        count = redraw_count(0.2, ~labelled)
        target.copy_(renewed_targets(target, ring_mean(ring, EPOCH), labelled, keys, count))
        return target, ring[0]

    sides: dict[str, tuple[Run, int]] = {
        "kernel": (ours, numbers * 8),
        "reference": (by_reference, numbers * 24),
    }
    # The ring but the slot that is overwritten and the ones not yet filled, prediction and slot, guess twice, target.
    moved = numbers * 4 * (EPOCH - 1 + 2 + 2 + 1)
    compare(place, "store commit", (samples, classes), moved, sides, 1e-6)
