"""Seconds of an epoch, beside the bare loop, the published loop and plain torch. `python bench/throughput_epoch.py`.

Claims: training reaches 90 % of the bare loop on a CPU; a whole epoch takes a quarter (width 64) or a third (width 16)
of the time of a loop that does the published work; training is not slower than the best that plain torch and
torch.compile reach, and on a GPU at least 1.5 times as fast.

Each stage (relabel: one forward pass a step; semi: two) at each width, image size and batch size is one comparison, its
sides an epoch each in alternating turns in one process, after a warm-up epoch that does not count:
  ours                training as a run does it: loader, augmentation, label store, meter, journal
  ours, joined        the same with both forward passes of a step as one (semi only)
  ours, whole epoch   ours with the test pass that a run makes after each epoch (tracking: at a stage's end only)
  bare loop           forward, backward and SGD on one batch, in the same precision and memory layout
  reference           what the published code does in an epoch (bench/epoch_reference.py)
  reference, training its training alone (where --sides has the word training)
  plain torch ...     resident data, transforms v2, autocast, channels_last, fused SGD (bench/epoch_idiomatic.py)
Images are random, unless --data names a prepared dataset; there is one test image for five training images.

`--profile` adds the 15 largest parts of our epoch; `--losses 200` compares the losses of so many steps in bf16 with
those in fp32 and measures nothing; `--quick` is a rehearsal: few images, a narrow network, one turn.
What a run sets for its process (how threads wait, that freed memory is kept) holds for all sides.
Rows go to bench/results/throughput_epoch.jsonl or to `--out`.
"""

import argparse
import functools
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

from fastdrpl.spinning import spin_briefly

spin_briefly()  # as the command line does, before torch starts its threads

import numpy as np
import torch

from bench.epoch_data import Peer, peer_of
from bench.epoch_idiomatic import Idiomatic, has_bf16
from bench.epoch_limits import bare_loop, flops_of, limit_seconds, measure_product
from bench.epoch_ours import STAGES, Ours, Task, config_of
from bench.epoch_reference import Reference
from bench.rows import RESULTS, measure_in_turns, write_row
from bench.synthetic import write_dataset

WARMUP, TURNS, TOP = 1, 3, 15
TEST_SHARE = 5  # training images for each test image, as in CIFAR
# Of random data, for seconds of the slowest side on two cores; multiples of the batch sizes, so that none has a tail.
CPU_IMAGES = {16: 3_072, 64: 384}
GPU_IMAGES = {32: 49_664, 64: 24_576}
COMPILED = {"cpu": ("default",), "cuda": ("reduce-overhead", "max-autotune")}
EXTRA = "reference, training"
WHOLE = ("ours, whole epoch", "reference")  # sides that do more than to train


@dataclass(frozen=True)
class Case:
    """One comparison."""

    task: Task
    width: int
    size: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.task}, width {self.width}, {self.size}x{self.size}, batch {self.batch_size}"


def engine_of(words: argparse.Namespace) -> dict[str, Any]:
    """The settings of our engine that the command line gives."""
    given = {name: getattr(words, name) for name in ("mode", "forwards") if getattr(words, name)}
    return {"device": words.device, "threads": words.threads, "precision": words.precision, **given}


def sides_of(
    case: Case, data: Path, folder: Path, words: argparse.Namespace
) -> tuple[Ours, Peer, dict[str, Any]]:
    """Our run, the peers' work, and what makes each side that is asked for: -> a function that runs an epoch."""
    config = functools.partial(
        config_of,
        data,
        width=case.width,
        batch_size=case.batch_size,
        limit=words.limit,
        **engine_of(words),
    )
    torch.compiler.reset()  # it compiles a function anew for a few cases only
    ours = Ours(config(), folder / "ours", case.task)
    peer, device = peer_of(ours), ours.machine.device
    bf16 = ours.machine.precision == "bf16"
    made: dict[str, Callable[[], Callable[[], object]]] = {"ours": lambda: ours.epoch}
    if case.task == "semi" and "forwards" not in engine_of(words):
        made["ours, joined"] = lambda: Ours(config(forwards="joined"), folder / "joined", case.task).epoch
    made |= {
        "ours, whole epoch": lambda: Ours(config(test_every=1), folder / "whole", case.task).epoch,
        "bare loop": lambda: bare_loop(ours, peer),
        "reference": lambda: Reference(peer, words.workers).epoch,
        EXTRA: lambda: Reference(peer, words.workers, everything=False).epoch,
        "plain torch": lambda: Idiomatic(peer, bf16=bf16, compiled=None).epoch,
    }
    for how in COMPILED[device.type]:
        made[f"plain torch, compiled ({how})"] = lambda how=how: (
            Idiomatic(peer, bf16=bf16, compiled=how).epoch
        )
    return ours, peer, {name: make for name, make in made.items() if _is_wanted(name, words.sides)}


