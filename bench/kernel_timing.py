"""Sides of a comparison timed in turns beside the device's own copy: what `throughput_kernels.py` measures with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.rows import measure_in_turns, write_row

WARMUP = 3
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
    half: bool = True  # bf16 on a GPU

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of network inputs and logits."""
        return torch.bfloat16 if self.on_gpu and self.half else torch.float32

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.on_gpu else torch.contiguous_format


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
