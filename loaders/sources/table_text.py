"""Tables as text: .csv with any separator, `path label` lines, JSON lines. What is in them, as columns of text."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.columns import Wanted, choose_columns
from fastdrpl.loaders.sources.pictures import EXTENSIONS
from fastdrpl.loaders.sources.walking import extension_of

MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HEAD = 1 << 16  # bytes in which the separator is looked for
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Text(NamedTuple):
    """A table whose columns can be read.

    `read(names)` gives some of them; `name_rows(rows)` says where a person finds these rows.
    """

    names: list[str]
    read: Callable[[Sequence[str]], pa.Table]
    name_rows: Callable[[Sequence[int]], list[str]]
    notes: list[str]


def open_text(source: Path, kind: str, wanted: Wanted) -> Text:
    """A table in text, by the ending `kind` of its name.

    Raises UserError or DataError, which name what the file looks like.
    """
    head = _head(source)
    if kind in (".jsonl", ".ndjson", ".json"):
        return _json(source, lines=kind != ".json")
    if kind == ".txt" and _mark(head, wanted, "\t", source)[1] is None:
        return _key_list(source)
    mark, _ = _mark(head, wanted, "\t" if kind == ".tsv" else ",", source)
    usual = {".csv": ",", ".tsv": "\t"}.get(kind)
    notes = [] if mark == usual else [f"the table is separated by {MARKS[mark]}"]
    options = pa.csv.ParseOptions(delimiter=mark, newlines_in_values=True)

    def read(names: Sequence[str]) -> pa.Table:
        with _named(source):
            return pa.csv.read_csv(
                source,
                parse_options=options,
                convert_options=pa.csv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    include_columns=list(names),
                    strings_can_be_null=False,
                ),
            )

    with _named(source), pa.csv.open_csv(source, parse_options=options) as reader:
        found = list(reader.schema.names)
    return Text(found, read, lambda rows: _name_lines(source, mark, rows), notes)


def separator(source: Path, wanted: Wanted) -> str | None:
    """What stands between the fields of a .csv, .tsv or .txt table; None where its first line names no columns."""
    return _mark(_head(source), wanted, "\t" if source.suffix.lower() == ".tsv" else ",", source)[1]


def unreadable(source: Path, error: Exception) -> DataError:
    """The error for a table that its reader gave up on."""
    said = str(error).strip().split("\n")[0][:200]
    return DataError(
        f"the table cannot be read: {said}",
        where=printable(str(source)),
        fix="a table is UTF-8 text with commas, or parquet",
    )


class _named:
    """Turns what pyarrow raises on a damaged table into a DataError."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(
            error, pa.ArrowException | OSError | UnicodeDecodeError
        ):  # names of columns may be no UTF-8
            raise unreadable(self.source, error) from None


