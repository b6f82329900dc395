"""The plain way: a torch DataLoader whose processes read and decode one image at a time. The reference for the others.

It needs no memory for the whole set and works for every store. Labels are not its business, so its processes
can never hold stale ones.
"""

import errno
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import check_source_rows, decode_row, map_file
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.staging import HostBatch, stage

PATIENCE = 50  # seconds without a batch after which the processes count as dead
CHECK = 2  # seconds after which it is looked whether they live
SHARED = "/dev/shm"  # where batches pass from process to process


class _NoRoom(NamedTuple):
    """A batch that found no room in the shared memory."""

    said: str


Answer = tuple[torch.Tensor, torch.Tensor] | DataError | _NoRoom  # pixels and index, or why not


class WorkerLoader:
    """Batches decoded by `workers` processes (0: by this one), with rows 0..B-1.

    `source_row`: (N,) int64, the row of `split` whose pixels sample i shows. Each epoch has processes of its own,
    which end with it: at its last batch, when its iterator is closed or dropped, or with `close`. An image that
    does not decode raises DataError with file and row; a process that dies, or finds no room in the shared memory,
    UserError within seconds, one that hangs within a minute.
    """

    def __init__(
        self, split: Split, source_row: np.ndarray, device: torch.device | str = "cpu", workers: int = 2
    ) -> None:
        if workers < 0:
            raise UserError(f"loader processes: got {workers}, want 0 or more")
        check_source_rows(split, source_row)
        self.device, self.workers = torch.device(device), workers
        self._images = _Images(split, source_row)
        self._epochs: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def epoch(self, order: Order, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an order from a step on."""
        batches = stage(self._read(order, start_step), self.device)
        self._epochs.add(batches)
        return batches

    def close(self) -> None:
        """End the processes of every epoch still under way."""
        for batches in list(self._epochs):
            batches.close()

    def _read(self, order: Order, start_step: int) -> Generator[HostBatch, None, None]:
        loader = DataLoader(
            self._images,
            batch_sampler=_Steps(order, start_step),  # type: ignore[arg-type]  # arrays do as lists do
            num_workers=self.workers,
            collate_fn=_as_it_is,
            timeout=min(CHECK, PATIENCE) if self.workers else 0,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        try:
            answers = _start(loader)
        except OSError as error:
            raise self._failed(str(error), full=error.errno == errno.ENOSPC) from None
        try:
            while (answer := self._next(answers)) is not None:
                if isinstance(answer, DataError):
                    raise answer
                if isinstance(answer, _NoRoom):
                    raise self._failed(answer.said, full=True)
                yield HostBatch(*answer)
        finally:
            del answers, loader  # the last references: this ends the processes

    def _next(self, answers: Iterator[Answer]) -> Answer | None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return next(answers, None)
            except (
                RuntimeError,
                OSError,
                EOFError,
            ) as error:  # the last two: it died while it handed over a batch
                if not self.workers:
                    raise
                waiting = "timed out" in str(error)
                codes = _exit_codes(answers, 0 if waiting else CHECK)
                if not codes and waiting and time.monotonic() < deadline:
                    continue  # torch has looked whether they live: they do, and it can be asked again
                # Without its traceback, whose frames would keep the processes alive.
                full = -signal.SIGBUS in codes or getattr(error, "errno", None) == errno.ENOSPC
                raise self._failed(str(error), full=full, codes=codes) from error.with_traceback(None)

    def _failed(self, said: str, *, full: bool, codes: Sequence[int] = ()) -> UserError:
        """The error for processes that gave nothing, with the likely cause."""
        where = str(self._images.split.path)
        if full:
            return UserError(
                f"the loader processes find no room in the shared memory ({_shared_memory()}): {said}",
                where=where,
                fix="make it larger (docker run --shm-size 2g), or use --engine.workers 0 or --engine.loader resident",
            )
        if -signal.SIGKILL in codes:
            return UserError(
                f"a loader process died: it was killed (signal {signal.SIGKILL:d}), as the kernel does when "
                "memory runs out",
                where=where,
                fix="use fewer loader processes (--engine.workers) or a smaller batch; 0 reads in the main process",
            )
        died = f" (exit code {codes[0]})" if codes else ""
        return UserError(
            f"a loader process died{died} or gave nothing for {PATIENCE} s: {said}",
            where=where,
            fix="if memory ran out, use fewer loader processes; 0 reads in the main process",
        )


def _exit_codes(answers: Iterator[Answer], patience: float) -> list[int]:
    """Of the processes that have ended badly: their exit codes, or minus the signal that killed them.

    A process whose line is cut is about to end: so many seconds are waited for one to do so.
    """
    deadline = time.monotonic() + patience
    while True:
        codes = [code for process in getattr(answers, "_workers", ()) if (code := process.exitcode)]
        if codes or time.monotonic() >= deadline:
            return codes
        time.sleep(0.02)


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage(SHARED)
    except OSError as error:
        return f"{SHARED}: {error.strerror}"
    return f"{SHARED} has {usage.total / 2**20:,.1f} MB, {usage.free / 2**20:,.1f} MB of them free"


def _start(loader: DataLoader[Any]) -> Iterator[Answer]:
    """Start the processes. torch would raise wherever this process is when one of them dies; we ask when we wait."""
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    answers = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return answers


class _Steps:
    """The sample index of each step that is left: what torch calls a batch sampler."""

    def __init__(self, order: Order, start_step: int) -> None:
        self.order, self.start_step = order, start_step

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.order[step] for step in range(self.start_step, len(self.order)))

    def __len__(self) -> int:
        return max(0, len(self.order) - self.start_step)


class _Images(Dataset[Any]):
    """Pixels by sample index, a batch at a time."""

    def __init__(self, split: Split, source_row: np.ndarray) -> None:
        self.split, self.source_row = split, source_row
        self.file = map_file(split)

    def __reduce__(self) -> tuple[Any, ...]:
        # Where processes are not forked: each maps the file itself, rather than getting all its bytes.
        return _Images, (self.split, self.source_row)

    def __getitems__(self, index: np.ndarray) -> Answer:
        pixels = np.empty((len(index), self.split.height, self.split.width, 3), np.uint8)
        try:
            for place, row in enumerate(self.source_row[index]):
                pixels[place] = decode_row(self.split, self.file, int(row))
        except DataError as error:
            return error  # raised across processes it would become a text with a traceback
        batch = torch.from_numpy(pixels), torch.from_numpy(index.copy())
        if get_worker_info() is not None:
            try:  # here, where it can be told: in the thread that hands it over nobody would learn of it
                for tensor in batch:
                    tensor.share_memory_()
            except (RuntimeError, OSError) as error:
                return _NoRoom(str(error).split("\n")[0][:200])
        return batch


def _as_it_is(answer: Any) -> Any:
    return answer
