"""Kernels of a step beside the speed of memory, and beside their peers. `python bench/throughput_kernels.py`.

Claims, on an H200: augmentation alone and with mixup move at least 85 % of the bytes a second that a plain copy on the
same device moves, from 64 k images on, and take at most 4 us for a batch of 128 inside a CUDA graph; the loss head with
the update of the label store takes at most 15 us at 128 samples of 10 classes, a third of its torch.compile version.

The device's copy is measured first, then for each shape the public operation (on the CPU the numba twin or the
reference), the eager reference, the same under torch.compile, and torchvision's transforms v2 with MixUp, in turns.
torchvision draws one crop for a whole batch, ours one for each image. On a GPU each side is a CUDA graph of several
batches, but for torchvision, which draws on the host (`timing` of the row). Outputs are compared with the reference
before. What does not fit in memory is left out by name. `--quick`: fewer turns, no batch of 65,536, and on a CPU no
torch.compile. Words choose: pad32, pad64, pad224, resized224, loss, store. Rows go to
bench/results/throughput_kernels.jsonl or to `--out`.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from bench.rows import RESULTS, measure_in_turns, write_row
from fastdrpl.kernels.augment import augment, augment_reference, augment_resized, resized_window
from fastdrpl.kernels.loss_head import Regulariser, Share, loss_head, loss_head_reference
from fastdrpl.kernels.mixup import augment_pair, augment_pair_reference
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

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
STREAM, WARMUP = Stream(1, 2, 3, 4), 3
SAMPLES = 50_000  # of a label store
LENGTH, EPOCH = 10, 7  # of its ring
ROOM = 0.8  # of the free memory
Run = Callable[[int], Any]  # number of the call -> outputs


class Place(NamedTuple):
    """Where and how much is measured, and what the device's own copy moves."""

    device: torch.device
    turns: int
    calls: int  # batches of a graph
    compiled: bool  # with torch.compile
    copy: float  # bytes a second, read + written
    out: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of network inputs and logits."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.on_gpu else torch.contiguous_format


class Images(NamedTuple):
    """What is stored and what is cut out of it."""

    side: int
    size: int
    pad: int
    crop: str
    stored: int  # images: more than a cache holds


IMAGES = [
    Images(32, 32, 4, "pad", 65_536),
    Images(64, 64, 8, "pad", 16_384),
    Images(256, 224, 0, "pad", 1_024),
    Images(256, 224, 0, "resized", 1_024),
]
BATCHES, CLASSES = (128, 512, 65_536), (10, 100, 1000)


