"""Rows of measurements: JSON lines that say what was measured, how often, on what and with which code.

On a shared machine only ratios count, and a ratio counts only when both sides ran in turns in one process, both
warmed up, and their outputs were compared: `measure_in_turns`.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.turns import measure_in_turns

__all__ = ["RESULTS", "measure", "measure_in_turns", "write_row"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "numba", "accelerate", "ffcv", "pillow")


def measure(function: Callable[[], object], *, warmup: int, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after `warmup` calls that do not count."""
    return measure_in_turns({"it": function}, warmup=warmup, repeats=repeats)["it"]


def write_row(
    path: Path,
    *,
    what: str,
    shape: Sequence[int],
    dtype: str,
    backend: str,
    seconds: Sequence[float],
    warmup: int,
    threads: int,
    **more: Any,
) -> dict[str, Any]:
    """Append one measurement to a .jsonl file and return it. `more`: figures of this bench, such as a ratio."""
    p20, p50, p80 = (float(value) for value in np.percentile(seconds, (20, 50, 80)))
    row = {
        "what": what,
        "shape": list(shape),
        "dtype": dtype,
        "backend": backend,
        "p20": p20,
        "p50": p50,
        "p80": p80,
        "n": len(seconds),
        "warmup": warmup,
        **more,
        "threads": threads,
        **describe_machine(),
        **describe_code(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def describe_machine() -> dict[str, Any]:
    """Processor, cores and load; accelerator and driver (None where torch is not loaded or has none)."""
    accelerator = driver = None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "hardware": {"processor": _processor(), "cores": cores, "accelerator": accelerator},
        "load": round(os.getloadavg()[0], 2),
        "driver": driver,
    }


def describe_code() -> dict[str, Any]:
    """Versions of Python and of what is installed, the commit, and whether the tree differs from it.

    Where the repository did not travel with its files, FASTDRPL_COMMIT says which commit they are.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    status = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {
        "versions": versions,
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD") or os.environ.get("FASTDRPL_COMMIT"),
        "dirty": None if status is None else status != "",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails (a row without a commit is still a row)."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