def _is_wanted(name: str, words: Sequence[str]) -> bool:
    if name == EXTRA:
        return "training" in words
    return name == "ours" or not words or any(word in name for word in words)


def compare(case: Case, data: Path, folder: Path, words: argparse.Namespace) -> None:
    """Measure a case, print its table and store its rows."""
    ours, peer, made = sides_of(case, data, folder, words)
    sides = {name: make() for name, make in made.items()}
    rate = measure_product(ours.machine.device, ours.machine.precision)
    flops, limit = flops_of(peer), limit_seconds(peer, ours.images, rate)
    seconds = measure_in_turns(sides, warmup=WARMUP, repeats=words.turns)
    print(f"\n{case}: {ours.images:,} + {len(peer.test_label):,} images, ours is {ours.describe()}; medians")
    for reason in ours.machine.describe()["mode_reasons"]:
        print(reason)
    print(f"{flops / 1e9:.3f} GFLOP an image; a matrix product runs at {rate / 1e9:,.0f} GFLOP/s here")
    print(
        f"  {'':<38}{'s/epoch':>9}{'ms/step':>10}{'images/s':>10}{'% of bare':>11}{'% of limit':>11}{'ours is':>9}"
    )
    for name in sides:
        row = _row(name, case, ours, seconds, flops, rate, limit, words)
        bare, most = row["percent_of_bare"], row["percent_of_limit"]
        step = "" if name in WHOLE else f"{1e3 * row['seconds_per_step']:.2f}"
        print(
            f"  {name:<38}{row['p50']:>9.3f}{step:>10}"
            f"{row['images_per_second']:>10,.0f}"
            f"{'' if bare is None else f'{bare:.1f}':>11}{'' if most is None else f'{most:.1f}':>11}"
            f"{row['ratio_to_ours']:>8.2f}x",
            flush=True,
        )
    if words.profile:
        _profile(case, ours, words)
    ours.close()


def _row(
    name: str,
    case: Case,
    ours: Ours,
    seconds: dict[str, list[float]],
    flops: float,
    rate: float,
    limit: float,
    words: argparse.Namespace,
) -> dict[str, Any]:
    own = np.array(seconds[name])
    # What does more than to train is compared with our whole epoch; ratios of each turn, then their median.
    beside = "ours, whole epoch" if name in WHOLE and "ours, whole epoch" in seconds else "ours"
    bare = seconds.get("bare loop") if name not in WHOLE else None
    took = float(np.median(own))
    return write_row(
        words.out,
        what=f"epoch, {case.task}",
        shape=(ours.images, case.size, case.size, 3),
        dtype="fp32" if name.startswith("reference") else ours.machine.precision,
        backend=f"{name}, width {case.width}, batch {case.batch_size}",
        seconds=own.tolist(),
        warmup=WARMUP,
        threads=ours.machine.threads,
        device=str(ours.machine.device),
        mode=ours.machine.describe()["mode"],
        mode_reasons=ours.machine.describe()["mode_reasons"],
        data="random" if words.data is None else str(words.data),
        workers=words.workers if name.startswith("reference") else 0,
        seconds_per_step=took / ours.steps,
        images_per_second=round(ours.images / took, 1),
        flops_per_image=flops,
        product_flops_per_second=rate,
        percent_of_limit=None if name in WHOLE else round(100 * limit / took, 1),
        percent_of_bare=None if bare is None else round(100 * float(np.median(np.array(bare) / own)), 1),
        ratio_to_ours=round(float(np.median(own / np.array(seconds[beside]))), 3),
    )


def _profile(case: Case, ours: Ours, words: argparse.Namespace) -> None:
    """The largest parts of an epoch of ours by their own time."""
    device = ours.machine.device.type
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profile:
        took = measure_in_turns({"epoch": ours.epoch}, warmup=0, repeats=1)["epoch"]
    parts = [
        {
            "part": event.key[:100],
            "calls": event.count,
            "seconds": getattr(event, f"self_{'device' if device == 'cuda' else 'cpu'}_time_total") / 1e6,
        }
        for event in profile.key_averages()
    ]
    parts.sort(key=lambda part: -part["seconds"])
    everything = sum(part["seconds"] for part in parts)
    print(f"  the {TOP} largest parts of an epoch of ours, by their own time on the {device}:")
    for part in parts[:TOP]:
        share = part["seconds"] / everything
        print(f"    {share:>6.1%}{part['seconds'] * 1e3:>12.1f} ms{part['calls']:>8} x  {part['part']}")
    write_row(
        words.out,
        what=f"profile of an epoch, {case.task}",
        shape=(ours.images, case.size, case.size, 3),
        dtype=ours.machine.precision,
        backend=f"ours, width {case.width}, batch {case.batch_size}",
        seconds=took,
        warmup=WARMUP,
        threads=ours.machine.threads,
        device=str(ours.machine.device),
        mode=ours.machine.describe()["mode"],
        parts=parts[:TOP],
    )