def measure_copy(device: torch.device, size: int, turns: int) -> float:
    """Bytes a second, read and written, of a copy of `size` bytes on the device; the median of its turns."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = time_sides({"copy": lambda _: target.copy_(source)}, device, turns, 1)[0]["copy"]
    return 2 * size / float(np.median(seconds))


def time_sides(
    sides: dict[str, Run], device: torch.device, turns: int, calls: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of a batch of each side, in turns, and how each was timed."""
    if device.type == "cpu":
        functions = {name: _numbered(run) for name, run in sides.items()}
        return measure_in_turns(functions, warmup=WARMUP, repeats=turns), dict.fromkeys(sides, "clock")
    timing = {name: "events" if name == "torchvision" else "graph" for name in sides}
    replays = {name: _several(run, calls, captured=timing[name] == "graph") for name, run in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(WARMUP + turns):
        for name, replay in replays.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            if turn >= WARMUP:
                seconds[name].append(start.elapsed_time(end) / 1000 / calls)
    return seconds, timing


def _numbered(run: Run) -> Callable[[], Any]:
    number = 0

    def call() -> Any:
        nonlocal number
        number += 1
        return run(number)

    return call


def _several(run: Run, calls: int, *, captured: bool) -> Callable[[], Any]:
    """Several calls on the device, as one CUDA graph if that is asked for."""

    def several() -> None:
        for number in range(calls):
            run(number)

    if not captured:
        return several
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiled and tuned before the capture
        for _ in range(WARMUP):
            several()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        several()
    return graph.replay


def free_bytes(device: torch.device) -> int:
    """Of memory that the device has left."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def compare(
    place: Place,
    what: str,
    shape: tuple[int, ...],
    moved: int,
    sides: dict[str, tuple[Run, int]],
    tolerance: float,
) -> None:
    """Check the sides that have outputs of the reference, measure all, print and store.

    `moved`: bytes that the work reads and writes at least. Each side with the bytes of memory that it needs.
    """
    print(f"\n{what}, {' x '.join(map(str, shape))}: {moved / 1e6:,.2f} MB at least")
    fitting = {}
    for name, (run, needed) in sides.items():
        if needed > (room := ROOM * free_bytes(place.device)):
            print(
                f"  {name:<28}left out: needs {needed / 1e9:.1f} GB of memory, {room / 1e9:.1f} GB are free"
            )
        else:
            fitting[name] = run
    if "reference" in fitting:
        expected = as_tensors(fitting["reference"](0))
        for name in fitting.keys() - {"torchvision"}:
            for one, other in zip(as_tensors(fitting[name](0)), expected, strict=True):
                torch.testing.assert_close(one.float(), other.float(), atol=tolerance, rtol=tolerance)
        del expected, one, other
    else:
        print("  not compared: the reference is left out")
    seconds, timing = time_sides(fitting, place.device, place.turns, place.calls)
    for name in fitting:
        took = float(np.median(seconds[name]))
        percent = 100 * moved / took / place.copy
        ratio = float(np.median(np.array(seconds[name]) / np.array(seconds.get("kernel", seconds[name]))))
        write_row(
            place.out,
            what=what,
            shape=shape,
            dtype=str(place.dtype).removeprefix("torch."),
            backend=name,
            seconds=seconds[name],
            warmup=WARMUP,
            threads=torch.get_num_threads(),
            device=str(place.device),
            timing=timing[name],
            bytes=moved,
            copy_bytes_per_second=round(place.copy),
            percent_of_copy=round(percent, 2),
            ratio_to_kernel=round(ratio, 2),
        )
        print(
            f"  {name:<28}{took * 1e6:>14,.1f} us{percent:>9.1f} % of a copy{ratio:>10.2f}x the kernel's time"
        )


def as_tensors(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else [tensor for tensor in made if tensor is not None]


def compiled(place: Place, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function under torch.compile, anew for each shape, or None where that is left out."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False) if place.compiled else None


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
    colours: dict[str, Any] = {"mean": MEAN, "std": STD, "dtype": place.dtype, "memory_format": place.layout}
    plain = (case.crop, case.pad, case.size, True, MEAN, STD, place.dtype, place.on_gpu)
    stream = STREAM
    if place.on_gpu:
        from fastdrpl.kernels.gpu.philox import stream_tensor

        stream = stream_tensor(STREAM, device)
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
        rows, index = batches[number % calls]
        if case.crop == "resized":
            return augment_resized(pixels, rows, index, STREAM, size=case.size, flip=True, **colours)
        return augment(pixels, rows, index, STREAM, pad=case.pad, size=case.size, flip=True, **colours)

    def our_pair(number: int) -> tuple[Tensor, Tensor]:
        given = (pixels, *batches[number % calls], STREAM, partner, coefficient)
        return augment_pair(*given, crop=case.crop, pad=case.pad, size=case.size, flip=True, **colours)

    def theirs(number: int) -> Tensor:
        return transform(pixels[batches[number % calls][0]].permute(0, 3, 1, 2))

    def their_pair(number: int) -> tuple[Tensor, Tensor]:
        images = theirs(number)
        return images, mixup(images, label)[0]

    def reference(run: Callable[..., Any], *mixture: Tensor) -> Run:
        return lambda number: run(pixels, *batches[number % calls], stream, *mixture, *plain)

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


def cases(place: Place, quick: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is measured, in order, with the word that chooses it."""
    batches = BATCHES[: 2 if quick else 3] if place.on_gpu else (128,) if quick else BATCHES[:2]
    for case in IMAGES:
        for batch in batches:
            run = functools.partial(bench_images, place, case, batch)
            yield f"{case.crop}{case.size}", run
    for classes in CLASSES:
        for batch in batches:
            yield "loss", functools.partial(bench_loss_head, place, batch, classes)
    for classes in CLASSES:
        samples = SAMPLES if place.on_gpu else SAMPLES // (100 if quick else 10)
        yield "store", functools.partial(bench_commit, place, samples, classes)


def main() -> None:
    """All shapes on one device, or those that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="e.g. pad32 loss: only these")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput_kernels.jsonl")
    options = parser.parse_args()
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no GPU")
    device = torch.device(name)
    turns = 5 if options.quick else 30
    size = (4 << 30) if name == "cuda" else (32 << 20) if options.quick else (512 << 20)
    copy = measure_copy(device, size, turns)
    print(f"{device}: a copy of {size / 2**20:,.0f} MiB moves {copy / 1e9:,.1f} GB/s, read + written")
    place = Place(
        device, turns, 20 if name == "cuda" else 4, name == "cuda" or not options.quick, copy, options.out
    )
    for word, run in cases(place, options.quick):
        if not options.words or word in options.words:
            run()


if __name__ == "__main__":
    main()
