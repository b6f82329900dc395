"""A table of images: .csv, .tsv or .parquet with the columns `path`, `label` and perhaps `split`."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import nearly
from fastdrpl.loaders.sources.photos import (
    MAY_BE_WRONG,
    Listing,
    divide,
    list_files,
    number_labels,
    open_photos,
    refuse_fraction,
    stamp,
)
from fastdrpl.loaders.sources.pictures import Target
from fastdrpl.loaders.sources.source import OpenedSource
from fastdrpl.loaders.sources.split_names import split_of

COLUMNS = ("path", "label")
SPLITS = ("train", "test", "val")
SHOWN = 3  # rows that a message names


def open_table(
    source: Path, *, target: Target, test_fraction: float, classes: Path | None, workers: int, seed: int
) -> OpenedSource:
    """Read and check the table; images are looked for later. Raises UserError (columns, options) or DataError."""
    table, notes = _read(source)
    paths = table["path"].to_pylist()
    labels, class_names = number_labels(table["label"].to_pylist(), classes)
    splits, more = _split(source, table, labels, class_names, test_fraction, seed)
    folder = f"{source.parent}/"
    files = [path if path[0] == "/" else folder + path for path in paths]
    listing = Listing(
        labels=labels, ids=paths, fetch=list_files(files), stamps=[stamp(path) for path in files]
    )
    return open_photos(
        listing,
        splits,
        kind="table",
        name=printable(source.stem),
        where=printable(str(source)),
        class_names=class_names,
        target=target,
        workers=workers,
        test_may_be_wrong="test" in splits and bool(test_fraction),
        notes=[*notes, *more],
    )


def _read(source: Path) -> tuple[pa.Table, list[str]]:
    """The wanted columns as text, checked row by row, and what to tell the user."""
    if not source.is_file():
        raise UserError("the source is no file", where=printable(str(source)), fix="give --source TABLE.csv")
    kind = source.suffix.lower()
    if kind not in (".csv", ".tsv", ".parquet"):
        raise UserError(
            f"a table ends in .csv, .tsv or .parquet, not in {kind!r}", where=printable(str(source))
        )
    names = _column_names(source, kind)
    wanted = [*COLUMNS, *(["split"] if "split" in names else [])]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"no column {missing[0]!r} in the table; its columns are {', '.join(map(repr, names))}",
            where=printable(str(source)),
            fix="name the columns path, label and, if there is one, split",
        )
    for name in wanted:
        if names.count(name) > 1:
            raise UserError(f"the column {name!r} is there twice", where=printable(str(source)))
    try:
        if kind == ".parquet":
            with pa.parquet.ParquetFile(source) as file:  # not read_table: it takes folder names for columns
                table = file.read(columns=wanted)
        else:
            table = pa.csv.read_csv(
                source,
                parse_options=_parse_options(kind),
                convert_options=pa.csv.ConvertOptions(
                    column_types={name: pa.string() for name in wanted},
                    include_columns=wanted,
                    strings_can_be_null=False,
                ),
            )
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from None
    if not len(table):
        raise DataError("the table has no rows", where=printable(str(source)))
    table = pa.table({name: _as_text(source, name, table[name]) for name in wanted})
    table = table.set_column(1, "label", pc.utf8_trim_whitespace(table["label"]))
    _check_rows(source, table)
    ignored = [name for name in names if name not in wanted]
    notes = [f"columns that are not used: {', '.join(map(repr, ignored))}"] if ignored else []
    return table, notes


def _column_names(source: Path, kind: str) -> list[str]:
    try:
        if kind == ".parquet":
            return list(pa.parquet.read_schema(source).names)
        with pa.csv.open_csv(source, parse_options=_parse_options(kind)) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source, error) from None


def _parse_options(kind: str) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",", newlines_in_values=True)


def _unreadable(source: Path, error: Exception) -> DataError:
    said = str(error).strip().split("\n")[0][:200]
    return DataError(
        f"the table cannot be read: {said}",
        where=printable(str(source)),
        fix="a table is UTF-8 text with commas, or parquet",
    )


def _as_text(source: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as it is, whole numbers (not of paths) as text, null as empty text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = str(kind) in ("string", "large_string", "string_view", "null")
    if not (text or (name == "label" and pa.types.is_integer(kind))):
        raise DataError(
            f"the column {name!r} holds {kind}; wanted text"
            + (" or whole numbers" if name == "label" else ""),
            where=printable(str(source)),
        )
    return pc.fill_null(column.cast(kind).cast(pa.large_string()), "")


def _check_rows(source: Path, table: pa.Table) -> None:
    """Raises DataError at rows without path or label, and where a path is there twice."""
    for name in COLUMNS:
        _refuse(source, np.asarray(pc.equal(table[name], "")), f"an empty {name}")
    paths = table["path"].to_pylist()
    places = _places(source, paths)
    if len(set(places)) < len(places):
        first: dict[str, int] = {}
        repeated = np.array([first.setdefault(place, row) != row for row, place in enumerate(places)])
        row = int(np.flatnonzero(repeated)[0])
        path, before = paths[row], paths[first[places[row]]]
        shown = repr(path) if path == before else f"{path!r}, which is {before!r}"
        _refuse(source, repeated, f"a path that is in the table already ({shown})")


def _places(source: Path, paths: Sequence[str]) -> list[str]:
    """Each path as an absolute one in its only spelling; links are not looked up."""
    folder, plain = os.path.join(os.path.abspath(source.parent), ""), os.path.normpath
    return [plain(f"//{path}" if path[0] == "/" else folder + path) for path in paths]  # it keeps two slashes


def _refuse(source: Path, wrong: np.ndarray, what: str) -> None:
    """Raises DataError with the first rows where `wrong` is true, if there are any."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
        shown = ", ".join(_name_rows(source, rows[:SHOWN].tolist()))
        raise DataError(f"{what}: {shown}{more}", where=printable(str(source)))


