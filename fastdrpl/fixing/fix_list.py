"""fixes.csv: what a person decided about samples of one run, as the report's page writes it, or by hand.

Programs that show tables change such a file when they save it: a mark at its begin, another separator, other ends of
lines, quotes around the first line and separators after it are all read.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdrpl.errors import DataError, UserError
from fastdrpl.fixing.judged import Judged
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import composed
from fastdrpl.names import nearest

HEAD = "# fastdrpl fixes for run "
COLUMNS = ("index", "file", "decision", "label")
DECISIONS = ("accept", "keep", "drop", "relabel")
_HEAD = re.compile(re.escape(HEAD) + r"(\w+)[\s\",;\t]*")
_MARKS = (",", ";", "\t")
_FORM = f"wanted the lines `{HEAD}HASH` and `{','.join(COLUMNS)}`, then one for each sample"


class Fix(NamedTuple):
    """A decision about a sample."""

    line: int  # of the file, from 1
    decision: str  # one of DECISIONS
    label: int  # class that the sample shall have; the given one where it is dropped


class _Line(NamedTuple):
    number: int
    sample: str  # the column index
    file: str
    decision: str
    label: str


def read_fixes(path: Path, run: Judged) -> dict[int, Fix]:
    """Sample index -> what was decided.

    Raises `UserError` for a missing list or one for another run, `DataError` where it is damaged, or does not fit the
    run: with the number of the line.
    """
    place = _Finder(run)
    numbers = {name: number for number, name in enumerate(run.class_names)}
    fixes: dict[int, Fix] = {}
    try:
        for line in _lines(_text(path), run.hash, path):
            try:
                index = place.index_of(line)
                fix = Fix(line.number, *_decide(line, index, run, numbers))
                before = fixes.setdefault(index, fix)
                if before[1:] != fix[1:]:
                    raise DataError(
                        f"this sample is decided in another way in line {before.line}: "
                        f"{_say(before, run)} there, {_say(fix, run)} here"
                    )
            except DataError as error:
                raise DataError(f"line {line.number}: {error.what}", where=str(path), fix=error.fix) from None
    except csv.Error as error:
        raise DataError(
            f"not a readable fix list: {error}", where=str(path), fix="look for a quote that is not closed"
        ) from error
    return fixes


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the fix list: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"the fix list is not UTF-8 text (byte {error.start})",
            where=str(path),
            fix="save it as `CSV UTF-8`",
        ) from error


def _lines(text: str, wanted: str, path: Path) -> Iterator[_Line]:
    """The lines below the head. Raises `UserError` or `DataError` for a head that is missing or of another run."""
    first, _, rest = text.partition("\n")
    found = _HEAD.fullmatch(first.strip().removeprefix('"'))
    if found is None:
        raise DataError(
            "the fix list does not say which run it is for",
            where=f"{path}, line 1: {printable(first.strip()[:80])!r}",
            fix=f"if it is for this run, write as its first line: {HEAD}{wanted}",
        )
    if found[1] != wanted:
        raise UserError(
            f"the fixes were made for the run {found[1]}, and this is the run {wanted}",
            where=str(path),
            fix="give the run that they were made for; samples of another run may have other numbers",
        )
    names, _, body = rest.partition("\n")
    mark, columns = _columns(names.strip("\r"), path)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=mark, strict=True)
    start = 3
    for row in reader:
        if any(cell.strip() for cell in row):
            if len(row) <= max(columns.values()):
                raise DataError(
                    f"line {start}: {len(row)} fields, the line of names has {max(columns.values()) + 1}",
                    where=str(path),
                )
            cells = {name: row[at] for name, at in columns.items()}
            yield _Line(start, *(cells.get(name, "") for name in COLUMNS))
        start = reader.line_num + 3


def _columns(names: str, path: Path) -> tuple[str, dict[str, int]]:
    """The separator, and where each column stands."""
    for mark in _MARKS:
        cells = [cell.strip().casefold() for cell in next(csv.reader([names], delimiter=mark), [])]
        columns = {name: cells.index(name) for name in COLUMNS if name in cells}
        if {"decision", "label"} <= columns.keys() and columns.keys() & {"index", "file"}:
            return mark, columns
    raise DataError("the fix list has no line of names", where=f"{path}, line 2", fix=_FORM)


class _Finder:
    """Which sample of the run a line is about."""

    def __init__(self, run: Judged):
        self.files = run.files
        self.by_file: dict[str, list[int]] = {}

    def index_of(self, line: _Line) -> int:
        """By index and file, which must agree, or by the one of them that the line has."""
        text, count = line.sample.strip(), len(self.files)
        if not text:
            return self._by_name(line.file)
        if not (text.isascii() and text.isdigit() and int(text) < count):
            raise DataError(f"there is no sample {text!r}: the run has 0 to {count - 1}")
        index = int(text)
        there = self.files[index] or ""
        if line.file and composed(line.file) != composed(there):
            raise DataError(
                f"the sample {index} is {printable(there) or 'no file'!r} in the run, "
                f"and {printable(line.file)!r} in the list",
                fix="leave the column that is wrong empty",
            )
        return index

    def _by_name(self, file: str) -> int:
        if not file:
            raise DataError("no sample: index and file are empty")
        if not self.by_file:
            for index, name in enumerate(self.files):
                if name is not None:
                    self.by_file.setdefault(composed(name), []).append(index)
        found = self.by_file.get(composed(file), [])
        found = [index for index in found if self.files[index] == file] or found
        if len(found) != 1:
            near = nearest(file, self.by_file) if not found and len(self.by_file) < _FEW else ""
            raise DataError(f"{'several files' if found else 'no file'} {printable(file)!r} in the run{near}")
        return found[0]


_FEW = 20_000  # names among which the nearest is looked for


def _decide(line: _Line, index: int, run: Judged, numbers: dict[str, int]) -> tuple[str, int]:
    """The decision, and the class that the sample shall have."""
    decision, given, suggested = (
        line.decision.strip().casefold(),
        int(run.labels.given[index]),
        int(run.suggested[index]),
    )
    if decision not in DECISIONS:
        raise DataError(
            f"unknown decision {printable(line.decision)!r}{nearest(decision, DECISIONS)}",
            fix=f"one of {', '.join(DECISIONS)}",
        )
    name = composed(line.label)
    if name and name not in numbers:
        raise DataError(
            f"the run has no class {printable(name)!r}{nearest(name, numbers)}",
            fix=f"its classes are {_listed(run.class_names)}",
        )
    if decision == "relabel" and not name:
        raise DataError("to which class? the label is empty")
    if decision == "drop" and name:
        raise DataError(f"drop leaves the sample out, but there is a label: {printable(name)!r}")
    meant = {"accept": suggested, "keep": given}.get(decision)
    if name and meant is not None and numbers[name] != meant:
        raise DataError(
            f"{decision} means {run.class_names[meant]!r} here, and the label is {printable(name)!r}",
            fix="write relabel for another class",
        )
    return decision, given if decision == "drop" else numbers[name] if meant is None else meant


def _say(fix: Fix, run: Judged) -> str:
    return "drop" if fix.decision == "drop" else f"{fix.decision} {run.class_names[fix.label]!r}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")


def as_arrays(fixes: dict[int, Fix]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) sample index, (n,) position in DECISIONS, (n,) class."""
    values = [(index, DECISIONS.index(fix.decision), fix.label) for index, fix in fixes.items()]
    index, decision, label = np.array(values, np.int64).reshape(-1, 3).T
    return index, decision, label
