"""Progress of long work: a bar on a terminal, else a plain line every few seconds. Written to stderr."""

import sys
import time
from types import TracebackType
from typing import Any, TextIO

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows how much is done, the rate and the time left.

    `with Progress("train", total, unit="images") as bar: bar.advance(n)`; `bar.note(text)` changes a text at
    the end of the line. `start` is what an earlier process has done: it counts as done, not for the rate.
    `total=None` means unknown. `quiet=True` shows nothing.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "images",
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.start = label, total, unit, start
        self.done, self.text, self.quiet = start, "", quiet
        self._stream = sys.stderr if stream is None else stream
        self._began = self._shown = time.monotonic()
        self._printed: tuple[int, str] | None = None  # what the last plain line was about
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._began = self._shown = time.monotonic()
        if not self.quiet and self._stream.isatty():
            self._bar, self._task = _rich_bar(self)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet and self._printed != (self.done, self.text):  # or it would be said twice
            self._print()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        self._show()

    def note(self, text: str) -> None:
        """Show a text at the end of the line from now on."""
        self.text = text
        self._show()

    def line(self) -> str:
        """What a plain line says."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self.done - self.start) / seconds
        if self.total is None:
            parts = [f"{self.label}: {self.done:,} {self.unit}", f"{rate:,.0f}/s"]
        else:
            share = 100 * self.done / self.total if self.total else 100
            parts = [
                f"{self.label}: {self.done:,} of {self.total:,} {self.unit} ({share:.0f} %)",
                f"{rate:,.0f}/s",
            ]
            if self.done < self.total and rate > 0:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts) + (f" | {self.text}" if self.text else "")

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.text, rate=self._rate())
        elif not self.quiet and time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        self._shown, self._printed = time.monotonic(), (self.done, self.text)
        print(self.line(), file=self._stream, flush=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-9)
        return f"{(self.done - self.start) / seconds:,.0f} {self.unit}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _rich_bar(progress: Progress) -> tuple[Any, Any]:
    from rich.console import Console  # slow to import, and of use on a terminal only
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=progress._stream),
    )
    task = bar.add_task(progress.label, total=progress.total, completed=progress.start, note="", rate="")
    return bar, task