def _name_rows(source: Path, rows: Sequence[int]) -> list[str]:
    """Where a person finds these rows: the line of a text file, or the row of a parquet file, from 0."""
    if source.suffix.lower() == ".parquet":
        return [f"row {row}" for row in rows]
    csv.field_size_limit(max(csv.field_size_limit(), source.stat().st_size))  # as long as any text in it
    lines, last, row = [], 0, -2  # the first line has the names
    with open(source, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter="\t" if source.suffix.lower() == ".tsv" else ",")
        for fields in reader:
            row += bool(fields)  # an empty line is no row
            if fields and row in rows:
                lines.append(f"line {last + 1}")
            if row >= rows[-1]:
                break
            last = reader.line_num  # quoted text may have several lines
    return lines


def _split(
    source: Path,
    table: pa.Table,
    labels: np.ndarray,
    class_names: Sequence[str],
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of each split, and what to tell the user."""
    where = printable(str(source))
    if "split" not in table.column_names:
        return _divide(source, labels, test_fraction, seed)
    column = table["split"].combine_chunks().dictionary_encode()
    split_by_word = [split_of(word) or "" for word in column.dictionary.to_pylist()]
    split = np.array([*split_by_word, ""])[np.asarray(column.indices)]
    unknown = [
        word for word, known in zip(column.dictionary.to_pylist(), split_by_word, strict=True) if not known
    ]
    shown = ", ".join(map(repr, unknown[:SHOWN]))
    _refuse(source, split == "", f"a split that is none of {', '.join(SPLITS)} ({shown})")
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    if not len(rows["train"]):
        raise DataError("no row has the split 'train'", where=where)
    tests = [name for name in ("test", "val") if len(rows[name])]
    if not tests:
        return _divide(source, labels, test_fraction, seed)
    refuse_fraction(test_fraction, where=where)
    test = rows[tests[0]]
    in_train = np.bincount(labels[rows["train"]], minlength=len(class_names)) > 0
    unseen = np.zeros(len(labels), bool)
    unseen[test] = ~in_train[labels[test]]
    if unseen.any():
        name = class_names[labels[np.flatnonzero(unseen)[0]]]
        known = [class_names[k] for k in np.flatnonzero(in_train).tolist()]
        what = f"a label of the test set that the training set has not ({name!r}){nearly(name, known)}"
        _refuse(source, unseen, what)
    notes = (
        [f"`test` is the test set; the {len(rows['val']):,} rows of `val` are not used."]
        if len(tests) == 2
        else []
    )
    return {"train": rows["train"], "test": test}, notes


def _divide(
    source: Path, labels: np.ndarray, test_fraction: float, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    splits = divide(labels, test_fraction, seed, where=printable(str(source)))
    return splits, [MAY_BE_WRONG] if "test" in splits else []