def _head(source: Path) -> str:
    try:
        with open(source, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise unreadable(source, error) from None
    if head[:2] in _UTF_16 or b"\0" in head[:200]:
        kind = "UTF-16 text" if head[:2] in _UTF_16 else "no text"
        raise DataError(
            f"the table cannot be read: it is {kind}, not UTF8",
            where=printable(str(source)),
            fix="save it as UTF-8 text with commas",
        )
    return head.decode("utf-8-sig", errors="replace")


def _first_row(head: str, mark: str) -> list[str]:
    """The fields of the first line; none where it cannot be read with this separator."""
    try:
        return next(csv.reader(io.StringIO(head), delimiter=mark), [])
    except csv.Error:
        return []


def _mark(head: str, wanted: Wanted, usual: str, source: Path) -> tuple[str, str | None]:
    """The separator, and the same again if its first line names a column of paths, else None."""
    rows = {mark: _first_row(head, mark) for mark in (usual, *MARKS)}
    for mark, names in rows.items():
        try:
            if choose_columns([name.strip() for name in names], wanted, "").names()[1:]:
                return mark, mark
        except UserError:
            continue
    for mark, names in rows.items():
        try:
            choose_columns([name.strip() for name in names], wanted, "")
        except UserError:
            continue
        if len(names) > 1:  # perhaps with one-hot columns
            return mark, mark
    most = max(rows, key=lambda mark: (len(rows[mark]), mark == usual))
    return most if len(rows[most]) > 1 else usual, None


def _name_lines(source: Path, mark: str, rows: Sequence[int]) -> list[str]:
    """`line 4` for row 2 of a table with a first line of names."""
    csv.field_size_limit(max(csv.field_size_limit(), source.stat().st_size))  # as long as any text in it
    lines, last, row = [], 0, -2  # the first line has the names
    with open(source, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter=mark)
        for fields in reader:
            row += bool(fields)  # an empty line is no row
            if fields and row in rows:
                lines.append(f"line {last + 1}")
            if row >= rows[-1]:
                break
            last = reader.line_num  # quoted text may have several lines
    return lines


def _key_list(source: Path) -> Text:
    """Lines of a path and a label, as Clothing1M has them: separated by a tab, a space or a comma; no names."""
    lines = _lines(source)
    mark = next((mark for mark in ("\t", None, ",") if all(_cut(line, mark) for _, line in lines[:100])), "")
    if mark == "" or not lines:
        alone = bool(lines) and all(extension_of(line) in EXTENSIONS for _, line in lines[:100])
        raise _no_key_list(
            source, "lists paths without labels" if alone else "is no list of `path label` lines"
        )
    pairs = [_cut(line, mark) for _, line in lines]
    wrong = [number for (number, _), pair in zip(lines, pairs, strict=True) if pair is None]
    if wrong:
        raise DataError(f"a line that is no path and label: line {wrong[0]}", where=printable(str(source)))
    columns = {"path": [pair[0] for pair in pairs if pair], "label": [pair[1] for pair in pairs if pair]}
    if extension_of(columns["label"][0]) in EXTENSIONS:
        first = columns["path"][0]
        if extension_of(first) in EXTENSIONS:
            raise _no_key_list(source, "looks like a list of pairs of images")
        if "\t" in first:
            raise _no_key_list(source, "looks like a list of MXNet (number, label, path)")
        alone = "/" in first  # a path with a space in it
        raise _no_key_list(source, "lists paths without labels" if alone else "looks like `label path` lines")
    return _in_memory(columns, [number for number, _ in lines], ["lines of a path and a label"])


def _no_key_list(source: Path, what: str) -> UserError:
    return UserError(
        f"the file {what}",
        where=printable(str(source)),
        fix="wanted lines such as `images/0001.jpg 7`, or a first line with the names of columns: path,label",
    )


def _cut(line: str, mark: str | None) -> tuple[str, str] | None:
    path, *label = line.rsplit(mark, 1)
    return (path.strip(), label[0].strip()) if label and path.strip() and label[0].strip() else None


def _json(source: Path, *, lines: bool) -> Text:
    """One object a line, or one list of objects."""
    entries: list[tuple[int, Any]] = []
    try:
        if lines:
            entries = [(number, json.loads(line)) for number, line in _lines(source)]
        else:
            content = json.loads(source.read_text(encoding="utf-8-sig"))
            if not isinstance(content, list):
                raise UserError(
                    f"the file is JSON, but no list of objects{_looks_like(content)}",
                    where=printable(str(source)),
                    fix='wanted [{"path": "a.jpg", "label": "cat"}, ...], or such objects one a line (.jsonl)',
                )
            entries = list(enumerate(content))
    except (ValueError, OSError, RecursionError) as error:
        raise unreadable(source, error) from None
    wrong = [number for number, entry in entries if not isinstance(entry, dict)]
    word = "line" if lines else "entry"
    if wrong:
        raise DataError(f"no object with names: {word} {wrong[0]}", where=printable(str(source)))
    columns: dict[str, list[Any]] = {name: [] for _, entry in entries for name in entry}
    for name, column in columns.items():
        for number, entry in entries:
            value = entry.get(name)
            column.append(_plain(value))
            if column[-1] is None and value is not None:
                column[-1] = value if isinstance(value, float) else _Refused(type(value).__name__, number)
    return _in_memory(columns, [number for number, _ in entries], [], word, source)


class _Refused(NamedTuple):
    """A value of JSON that is neither text nor a whole number."""

    kind: str
    number: int


def _plain(value: object) -> str | None:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # halves of a pair are no text
    return str(value) if type(value) is int else None


def _in_memory(
    columns: dict[str, list[Any]],
    numbers: Sequence[int],
    notes: list[str],
    word: str = "line",
    source: Path | None = None,
) -> Text:
    def read(names: Sequence[str]) -> pa.Table:
        for name in names:
            for value in columns[name]:
                if isinstance(value, _Refused | float):
                    kind = value.kind if isinstance(value, _Refused) else "a number with a fraction"
                    raise DataError(
                        f"the column {name!r} holds {kind}; wanted text or whole numbers",
                        where=printable(str(source)),
                    )
        return pa.table({name: pa.array(columns[name], pa.string()) for name in names})

    return Text(list(columns), read, lambda rows: [f"{word} {numbers[row]}" for row in rows], notes)


def _lines(source: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(source, error) from None
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _looks_like(content: object) -> str:
    if isinstance(content, dict):
        if {"images", "annotations"} <= content.keys():
            return "; it looks like COCO, which is for detection"
        if "labels" in content:
            return "; it looks like dataset.json of StyleGAN"
    return ""
