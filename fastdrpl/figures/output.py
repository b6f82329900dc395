"""The numbers of a figure as CSV, and the files of a figure on the disk."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdrpl.console import say
from fastdrpl.files import write_atomic
from fastdrpl.report.table import printable

_DIGITS = 7  # of a number that is not whole: those of float32


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Lines under a header (UTF-8, RFC 4180 quoting); None is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue().encode()


def write_figures(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write each file whole or not at all, and say where they are."""
    for name, content in files.items():
        write_atomic(folder / name, content)
    say(f"{', '.join(sorted(files))} are in {folder}")


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return printable(value)
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else value
