"""Where a run runs: device, precision, ranks and threads, resolved once (on Accelerate) and stored."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, DistributedType
from torch import Tensor

from fastdrpl import __version__
from fastdrpl.config import EngineConfig
from fastdrpl.console import warn
from fastdrpl.errors import UserError
from fastdrpl.kernels import dispatch
from fastdrpl.modes import Ladder, build_ladder


@dataclass(frozen=True)
class Machine:
    """The processes of a run and what each computes on."""

    accelerator: Accelerator
    device: torch.device
    precision: str  # fp32, bf16 or fp16
    world: int
    rank: int
    threads: int
    ladder: Ladder = field(default_factory=Ladder)  # how steps are carried out

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks; a new tensor."""
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """Elementwise maximum over ranks; a new tensor."""
        values = values.clone()
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return values

    def stack(self, values: Tensor) -> Tensor:
        """One row a rank: (...) -> (world, ...)."""
        if self.world == 1:
            return values[None].clone()
        rows = [torch.empty_like(values) for _ in range(self.world)]
        torch.distributed.all_gather(rows, values)
        return torch.stack(rows)

    def from_main(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors by those of rank 0."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def highest(self, number: int) -> int:
        """The largest of the ranks' numbers; every rank must call it at the same point."""
        if self.world == 1:
            return number
        return int(self.maximum(torch.tensor(number, device=self.device)))

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            torch.distributed.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs on rank 0, then on the others."""
        with self.accelerator.main_process_first():
            yield

    def describe(self) -> dict[str, Any]:
        """For the manifest of the run."""
        cuda = self.device.type == "cuda"
        return {
            "device": str(self.device),
            "gpu": torch.cuda.get_device_name(self.device) if cuda else None,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "precision": self.precision,
            "ranks": self.world,
            "threads": self.threads,
            "mode": self.ladder.mode,
            "mode_reasons": list(self.ladder.reasons),
            "kernels": dispatch.describe(self.device),
        }


def build_machine(engine: EngineConfig, before: Mapping[str, Any] | None = None) -> Machine:
    """Start Accelerate as the launcher asked. `before`: what `Machine.describe` said when the run began.

    What is left open (precision, threads, mode) stays as it was before, since the bits of a result depend on it.

    Raises `UserError` for a device, precision, mode or number of ranks that cannot be had here.
    """
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--engine.device cuda, but torch sees no GPU", fix="`fastdrpl doctor` says what is missing"
        )
    cpu = engine.device == "cpu" or not torch.cuda.is_available()
    before = before or {}
    precision: str = engine.precision
    if precision == "auto":
        # Older GPUs and most CPUs emulate bf16, slowly.
        fast = bool(cpu_computes_bf16()) if cpu else torch.cuda.is_bf16_supported(including_emulation=False)
        precision = before.get("precision", "bf16" if fast else "fp32")
    if precision == "fp16" and cpu:
        raise UserError("--engine.precision fp16 needs a GPU", fix="use bf16 or fp32 on the CPU")
    if engine.sync_bn and cpu:
        raise UserError("--engine.sync_bn needs GPUs", fix="leave it out on the CPU")
    try:
        dispatch.describe(torch.device("cpu" if cpu else "cuda"))
        dispatch.debugging()
    except ValueError as error:  # what the environment asks for is nothing that there is
        raise UserError(
            str(error), where="the environment", fix="give one of these values, or unset it"
        ) from error
    mixed_precision = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # that of an earlier run in this process, which would refuse another precision
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        kwargs_handlers=[
            # Each weight is cast once in a forward pass: keeping it brings nothing, and in a captured step it would
            # be the weight of the capture for ever.
            AutocastKwargs(cache_enabled=False),
            # `Trainee.share_statistics` gives ranks the same statistics where they are used.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise UserError(
            f"Accelerate is set up for {accelerator.distributed_type.value}",
            where="`accelerate config`, or the launcher's flags",
            fix="use plain data parallelism: accelerate launch --multi_gpu",
        )
    say = warn if accelerator.process_index == 0 else lambda text: None
    if cpu and precision == "bf16" and cpu_computes_bf16() is False:
        say("this processor only emulates bf16, many times slower than fp32")
    world = accelerator.num_processes
    if engine.ranks and world < engine.ranks:
        raise UserError(
            f"{world} process{'es' * (world > 1)} started, but --engine.ranks asks for {engine.ranks}",
            where="the launcher",
            fix="on CPUs `accelerate launch --cpu` starts one process whatever it is told; use "
            f"`ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node {engine.ranks} -- fastdrpl/train.py ...`",
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    threads = before.get("threads", 0) if before.get("ranks") == world else 0
    resolved = engine.threads or threads or max(1, len(os.sched_getaffinity(0)) // local)
    # numba may share OpenMP with torch: when it starts its threads, it sets the number for both. So it starts first.
    numba.set_num_threads(min(resolved, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(resolved)  # launchers set it to 1, and a result's last bits depend on it
    if cpu:
        keep_freed_memory()
    torch.backends.cudnn.benchmark = not cpu
    # Convolutions of float32 would otherwise run in TF32, with 10 bits of mantissa: fp32 means fp32 here.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    ladder = build_ladder(
        engine.mode,
        before.get("mode"),
        cuda=not cpu,
        precision=precision,
        world=world,
        sync_bn=engine.sync_bn,
        debugging=dispatch.debugging(),
        say=say,
    )
    return Machine(
        accelerator, accelerator.device, precision, world, accelerator.process_index, resolved, ladder
    )


CPU_FLAGS = Path("/proc/cpuinfo")


def cpu_computes_bf16() -> bool | None:
    """Whether this processor multiplies bf16 itself (AVX512-BF16 or AMX); elsewhere torch emulates it, slowly.

    None where nothing is known: on other systems than Linux, and other processors than x86.
    """
    if not CPU_FLAGS.is_file():
        return None
    for line in CPU_FLAGS.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
    return None


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next step, which asks for the same sizes again.

    It would give maps of many MB back to the system, which hands out zeroed pages anew: 5 to 7 % of a step's time.
    Does nothing where the C library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)


def describe_versions() -> dict[str, str]:
    """Versions of Python, this package and what a result depends on."""
    packages = ("fastdrpl", "torch", "torchvision", "numpy", "scipy", "numba", "accelerate")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            versions[package] = __version__ if package == "fastdrpl" else "unknown"
    return versions