def compare_losses(case: Case, data: Path, folder: Path, words: argparse.Namespace) -> None:
    """The losses of the same steps in fp32 and in bf16, from the same weights."""
    found, took = {}, {}
    for precision in ("fp32", "bf16"):
        engine = engine_of(words) | {"precision": precision}
        config = config_of(data, width=case.width, batch_size=case.batch_size, limit=words.limit, **engine)
        ours = Ours(config, folder / precision, case.task)
        run = functools.partial(ours.losses, words.losses)
        took[precision] = measure_in_turns(
            {"": lambda p=precision, r=run: found.update({p: r()})}, warmup=0, repeats=1
        )[""]
        ours.close()
    full, half = np.array(found["fp32"]), np.array(found["bf16"])
    last = min(20, len(full))
    row = write_row(
        words.out,
        what=f"losses of {words.losses} steps in bf16 beside fp32, {case.task}",
        shape=(ours.images, case.size, case.size, 3),
        dtype="bf16",
        backend=f"ours, width {case.width}, batch {case.batch_size}",
        seconds=took["bf16"],
        warmup=0,
        threads=ours.machine.threads,
        device=str(ours.machine.device),
        largest_difference=float(np.abs(full - half).max()),
        last_fp32=float(full[-last:].mean()),
        last_bf16=float(half[-last:].mean()),
    )
    print(
        f"{case}: over {words.losses} steps the largest difference of a loss is {row['largest_difference']:.4f}; "
        f"mean of the last {last}: {row['last_fp32']:.4f} (fp32) and {row['last_bf16']:.4f} (bf16)"
    )


def main() -> None:
    """All cases of the device, or those that the command line names."""
    words = _parse()
    on_gpu = words.device == "cuda"
    cases = [
        Case(task, width, size, batch_size)
        for width, size, batch_size, task in itertools.product(
            words.widths, words.sizes, words.batches, words.tasks
        )
    ]
    with tempfile.TemporaryDirectory() as temporary:
        for number, case in enumerate(cases):
            images = GPU_IMAGES[case.size] if on_gpu else CPU_IMAGES.get(case.width, min(CPU_IMAGES.values()))
            images = words.images or images
            data, folder = words.data, Path(temporary) / f"{number}"
            if data is None and not (data := Path(temporary) / f"{case.size}-{images}").exists():
                write_dataset(data, size=case.size, train=images, test=max(1, images // TEST_SHARE))
            (compare_losses if words.losses else compare)(case, data, folder, words)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--data", type=Path, help="a prepared dataset; default: random images")
    parser.add_argument("--limit", type=int, default=0, help="first images of --data; 0 = all")
    parser.add_argument("--images", type=int, default=0, help="random images; 0 = what suits the device")
    parser.add_argument("--tasks", nargs="+", choices=tuple(STAGES), default=tuple(STAGES))
    parser.add_argument("--widths", nargs="+", type=int, help="default: 16 and 64 on a CPU, 64 on a GPU")
    parser.add_argument("--sizes", nargs="+", type=int, help="default: 32 on a CPU, 32 and 64 on a GPU")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 128 on a CPU, 128 and 512 on a GPU")
    parser.add_argument(
        "--sides", nargs="+", default=(), help="sides whose name has one of these words; ours always"
    )
    parser.add_argument(
        "--precision", help="of ours, bare and plain torch; default: bf16 where there is such"
    )
    parser.add_argument("--mode", default="", help="of ours: eager, compiled, captured")
    parser.add_argument("--forwards", default="", help="of ours: apart, joined")
    parser.add_argument("--workers", type=int, default=0, help="of the reference; 0 = one a core, 8 at most")
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU; 0 = one a core")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--losses", type=int, default=0, metavar="STEPS")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput_epoch.jsonl")
    words = parser.parse_args()
    words.device = words.device or ("cuda" if torch.cuda.is_available() else "cpu")
    words.precision = words.precision or ("bf16" if has_bf16(torch.device(words.device)) else "auto")
    on_gpu = words.device == "cuda"
    held = [name for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ]
    if held and not (on_gpu or words.quick):
        raise SystemExit(f"{' and '.join(held)} would change how threads work: unset, then measure")
    if words.quick:
        words.turns, words.images = 1, words.images or 256
        words.widths, words.sizes, words.batches = (
            words.widths or [8],
            words.sizes or [32],
            words.batches or [128],
        )
    words.widths = words.widths or ([64] if on_gpu else sorted(CPU_IMAGES))
    words.sizes = words.sizes or (sorted(GPU_IMAGES) if on_gpu else [32])
    words.batches = words.batches or ([128, 512] if on_gpu else [128])
    words.workers = words.workers or min(8, torch.get_num_threads())
    return words


if __name__ == "__main__":
    main()
