"""`fastdrpl status RUN... [--watch]`: how runs get on, once or until they end, from their files alone."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from fastdrpl.errors import UserError

_QUIET = 60.0  # seconds after which a line is repeated that says nothing new, where there is no terminal


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say how runs get on. With --watch until they have ended; the exit code then says how: 0 finished, 75 stopped
    and to be continued, else that of the run (the highest of several)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs. With --watch they may appear later."""
    watch: bool = False
    """Refresh until every run has ended; Ctrl-C ends the watching, not the runs."""
    every: float = 2.0
    """Seconds between two looks."""


@dataclass(frozen=True)
class Seen:
    """A run at one moment. `state`: of `status_of`; None where there is no run folder, and `trouble` says why."""

    path: Path
    state: Mapping[str, Any] | None
    trouble: str = ""

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it may go on."""
        return None if self.state is None else self.state["exit_code"]


def show_status(config: StatusConfig) -> int:
    """Carry the verb out: -> its exit code. Raises `UserError` for numbers out of range and, unless it watches, for
    what is no run folder."""
    from fastdrpl.status import status_of

    if not config.runs:
        raise UserError("no run is named", fix="fastdrpl status RUN")
    if not 0.1 <= config.every <= 3600:
        raise UserError(f"--every is {config.every:g}, out of range", fix="give a number from 0.1 to 3600")
    console = Console(highlight=False)
    if not config.watch:
        for path in config.runs:
            console.print(_block(Seen(path, status_of(path)), several=len(config.runs) > 1))
        return 0
    seen = _watch_on_terminal(config, console) if console.is_terminal else _watch_in_lines(config, console)
    return max(one.exit_code or 0 for one in seen)


def _look(path: Path) -> Seen:
    from fastdrpl.status import status_of

    try:
        return Seen(path, status_of(path))
    except (UserError, OSError) as error:  # not there yet, or being replaced: the next look may see it
        what = error.what if isinstance(error, UserError) else str(error)
        return Seen(path, None, what if path.exists() else "not there yet")


def _has_ended(seen: Sequence[Seen]) -> bool:
    return all(one.exit_code is not None for one in seen)


def _watch_on_terminal(config: StatusConfig, console: Console) -> list[Seen]:
    several = len(config.runs) > 1
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            seen = [_look(path) for path in config.runs]
            live.update(Group(*(_block(one, several=several) for one in seen)), refresh=True)
            if _has_ended(seen):
                return seen
            time.sleep(config.every)


def _watch_in_lines(config: StatusConfig, console: Console) -> list[Seen]:
    """A line for each run whenever its stage, epoch, checkpoint or verdict is another, and once a minute."""
    told: dict[Path, tuple[object, float]] = {}
    while True:
        seen = [_look(path) for path in config.runs]
        for one in seen:
            news = one.trouble if one.state is None else [one.state[key] for key in _NEWS]
            before, when = told.get(one.path, (None, 0.0))
            if news != before or time.monotonic() - when > _QUIET:
                told[one.path] = (news, time.monotonic())
                console.print(Text(f"{one.path}: {line_of(one)}"), soft_wrap=True)
        if _has_ended(seen):
            return seen
        time.sleep(config.every)


_NEWS = ("verdict", "stage", "epoch", "last_checkpoint")


def line_of(seen: Seen) -> str:
    """A run in one line."""
    from fastdrpl.status import text_of

    state = seen.state
    if state is None:
        return f"waiting ({seen.trouble})"
    if state["result"] is not None:
        result = state["result"]
        accuracy = result["accuracy"]["last"]
        tested = "" if accuracy is None else f", test {accuracy:.2%}"
        return (
            f"{state['verdict']}: {result['suspects']:,} of {result['samples']:,} labels look wrong{tested}"
        )
    known = {name: text_of(name, value) for name, value in state.items() if value is not None}
    parts = [
        ("stage", "{}"),
        ("epoch", "epoch {}" + (f" of {known['epochs']}" if "epochs" in known else "")),
        ("images_per_second", "{} images/s"),
        ("stage_seconds_left", "{} left in the stage"),
        ("loss", "loss {}"),
        ("test_accuracy", "test {}"),
        ("last_checkpoint", "{}, " + known.get("last_checkpoint_age", "") + " ago"),
    ]
    ended = [] if seen.exit_code is None else [state["verdict"]]
    shown = [*ended, *(form.format(known[name]) for name, form in parts if name in known)]
    return ", ".join(shown) if shown else state["verdict"]


def _block(seen: Seen, *, several: bool) -> Group:
    from fastdrpl.status import table_of

    title = [Text(f"{seen.path}", style="bold")] if several else []
    if seen.state is None:
        return Group(*title, Text(f"waiting for {seen.path}: {seen.trouble}"))
    return Group(*title, table_of(seen.state))
