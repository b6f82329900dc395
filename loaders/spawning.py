"""Worker processes that Ctrl-C does not reach: the process that started them stops, and ends them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool(ProcessPoolExecutor):
    """The usual pool of spawned processes; a terminal's Ctrl-C is for the process that has the pool alone.

    A terminal sends it to every process of a command: each worker would print where it was, and a pool that is
    interrupted while it starts a process loses that process.
    """

    def __init__(self, workers: int, initializer: Callable[[], None]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork may copy a lock that another thread holds
        super().__init__(workers, mp_context=context, initializer=initializer)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As usual; processes that start here inherit, from their first instruction on, that Ctrl-C is held."""
        with hold_interrupts():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Ctrl-C that comes inside the block is answered at its end."""
    came = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # Another thread may still take the signal, and then Python interrupts the main one all the same.
    handler = signal.signal(signal.SIGINT, note) if is_main else None
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if came:
            signal.raise_signal(signal.SIGINT)
