"""Cells on this machine, several at once: a failed one stops no other, a signal stops all of them, saved."""

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fastdrpl.compare.cells import Cell
from fastdrpl.compare.children import Child, start_child
from fastdrpl.compare.display import Display
from fastdrpl.errors import UserError
from fastdrpl.signals import ASKED_TO_STOP

_PATIENCE = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True)
class Places:
    """Where cells run: `devices` has one entry a cell at once, a GPU or None; threads of each, 0 = as it likes."""

    devices: tuple[str | None, ...]
    threads: int = 0


@dataclass(frozen=True)
class Ending:
    """How a cell ended."""

    cell: Cell
    code: int
    error: str
    stopped: bool


def find_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process sees."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def choose_places(gpus: Sequence[str], jobs: int, per_gpu: int, cores: int) -> Places:
    """Places for `jobs` cells at once; 0 = `per_gpu` on each GPU, or one on a CPU.

    Raises UserError for numbers out of range, and for more cells than the GPUs are to hold.
    """
    for name, value, least in (("jobs", jobs, 0), ("per_gpu", per_gpu, 1)):
        if value < least:
            raise UserError(f"--{name} is {value}, wanted {least} or more")
    most = len(gpus) * per_gpu
    if gpus and jobs > most:
        raise UserError(
            f"--jobs {jobs} on {len(gpus)} GPU(s) is more than --per_gpu {per_gpu} allows",
            fix=f"give --per_gpu {-(-jobs // len(gpus))}, or at most --jobs {most}",
        )
    jobs = jobs or max(1, most)
    devices = [gpus[k % len(gpus)] if gpus else None for k in range(jobs)]
    return Places(tuple(devices), max(1, cores // jobs))


class _Signals:
    """Counts the signals that ask to stop, while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._note) for number in ASKED_TO_STOP}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def run_cells(
    cells: Sequence[Cell], out: Path, places: Places, display: Display
) -> tuple[list[Ending], bool]:
    """Run cells in order: -> how each that was started ended, and whether a signal stopped the work.

    The first signal is passed on to the running cells, which save and end; a second one ends them at once.
    """
    waiting, free = deque(cells), deque(places.devices)
    running: list[tuple[Child, str | None]] = []
    endings: list[Ending] = []
    passed_on = 0
    with _Signals() as signals, display:
        try:
            while running or (waiting and not signals.count):
                if signals.count > passed_on:
                    passed_on = signals.count
                    display.stopping()
                    for child, _ in running:
                        child.stop()
                while waiting and free and not signals.count:
                    cell, device = waiting.popleft(), free.popleft()
                    running.append((start_child(cell, out, threads=places.threads, device=device), device))
                    display.started(cell, device)
                for entry in [entry for entry in running if entry[0].process.poll() is not None]:
                    child, device = entry
                    running.remove(entry)
                    free.append(device)
                    ending = Ending(child.cell, *child.finish())
                    endings.append(ending)
                    display.ended(child.cell, ending.code, ending.error, child.seconds(), ending.stopped)
                display.refresh([child.cell for child, _ in running], len(waiting))
                time.sleep(_PATIENCE)
        finally:
            for child, _ in running:  # after an error of ours: no run goes on unseen
                child.stop()
                child.finish()
    return endings, signals.count > 0
