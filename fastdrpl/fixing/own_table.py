"""A corrected copy of a user's own table: the cells of labels that changed, and nothing else, differ.

The table is not parsed and written again, which would lose its quotes, its ends of lines and the form of its
numbers: its text is cut into cells, and the changed ones are replaced.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastdrpl.errors import DataError, UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import composed
from fastdrpl.loaders.sources.columns import Wanted, choose_columns
from fastdrpl.loaders.sources.table_text import separator, unreadable

_TEXT = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Written:
    """A corrected table, and what was done."""

    content: bytes
    changed: int
    dropped: int


class _Record(NamedTuple):
    start: int  # in the text
    end: int  # after the end of its line
    cells: list[tuple[int, int]]  # where each cell begins and ends, quotes included


def correct_table(source: Path, final: Mapping[str, str | None], options: Mapping[str, Any]) -> Written:
    """The table with the classes of `final` (path -> class, None where its row is left out); other rows stay.

    `options`: the columns that `prepare` was told. Raises `UserError` for a table of another form, `DataError` where
    it is not the one that was prepared.
    """
    where = printable(str(source))
    wanted = Wanted(path=options.get("path_column"), label=options.get("label_column"))
    mark = separator(source, wanted) if source.suffix.lower() in _TEXT else None
    if mark is None:
        raise UserError(
            "only a table of text whose first line names its columns can be written again",
            where=where,
            fix="use --out labels.csv, and its columns file and given_name",
        )
    text = _read(source)
    records = _records(text, mark)
    head = next(records)
    chosen = choose_columns([_value(text[a:b]) for a, b in head.cells], wanted, where)
    if chosen.label is None:
        raise UserError(
            "the labels of this table are columns of 0 and 1, which are not written",
            where=where,
            fix="use --out labels.csv, and its columns file and given_name",
        )
    names = [_value(text[a:b]) for a, b in head.cells]
    at_path, at_label = names.index(chosen.path), names.index(chosen.label)
    rows = [record for record in records if len(record.cells) == len(names)]
    spelled: dict[str, str] = {}  # class -> its cell as the table has it
    for record in rows:
        cell = text[slice(*record.cells[at_label])]
        spelled.setdefault(_class(cell), cell)
    lost = {name for name in final.values() if name is not None} - spelled.keys()
    if lost:
        raise DataError(
            f"the table has no row of the class {min(lost)!r}",
            where=where,
            fix="say with --source where the table is that was prepared",
        )
    parts, done, seen, changed, dropped = ["\ufeff" if _marked(source) else ""], 0, 0, 0, 0
    for record in rows:
        path = _value(text[slice(*record.cells[at_path])])
        if path not in final:
            continue
        seen += 1
        wants, (start, end) = final[path], record.cells[at_label]
        if wants is None:
            parts.append(text[done : record.start])
            done, dropped = record.end, dropped + 1
        elif wants != _class(text[start:end]):
            parts += [text[done:start], spelled[wants]]
            done, changed = end, changed + 1
    if seen < len(final):
        raise DataError(
            f"{len(final) - seen:,} of {len(final):,} images of the run are not in the table",
            where=where,
            fix="say with --source where the table is that was prepared",
        )
    parts.append(text[done:])
    return Written("".join(parts).encode(), changed, dropped)


def _read(source: Path) -> str:
    try:
        return source.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(source, error) from None


def _marked(source: Path) -> bool:
    with open(source, "rb") as file:
        return file.read(3) == b"\xef\xbb\xbf"


def _records(text: str, mark: str) -> Iterator[_Record]:
    """The records of a table, without empty lines."""
    sign = re.escape(mark)
    cell = re.compile(rf'("(?:[^"]++|"")*+"[^{sign}\r\n]*+|[^{sign}\r\n]*+)({sign}|\r\n|\n|\r|\Z)')
    start, cells = 0, []
    for found in cell.finditer(text):
        cells.append(found.span(1))
        if found[2] != mark:
            if len(cells) > 1 or found.end(1) > found.start(1):
                yield _Record(start, found.end(), cells)
            start, cells = found.end(), []


def _value(cell: str) -> str:
    """What a cell says, without its quotes."""
    if not cell.startswith('"'):
        return cell
    inside, _, after = cell[1:].rpartition('"')
    return inside.replace('""', '"') + after


def _class(cell: str) -> str:
    return printable(composed(_value(cell).strip()))
