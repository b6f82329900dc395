"""`fastdrpl doctor`: what this machine has, what is missing, and the exact command that installs it.

Packages that are slow or able to crash are imported in processes of their own; this one imports none of them.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastdrpl.kernels.cpu import numba_cache
from fastdrpl.loaders.errors import UserError

CORE = {
    "torch": "2.11",
    "torchvision": "0.26",
    "numpy": "1.26",
    "numba": "0.61",
    "accelerate": "1.10",
}  # the oldest
FFCV = "ffcv==1.0.2"
DALI = "nvidia-dali-cuda130>=2.4"
SYSTEM_PACKAGES = "libopencv-dev libturbojpeg0-dev pkg-config"
_SYSTEM_LIBRARIES = {"OpenCV": "opencv4", "turbojpeg": "libturbojpeg"}  # name -> pkg-config module
_TEST_BYTES = 64 << 20
_IMPORT_SECONDS = 120
_TORCH_PROBE = """
import json, torch, torchvision
gpus = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
print(json.dumps({"cuda": torch.version.cuda, "usable": torch.cuda.is_available(),
                  "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
"""
_MARKS = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[bold red]missing[/]"}


@dataclass(frozen=True)
class Finding:
    """One line of the table. `optional`: works without it; `missing`: fastdrpl cannot run as it should."""

    name: str
    value: str
    state: Literal["ok", "optional", "missing"] = "ok"
    fix: str | None = None  # a command, or what to do


def doctor(path: Path | None, console: Console | None = None) -> int:
    """Print what this machine has; `path` is the folder whose disk is measured (default: the current one).

    Returns 0, or 1 if something is missing that every run needs. Raises UserError if `path` is no folder.
    """
    folder = Path.cwd() if path is None else path
    if not folder.is_dir():
        raise UserError("there is no such folder", where=str(folder), fix="make it, or name another one")
    console = console or Console()
    with console.status("looking around"):
        findings = examine(folder)
    table = Table(box=None, pad_edge=False)
    for column in ("", "found", ""):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.name, escape(finding.value), _MARKS[finding.state])
    console.print(table)
    for state, head in (("missing", "To make it work"), ("optional", "To have more")):
        fixes = dict.fromkeys(finding.fix for finding in findings if finding.state == state and finding.fix)
        if fixes:
            console.print(f"\n[bold]{head}[/]")
            for fix in fixes:
                console.print(f"  {fix}", markup=False, highlight=False, soft_wrap=True)
    return int(any(finding.state == "missing" for finding in findings))


def examine(folder: Path) -> list[Finding]:
    """Every finding, in the order they are printed; takes some seconds, as packages are tried out."""
    probes = {"torch": _TORCH_PROBE, "ffcv": "import ffcv", "dali": "import nvidia.dali"}
    with ThreadPoolExecutor() as pool:
        tried = dict(zip(probes, pool.map(try_python, probes.values()), strict=True))
    return [
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        *check_packages(tried["torch"]),
        *check_gpus(tried["torch"], driver_version()),
        *check_extras(tried["ffcv"], tried["dali"]),
        *check_machine(),
        check_disk(folder),
        check_numba_cache(),
    ]


@dataclass(frozen=True)
class Trial:
    """What became of a few lines of Python in a process of their own."""

    works: bool
    text: str  # standard output, or the last line of the error


def try_python(code: str) -> Trial:
    """Run `code` in a new interpreter like this one; never raises for what the code does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, f"no answer after {_IMPORT_SECONDS} s")
    if done.returncode == 0:
        return Trial(True, done.stdout.strip())
    lines = done.stderr.strip().splitlines()
    return Trial(False, lines[-1] if lines else f"ended with code {done.returncode}")


def check_packages(torch: Trial) -> Iterator[Finding]:
    """The packages every run needs: there, new enough, and torch with torchvision importable."""
    for package, oldest in CORE.items():
        found = _version(package)
        if found and _release(found) >= _release(oldest):
            yield Finding(package, found)
        else:
            value = f"{found or 'not installed'}, needs {oldest} or newer"
            yield Finding(package, value, "missing", _pip(f"{package}>={oldest}"))
    if _version("torch") and not torch.works:
        yield Finding(
            "import torch, torchvision", torch.text, "missing", _pip("--force-reinstall torch torchvision")
        )
    triton = _version("triton")
    yield Finding("triton", triton or "not installed (GPU kernels only)", "ok" if triton else "optional")


def check_gpus(torch: Trial, driver: str | None) -> Iterator[Finding]:
    """The GPUs torch can use, or why it cannot; `driver` is the version of NVIDIA's, if there is one."""
    seen = json.loads(torch.text) if torch.works else {"cuda": None, "usable": False, "gpus": []}
    for number, (name, memory) in enumerate(seen["gpus"] if seen["usable"] else []):
        yield Finding(
            f"GPU {number}", f"{name}, {memory / 2**30:.0f} GiB, driver {driver}, CUDA {seen['cuda']}"
        )
    if seen["usable"]:
        return
    if driver is None:
        yield Finding("GPU", "no NVIDIA driver found; runs on the CPU", "optional")
    elif seen["cuda"] is None:
        fix = _pip("--force-reinstall torch torchvision")
        yield Finding("GPU", f"driver {driver}, but this torch is built without CUDA", "missing", fix)
    else:
        fix = f"update the NVIDIA driver to one for CUDA {seen['cuda']}, then restart the machine"
        yield Finding("GPU", f"driver {driver} does not work with CUDA {seen['cuda']}", "missing", fix)


def driver_version() -> str | None:
    """The version of the NVIDIA driver; None where `nvidia-smi` is missing or finds no GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def check_extras(ffcv: Trial, dali: Trial) -> Iterator[Finding]:
    """The two optional loaders and, where FFCV is not there yet, the system libraries it is compiled with."""
    if not ffcv.works:
        lacking = list(_lacking_libraries())
        value = f"not found: {', '.join(lacking)}" if lacking else "there"
        fix = _install_system_packages()
        yield Finding("libraries to compile ffcv", value, "optional" if lacking else "ok", fix)
    yield _extra("ffcv", "ffcv", ffcv, _pip(FFCV))
    if sys.platform == "linux" and platform.machine() == "x86_64":
        yield _extra("DALI", "nvidia-dali-cuda130", dali, _pip(DALI))
    else:
        yield Finding("DALI", "made for Linux on x86-64 only", "optional")


def _extra(name: str, package: str, trial: Trial, fix: str) -> Finding:
    version = _version(package)
    if trial.works:
        return Finding(name, version or "importable")
    return Finding(
        name, f"{version} does not import: {trial.text}" if version else "not installed", "optional", fix
    )


def _lacking_libraries() -> Iterator[str]:
    if shutil.which("pkg-config") is None:
        yield "pkg-config"  # without it nothing can be said of the others
        return
    for name, module in _SYSTEM_LIBRARIES.items():
        if subprocess.run(["pkg-config", "--exists", module], timeout=30).returncode:
            yield name


def check_machine() -> Iterator[Finding]:
    """Cores and memory that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", f"{usable} of {os.cpu_count()}")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # what a container may use
    text = limit.read_text().strip() if limit.is_file() else "max"
    yield Finding("memory", f"{min(total, int(text) if text.isdigit() else total) / 2**30:.1f} GiB")


def check_disk(folder: Path) -> Finding:
    """Free space, and the speed of writing (synced) and reading back 64 MiB, in MB/s."""
    name, free = f"disk of {folder}", shutil.disk_usage(folder).free
    if free < 2 * _TEST_BYTES:
        fix = f"free some space on the disk of {folder}"
        return Finding(name, f"only {free / 1e6:.0f} MB free", "missing", fix)
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            start = time.perf_counter()
            for _ in range(_TEST_BYTES >> 20):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter()
            if hasattr(os, "posix_fadvise"):  # else the page cache would answer
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            reread = time.perf_counter()
            while file.read(1 << 20):
                pass
            end = time.perf_counter()
    except OSError as error:
        fix = f"allow writing to {folder}, or name another folder"
        return Finding(name, f"cannot be written: {error.strerror}", "missing", fix)
    write, read = (_TEST_BYTES / 1e6 / seconds for seconds in (written - start, end - reread))
    return Finding(name, f"{free / 1e9:.0f} GB free, writes {write:.0f} MB/s, reads {read:.0f} MB/s")


def check_numba_cache() -> Finding:
    """Whether compiled kernels can be kept between runs."""
    with warnings.catch_warnings(record=True):
        folder = numba_cache()
    if folder is None:
        fix = "export NUMBA_CACHE_DIR=FOLDER, with a folder that can be written"
        return Finding(
            "compiled kernels", "cannot be kept: every start is some seconds slower", "optional", fix
        )
    return Finding("compiled kernels", f"kept in {folder}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 15, 0) of 2.15.0+cu130. (packaging could do it, and may be missing.)"""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()


def _pip(what: str) -> str:
    words = what.split()
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.join(words)}"


def _install_system_packages() -> str:
    if shutil.which("apt-get") is None:
        return f"install with your package manager what Debian calls {SYSTEM_PACKAGES}"
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {SYSTEM_PACKAGES}"
