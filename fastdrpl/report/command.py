"""`fastdrpl report`: its settings, and writing the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastdrpl.errors import UserError

PAGE = "report.html"
MAX_MB = 5.0


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write report.html: what a run found, its suspects to decide on, how it went. Several runs: side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of runs; one that is not finished shows what it has left so far."""
    out: Path | None = None
    """The file; default: report.html in the run's folder, or here where several runs are given."""
    data: Path | None = None
    """Where the prepared images are now, if they were moved."""
    max_mb: float = MAX_MB
    """Largest size of the page in MB (10^6 bytes): so many suspects as fit are shown."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_mb) and self.max_mb > 0):
            raise UserError(f"--max_mb {self.max_mb} is no size", fix="give a number above 0, such as 5")


def report_runs(command: ReportCommand) -> Path:
    """Write the page; returns where it is.

    Raises `UserError` for what is no run and for places that cannot be written, `DataError` for damaged files and for
    other data than the run's.
    """
    from fastdrpl.console import say
    from fastdrpl.folder import RunFolder

    if not command.runs:
        raise UserError("no run is given", fix="fastdrpl report RUN")
    most = round(command.max_mb * 1e6)
    if len(command.runs) == 1:
        out = command.out or RunFolder(command.runs[0]).report
        write_report(command.runs[0], out, data=command.data, most_bytes=most)
    else:
        out = command.out or Path(PAGE)
        write_side_by_side(command.runs, out, data=command.data)
    say(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return out


def write_report(
    run: Path, out: Path, *, data: Path | None = None, most_bytes: int = round(MAX_MB * 1e6)
) -> None:
    """Write the page of one run. Raises as `report_runs`."""
    from fastdrpl.report.pages.page import render_run
    from fastdrpl.report.run_page import read_run_page

    _write(out, render_run(read_run_page(run, data=data), most_bytes=most_bytes))


def write_side_by_side(runs: Sequence[Path], out: Path, *, data: Path | None = None) -> None:
    """Write the page of several runs. Raises as `report_runs`."""
    from fastdrpl.report.agreement import compare_suspects
    from fastdrpl.report.pages.side_by_side import render_runs
    from fastdrpl.report.run_page import read_run_page

    pages = [read_run_page(run, data=data) for run in runs]
    _write(out, render_runs(pages, compare_suspects(pages)))


def _write(out: Path, page: bytes) -> None:
    from fastdrpl.files import write_atomic

    try:
        write_atomic(out, page)
    except UserError as error:
        raise UserError(
            error.what, where=error.where, fix="say with --out where the report may be written"
        ) from error
