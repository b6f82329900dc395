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
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

import torch

from bench.kernel_images import IMAGES, bench_images
from bench.kernel_labels import SAMPLES, bench_commit, bench_loss_head
from bench.kernel_timing import Place, measure_copy
from bench.rows import RESULTS

BATCHES, CLASSES = (128, 512, 65_536), (10, 100, 1000)


def cases(place: Place, quick: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is measured, in order, with the word that chooses it."""
    batches = BATCHES[: 2 if quick else 3] if place.on_gpu else (128,) if quick else BATCHES[:2]
    for case in IMAGES:
        for batch in batches:
            run = functools.partial(bench_images, place, case, batch)
            yield f"{case.crop}{case.size}", run
    # Autocast hands logits on as float32: those of steps. In bf16 the kernel reads half of that.
    places = (place, place._replace(half=False)) if place.on_gpu else (place,)
    for classes in CLASSES:
        for batch in batches:
            for each in places:
                yield "loss", functools.partial(bench_loss_head, each, batch, classes)
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
