"""Augmentation, alone and with mixup, beside its reference and torchvision's transforms."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from bench.kernel_timing import ROOM, Place, Run, compare, compiled, free_bytes
from fastdrpl.kernels.augment import augment, augment_reference, resized_window
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.mixup import augment_pair, augment_pair_reference
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import stream_tensor

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
STREAM = Stream(1, 2, 3, 4)


class Images(NamedTuple):
    """What is stored and what is cut out of it."""

    side: int
    size: int
    pad: int
    crop: Literal["pad", "resized"]
    stored: int  # images: more than a cache holds


IMAGES = [
    Images(32, 32, 4, "pad", 65_536),
    Images(64, 64, 8, "pad", 16_384),
    Images(256, 224, 0, "pad", 1_024),
    Images(256, 224, 0, "resized", 1_024),
]


def images_of(place: Place, case: Images, batch: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Stored pixels, and for each call other rows and sample indices."""
    generator = torch.Generator(place.device).manual_seed(1)
    stored = max(case.stored, batch) if place.on_gpu else max(case.stored // 16, batch)
    pixels = torch.randint(
        0,
        256,
        (stored, case.side, case.side, 3),
        dtype=torch.uint8,
        device=place.device,
        generator=generator,
    )
    batches = []
    for _ in range(place.calls):
        rows = torch.randint(0, stored, (batch,), device=place.device, generator=generator)
        batches.append((rows, rows.clone()))
    return pixels, batches


def bytes_read(case: Images, index: Tensor) -> int:
    """Of the images of a batch: what lies in their windows (a padded crop can hold less)."""
    if case.crop == "pad":
        return len(index) * case.size**2 * 3
    window = resized_window(STREAM, index, height=case.side, width=case.side, flip=True)
    return int((window[2] * window[3]).sum()) * 3


def bench_images(place: Place, case: Images, batch: int) -> None:
    """Augmentation, then augmentation and mixup, of one shape."""
    numbers = batch * case.size**2 * 3
    made, wide = numbers * place.dtype.itemsize, numbers * 4
    if (max(case.stored, batch) * case.side**2 * 3) + made > ROOM * free_bytes(place.device):
        print(f"\naugment {case.crop} {case.size}, batch {batch}: left out, does not fit in memory")
        return
    pixels, batches = images_of(place, case, batch)
    device, calls = place.device, place.calls
    crop = Crop(
        kind=case.crop,
        pad=case.pad,
        size=case.size,
        flip=True,
        mean=MEAN,
        std=STD,
        dtype=place.dtype,
        memory_format=place.layout,
    )
    stream = stream_tensor(STREAM, device) if place.on_gpu else STREAM
    draw = v2.RandomCrop(case.size, case.pad or None)
    if case.crop == "resized":
        draw = v2.RandomResizedCrop(case.size, antialias=False)
    transform = v2.Compose(
        [
            draw,
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToDtype(place.dtype),
        ]
    )
    mixup = v2.MixUp(alpha=1.0, num_classes=10)
    label = torch.zeros(batch, dtype=torch.int64, device=device)
    partner = torch.randperm(batch, device=device)
    coefficient = torch.tensor(0.3, device=device)

    def ours(number: int) -> Tensor:
        return augment(pixels, *batches[number % calls], STREAM, crop)

    def our_pair(number: int) -> tuple[Tensor, Tensor]:
        return augment_pair(pixels, *batches[number % calls], STREAM, partner, coefficient, crop)

    def theirs(number: int) -> Tensor:
        return transform(pixels[batches[number % calls][0]].permute(0, 3, 1, 2))

    def their_pair(number: int) -> tuple[Tensor, Tensor]:
        images = theirs(number)
        return images, mixup(images, label)[0]

    def reference(run: Callable[..., Any], *mixture: Tensor) -> Run:
        return lambda number: run(pixels, *batches[number % calls], stream, *mixture, crop)

    read = bytes_read(case, batches[0][1])
    for what, run, run_pair, peer, factor in (
        ("augment", augment_reference, (), theirs, 1),
        ("augment and mixup", augment_pair_reference, (partner, coefficient), their_pair, 2),
    ):
        sides = {
            "kernel": (ours if factor == 1 else our_pair, made * factor),
            "reference": (reference(run, *run_pair), 5 * wide * factor),
        }
        if (quick := compiled(place, run)) is not None:
            sides["reference, torch.compile"] = (reference(quick, *run_pair), 3 * wide * factor)
        sides["torchvision"] = (peer, 3 * wide * factor)
        compare(
            place,
            f"{what}, {case.crop}, {case.side} to {case.size} pixels",
            (batch, 3, case.size, case.size),
            (read + made) * factor + 16 * batch,
            sides,
            # Half a digit of bfloat16 at 4; the order of a few operations in float32.
            2**-6 if place.on_gpu else 1e-5,
        )
