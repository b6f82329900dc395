"""What grows with samples, classes and ranks: seconds of every part of a run, and its peak memory beside the estimate.

    python bench/growth.py            # the whole, a few minutes
    python bench/growth.py --quick    # a rehearsal with small sizes

The claim: nothing grows faster than linearly with the number of samples N or of classes C, and the memory that a run
says it will take is within 15 % of what it takes. The network is one linear layer on random images of 8x8 pixels, so
that what is measured is the bookkeeping around it: images/s here say nothing of a real training. The cases with a
width are of PreAct ResNet-18, for what its activations take.
Each case is a whole run (method joint, two epochs with relabelling and one without) in a process of its own, its
peak is the kernel's (ru_maxrss). Rows go to bench/results/growth.jsonl.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the repository, not this folder

import numpy as np

from bench.rows import RESULTS, write_row

SIDE, TEST = 8, 1_000
PARTS = {  # what is timed, and as which part; a part may contain others
    "fastdrpl.run.open_beginning": "begin",
    "fastdrpl.loop.plan_rounds": "order",
    "fastdrpl.loop.train_epoch": "steps",
    "fastdrpl.loop.take": "looks",
    "fastdrpl.methods.drpl.Relabel.refresh": "relabelling",
    "fastdrpl.loop.judge": "detection",
    "fastdrpl.state.RunState.save": "checkpoints",
    "fastdrpl.results.build_table": "table",
    "fastdrpl.results.write_table": "table written",
    "fastdrpl.results.write_pages": "report",
    "fastdrpl.run.finish": "end",
}
WARM_UP = 2  # cases: a small set and a large one, for which detection compiles different functions
LINEAR = 1.15  # exponent of the growth from which on a part is named


class Case(NamedTuple):
    """One run."""

    samples: int
    classes: int
    ranks: int = 1
    width: int = 0  # of PreAct ResNet-18; 0 = one linear layer
    batch: int = 2048
    ring: str = "auto"


FULL = [
    *(Case(samples, 10) for samples in (5_000, 50_000, 500_000)),
    *(Case(50_000, classes) for classes in (100, 1_000)),
    Case(50_000, 1_000, ring="file"),
    Case(50_000, 10, ranks=2),
    Case(50_000, 100, ranks=2),
    Case(1_100, 10, width=16, batch=1024),
    Case(1_100, 10, width=64, batch=512),
]
QUICK = [
    Case(2_000, 10),
    Case(20_000, 10),
    Case(2_000, 100, ring="file"),
    Case(2_000, 10, ranks=2),
    Case(600, 10, width=16, batch=300),
]


def make_data(folder: Path, samples: int, classes: int) -> Path:
    """A prepared data set of random images."""
    from fastdrpl.loaders import prepare as module
    from fastdrpl.loaders.prepare_config import PrepareConfig
    from fastdrpl.loaders.sources.source import OpenedSource, Part, Piece

    out = folder / f"data-{samples}-{classes}"
    if out.exists():
        return out
    draw = np.random.default_rng(0)

    def part(count: int) -> Part:
        images = draw.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)

        def read(row: int) -> Iterator[Piece]:
            for start in range(row, count, 4096):
                yield Piece(images[start : start + 4096], [])

        return Part(draw.permutation(np.arange(count) % classes).astype(np.int64), None, read)

    source = OpenedSource(
        kind="digits",
        name="random",
        fingerprint="0" * 64,
        class_names=tuple(f"class {number}" for number in range(classes)),
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        flip=True,
        pad=1,
        height=SIDE,
        width=SIDE,
        parts={"train": part(samples), "test": part(max(TEST, classes))},
    )
    with (
        mock.patch.object(module, "open_source", lambda config: source),
        mock.patch.object(module, "_find_problems", lambda *_: {}),
    ):
        module.prepare(PrepareConfig(kind="digits", out=out), quiet=True)
    return out


def words_of(case: Case, data: Path, run: Path) -> list[str]:
    """The command line of a case."""
    settings: dict[str, Any] = {
        "method": "joint",
        "data": data,
        "run": run,
        "model.width": case.width or 64,
        "augment.size": SIDE,
        "augment.pad": 1,
        "batch_size": case.batch,
        "engine.threads": 2 // case.ranks,
        "engine.eval_batch": 2_000,
        "engine.ring": case.ring,
        "detect.collapse": "relax",
        "joint.relabel.epochs": 2,
        "joint.given_epochs": 1,
        "joint.retrain.epochs": 1,
        "optimiser.lr": 0.01,
    }
    return ["train", "digits", *(str(word) for name in settings for word in (f"--{name}", settings[name]))]


def linear(classes: int, width: int) -> Any:
    """Means of 2x2 pixels and one linear layer."""
    from torch import nn

    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3 * (SIDE // 2) ** 2, classes))


def child(words: list[str], out: Path, width: int) -> None:
    """Carry out a command line with every part timed; a file says what it took."""
    import importlib

    from fastdrpl import models
    from fastdrpl.cli import main

    if width == 0:
        models._MODELS["preact_resnet18"] = linear
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
                peaks[part] = peak()

        return wrapper

    for place, part in PARTS.items():
        path, _, name = place.rpartition(".")
        try:
            owner = importlib.import_module(path)
        except ModuleNotFoundError:  # a method of a class
            module, _, kind = path.rpartition(".")
            owner = getattr(importlib.import_module(module), kind)
        setattr(owner, name, timed(getattr(owner, name), part))
    start = time.perf_counter()
    code = main(words)
    seconds["whole"] = time.perf_counter() - start
    out.write_text(json.dumps({"seconds": seconds, "peak": peak(), "peaks": peaks}))
    sys.exit(code)


def peak() -> int:
    """Bytes that this process has had in main memory at most, up to now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case: seconds of its parts, bytes of its peak and of the estimate, on the rank that has most."""
    data = make_data(folder, case.samples, case.classes)
    run = Path(tempfile.mkdtemp(dir=folder, prefix="run-")) / "run"
    words = words_of(case, data, run)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, files = [], []
    for rank in range(case.ranks):
        files.append(run.parent / f"rank{rank}.json")
        together = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": case.ranks,
            "LOCAL_WORLD_SIZE": case.ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
        }
        environment = {**os.environ, **{name: str(value) for name, value in together.items()}}
        command = [sys.executable, __file__, "--child", str(files[-1]), str(case.width), *words]
        log = (run.parent / f"rank{rank}.log").open("w")
        processes.append(
            subprocess.Popen(
                command,
                env=environment if case.ranks > 1 else None,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    codes = [process.wait() for process in processes]
    if any(codes):
        text = (run.parent / "rank0.log").read_text()
        raise SystemExit(f"{case} ended with {codes}:\n{text[-3000:]}")
    found = [json.loads(file.read_text()) for file in files]
    manifest = json.loads((run / "manifest.json").read_text())
    mapped = sum(path.stat().st_size for path in data.glob("*.beton"))
    return {
        "seconds": found[0]["seconds"],
        "peak": max(each["peak"] for each in found),
        "peaks": found[0]["peaks"],
        # The estimate is of what has to be in memory; pages of mapped files are there while there is room: the images,
        # and of the ring the two slots of ten that were written.
        "estimate": sum(manifest["memory"]["host"].values()) + mapped + manifest["memory"]["file"] // 5,
        "parts": manifest["memory"]["host"],
        "precision": manifest["machine"]["precision"],
        "images_per_second": 3 * case.samples / found[0]["seconds"]["steps"],
    }


def growth(small: float, large: float, factor: float) -> float:
    """The exponent k of t ~ size^k between two sizes."""
    return math.log(max(large, 1e-9) / max(small, 1e-9)) / math.log(factor)


def report(found: dict[Case, dict[str, Any]]) -> None:
    """Tables of the seconds by part and of the memory."""
    by_samples = sorted(case for case in found if case[1:] == (10, 1, 0, 2048, "auto"))
    names = [*dict.fromkeys(PARTS.values()), "whole"]
    print("| seconds | " + " | ".join(f"N = {case.samples:,}" for case in by_samples) + " | growth |")
    print("|" + "---|" * (len(by_samples) + 2))
    before, last = by_samples[-2:]
    for name in names:
        times = [found[case]["seconds"].get(name, 0.0) for case in by_samples]
        power = growth(*times[-2:], last.samples / before.samples)
        mark = f"N^{power:.2f}" + (" **faster than linear**" if power > LINEAR and times[-1] > 0.5 else "")
        print(f"| {name} | " + " | ".join(f"{t:.2f}" for t in times) + f" | {mark} |")
    print("\n| N | C | ranks | ring | images/s | estimate | peak of a rank | |")
    print("|---|---|---|---|---|---|---|---|")
    for case, row in found.items():
        note = f"width {case.width}, batch {case.batch}, ring {case.ring}"
        off = row["estimate"] / row["peak"] - 1
        print(
            f"| {case.samples:,} | {case.classes:,} | {case.ranks} | {note} | {row['images_per_second']:,.0f} | "
            f"{row['estimate'] / 1e6:,.0f} MB | {row['peak'] / 1e6:,.0f} MB | {off:+.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is stored")
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.jsonl")
    options = parser.parse_args()
    found: dict[Case, dict[str, Any]] = {}
    cases = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        for case in cases[:WARM_UP]:  # the first run of an installation compiles
            measure(case, Path(folder))
        for case in cases:
            row = found[case] = measure(case, Path(folder))
            print(f"{case}: {row['seconds']['whole']:.1f} s, {row['parts']}", file=sys.stderr)
            if not options.quick:
                write_row(
                    options.out,
                    what="run",
                    shape=[case.samples, SIDE, SIDE, 3],
                    dtype=row["precision"],
                    backend=f"C {case.classes}, ranks {case.ranks}, width {case.width}, batch {case.batch}, "
                    f"ring {case.ring}",
                    seconds=[row["seconds"]["whole"]],
                    warmup=1,
                    threads=2 // case.ranks,
                    parts=row["seconds"],
                    peak_bytes=row["peak"],
                    estimated_bytes=row["estimate"],
                    images_per_second=row["images_per_second"],
                )
    report(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[4:], Path(sys.argv[2]), int(sys.argv[3]))
    with contextlib.suppress(KeyboardInterrupt):
        main()
