"""A three-stage run that takes a second or two, and how tests compare two of them."""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import pyarrow.parquet
import torch

COMMON = [
    *("train", "digits"),
    *("--limit", "160"),
    *("--limit_test", "60"),
    *("--batch_size", "32"),
    *("--model.width", "4"),
    *("--engine.threads", "1"),
    *("--engine.precision", "fp32"),  # the same figures on every processor
    *("--engine.eval_batch", "80"),
    *("--noise.ratio", "0.2"),
]
DRPL = [
    *("--drpl.relabel.epochs", "6"),
    *("--drpl.relabel.milestones", "4"),
    *("--drpl.given_epochs", "3"),
    *("--drpl.average", "3"),
    *("--drpl.gamma1", "0.5"),
    *("--drpl.semi1.epochs", "4"),
    *("--drpl.semi1.milestones", "3"),
    *("--drpl.semi2.epochs", "4"),
    *("--drpl.semi2.milestones", "3"),
]
WORDS = [*COMMON, *DRPL]

# Forked from a process that has imported everything: a start costs nothing, a kill is a real one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["fastdrpl.run", "fastdrpl.report.summary", "fastdrpl.recipes", "toy"])


def command(words, run: Path) -> None:
    """The body of a process: carry out a command line and leave with its exit code; output goes to run.log."""
    from fastdrpl.cli import main

    log = open(run.with_suffix(".log"), "a", buffering=1)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = sys.stderr = log
    sys.exit(main([*words, "--run", str(run)]))


def _as_rank(function, rank: int, world: int, port: int, arguments) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    function(*arguments)


def on_ranks(function, world: int, *arguments) -> None:
    """Run a function in `world` processes that know of each other (gloo); it must end well in each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        FORKS.Process(target=_as_rank, args=(function, k, world, port, arguments)) for k in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world


def start(run: Path, *extra: str):
    """A process that trains the toy run in a folder."""
    process = FORKS.Process(target=command, args=([*WORDS, *extra], run))
    process.start()
    return process


def train(run: Path, *extra: str) -> int:
    """Train to the end; the exit code."""
    process = start(run, *extra)
    process.join(240)
    return process.exitcode


def log_of(run: Path) -> str:
    return run.with_suffix(".log").read_text()


def wait_until(condition, seconds=60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def last_tensors(run: Path, position: int = -1):
    """Weights, momentum and label store of a stage's end."""
    from fastdrpl.checkpoint import list_checkpoints, read_checkpoint

    ends = [path for path in list_checkpoints(run / "checkpoints") if "-stage-" in path.name]
    return read_checkpoint(ends[position]).tensors


def without_times(value):
    if isinstance(value, dict):
        return {
            k: without_times(v)
            for k, v in value.items()
            if k not in ("seconds", "images_per_second", "machine", "identity")
        }
    return [without_times(v) for v in value] if isinstance(value, list) else value


def outcome(run: Path):
    """Everything of a finished run that must not depend on interruptions; tensors apart."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    return (
        without_times(metrics),
        without_times(result),
        pyarrow.parquet.read_table(run / "labels.parquet").to_pylist(),
    )


def differing(a, b) -> list[str]:
    """Names of tensors that are not the same to the bit."""
    assert a.keys() == b.keys()
    return [
        name
        for name in a
        if a[name].shape != b[name].shape
        or not torch.equal(
            a[name].contiguous().view(-1).view(torch.uint8), b[name].contiguous().view(-1).view(torch.uint8)
        )
    ]
