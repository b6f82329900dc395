"""How the cells get on: one live table on a terminal, a plain line at each start and end where it is piped."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fastdrpl.compare.cells import Cell
from fastdrpl.errors import DataError
from fastdrpl.files import read_json
from fastdrpl.journal import read_journal

_SECONDS_BETWEEN_LOOKS = 1.0


class Display:
    """The progress of all cells on standard error. `done` cells of `total` were finished before."""

    def __init__(self, out: Path, total: int, done: int, *, stream: TextIO | None = None) -> None:
        self._out, self._total = out, total
        self._stream = sys.stderr if stream is None else stream
        self._before = self._done = done
        self._failed, self._stopping = 0, False
        self._began, self._looked = time.monotonic(), 0.0
        self._live: Any = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, cell: Cell, device: str | None) -> None:
        """A cell begins, or goes on."""
        if self._live is None:
            self._print(f"start   {cell.name}{f' on GPU {device}' if device is not None else ''}")

    def ended(self, cell: Cell, code: int, error: str, seconds: float, stopped: bool) -> None:
        """A cell has ended: well, with an error, or stopped by a signal."""
        self._done += code == 0
        self._failed += code != 0 and not stopped
        if code == 0:
            self._print(f"done    {cell.name} in {duration(seconds)}{self._figures(cell)} ({self._count()})")
        elif stopped:
            self._print(f"stopped {cell.name}; the same command continues it")
        else:
            self._print(f"FAILED  {cell.name} (exit {code}): {error}\n        log: {cell.log(self._out)}")

    def stopping(self) -> None:
        """A signal was passed on to the running cells."""
        self._stopping = True
        self._print("stopping: the running cells save and end; a second signal ends them at once")

    def refresh(self, running: Sequence[Cell], waiting: int) -> None:
        """Look at the running cells, now and then."""
        now = time.monotonic()
        if self._live is None or now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        self._live.update(self._table(running, waiting), refresh=True)

    def _print(self, text: str) -> None:
        if self._live is None:
            print(text, file=self._stream, flush=True)
        else:
            self._live.console.print(text, markup=False, soft_wrap=True)

    def _count(self) -> str:
        return f"{self._done} of {self._total}"

    def _figures(self, cell: Cell) -> str:
        with contextlib.suppress(DataError, KeyError, TypeError):
            accuracy = read_json(cell.folder(self._out) / "result.json")["accuracy"]
            return f", best {accuracy['best']:.2%}, last {accuracy['last']:.2%}"
        return ""  # without test images, or of a later version: the tables say it

    def _table(self, running: Sequence[Cell], waiting: int) -> Any:
        from rich.table import Table
        from rich.text import Text

        parts = [f"{self._count()} done", f"{len(running)} running", f"{waiting} waiting"]
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += [f"about {duration(left)} left"] if (left := self._left(running, waiting)) else []
        parts += ["stopping"] if self._stopping else []
        table = Table(title=", ".join(parts), title_justify="left", box=None, pad_edge=False)
        table.add_column("cell", overflow="fold")
        for name in ("stage", "epoch", "images/s", "test", "stage left"):
            table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
        for cell in running:
            table.add_row(Text(cell.name), *look_at(cell.folder(self._out)))
        return table

    def _left(self, running: Sequence[Cell], waiting: int) -> float | None:
        """Seconds until all is done, from how quickly it went so far; None before the first cell has ended."""
        ended = self._done - self._before
        if not ended:
            return None
        return (time.monotonic() - self._began) / ended * (waiting + len(running) / 2)


def look_at(folder: Path) -> tuple[str, str, str, str, str]:
    """Stage, epoch, images per second, test accuracy and time left in the stage of a run; empty where unknown."""
    try:
        progress = read_json(folder / "progress.json")
        records = read_journal(folder / "metrics.jsonl")
        tested = [r["test_accuracy"] for r in records if r.get("test_accuracy") is not None]
        left = progress.get("stage_seconds_left")
        return (
            progress["stage"],
            f"{progress['epoch']}/{progress['epochs']}",
            f"{progress['images_per_second']:,.0f}",
            f"{tested[-1]:.2%}" if tested else "",
            "" if left is None else duration(left),
        )
    except (DataError, KeyError):  # it has just started, or just ended
        return ("starting", "", "", "", "")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
