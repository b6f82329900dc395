"""A table of images: columns of paths, labels and perhaps splits, in the dialects that people write."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import nearly
from fastdrpl.loaders.sources.columns import Wanted, choose_columns, missing_column
from fastdrpl.loaders.sources.missing_files import explain_missing, places_of
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
from fastdrpl.loaders.sources.table_text import Text, open_text, unreadable
from fastdrpl.loaders.sources.walking import WARNING

KINDS = (".csv", ".tsv", ".parquet", ".txt", ".jsonl", ".ndjson", ".json")
FLAGS = {"", "0", "1", "0.0", "1.0", "true", "false"}  # what one-hot columns hold
MOST_NAMES = 12  # columns that a line lists
SPLITS = ("train", "test", "val")
SHOWN = 3  # rows that a message names


class Read(NamedTuple):
    """The columns `path`, `label` and perhaps `split` as text; where a person finds rows; lines for the user."""

    table: pa.Table
    name_rows: Callable[[Sequence[int]], list[str]]
    notes: list[str]
    where: str


def open_table(
    source: Path,
    *,
    target: Target,
    test_fraction: float,
    classes: Path | None,
    workers: int,
    seed: int,
    images: Path | None = None,
    columns: Wanted = Wanted(),  # noqa: B008 - frozen
) -> OpenedSource:
    """Read and check the table. Raises UserError (columns, options) or DataError (its rows, or no image is there).

    Relative paths begin in the folder `images`, or in that of the table.
    """
    read = _read(source, columns)
    table, base = read.table, images or source.parent
    paths = table["path"].to_pylist()
    _check_rows(read, paths, base)
    labels, class_names = number_labels(table["label"].to_pylist(), classes)
    splits, more = _split(read, labels, class_names, test_fraction, seed)
    folder = os.path.join(base, "")
    files = places_of(folder, paths)
    stamps = [stamp(path) for path in files]
    opened = open_photos(
        Listing(labels=labels, ids=paths, fetch=list_files(files), stamps=stamps),
        splits,
        kind="table",
        name=printable(source.stem),
        where=printable(str(source)),
        class_names=class_names,
        target=target,
        workers=workers,
        test_may_be_wrong="test" in splits and bool(test_fraction),
        notes=[*read.notes, *more],
    )
    lost = [row for row, (size, _) in enumerate(stamps) if size == -1]
    if not lost:
        return opened
    missing = explain_missing(folder, paths, files, lost)
    if len(lost) == len(paths):
        raise DataError(missing.what, where=printable(str(source)), fix=missing.fix)
    return replace(opened, notes=(*opened.notes, f"{WARNING}{missing.what} ({missing.fix})"))


def _read(source: Path, wanted: Wanted) -> Read:
    """The wanted columns as text, and what to tell the user."""
    if not source.is_file():
        raise UserError("the source is no file", where=printable(str(source)), fix="give --source TABLE.csv")
    kind, where = source.suffix.lower(), printable(str(source))
    if kind not in KINDS:
        raise UserError(
            f"a table ends in .csv, .tsv or .parquet (or .txt, .jsonl, .json), not in {kind!r}",
            where=where,
            fix="save it as CSV in UTF-8" if kind in (".xlsx", ".xls", ".ods", ".numbers") else None,
        )
    opened = _open_parquet(source) if kind == ".parquet" else open_text(source, kind, wanted)
    chosen = choose_columns(opened.names, wanted, where)
    rest = [name for name in opened.names if name not in chosen.names()]
    if chosen.label is None:
        table, used = _from_one_hot(opened, chosen.path, rest, chosen.split, where)
    else:
        table, used = opened.read(chosen.names()), []
    if not len(table):
        raise DataError("the table has no rows", where=where)
    roles = {"path": chosen.path, "label": chosen.label or "label", "split": chosen.split}
    table = pa.table(
        {role: _as_text(source, role, name, table[name]) for role, name in roles.items() if name is not None}
    )
    table = table.set_column(1, "label", pc.utf8_trim_whitespace(table["label"]))
    ignored = [name for name in rest if name not in used]
    renamed = [f"{role} = {name!r}" for role, name in roles.items() if name is not None and name != role]
    notes = [*opened.notes, *([f"columns: {', '.join(renamed)}"] if renamed else [])]
    notes += [f"the labels are {len(used):,} columns of 0 and 1: {_listed(used)}"] if used else []
    notes += [f"columns that are not used: {_listed(ignored)}"] if ignored else []
    return Read(table, opened.name_rows, notes, where)


def _open_parquet(source: Path) -> Text:
    try:
        names = list(pa.parquet.read_schema(source).names)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(source, error) from None

    def read(wanted: Sequence[str]) -> pa.Table:
        try:
            with pa.parquet.ParquetFile(source) as file:  # not read_table: it takes folder names for columns
                return file.read(columns=list(wanted))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(source, error) from None

    return Text(names, read, lambda rows: [f"row {row}" for row in rows], [])


def _from_one_hot(
    opened: Text, path: str, rest: Sequence[str], split: str | None, where: str
) -> tuple[pa.Table, list[str]]:
    """A table with a label column made of those columns that hold 0 and 1 only, and the names of these."""
    wanted = [path, *([split] if split else [])]
    if len(set(opened.names)) < len(opened.names):
        raise missing_column(opened.names, "label", where)
    table = opened.read([*wanted, *rest])
    flags: dict[str, np.ndarray] = {}
    for name in rest:
        column = table[name]
        if column.type in (pa.string(), pa.large_string()) or pa.types.is_integer(column.type):
            text = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), "")))
            if {"0"} < {*set(pc.unique(text).to_pylist()), "0"} <= FLAGS:
                flags[name] = np.asarray(pc.is_in(text, pa.array(("1", "1.0", "true"))))
        elif pa.types.is_boolean(column.type) and not column.null_count:
            flags[name] = np.asarray(column)
    if len(flags) < 2:
        raise missing_column(opened.names, "label", where)
    labels = np.stack(list(flags.values()), 1)
    several = labels.sum(1) != 1
    if several.all():
        raise missing_column(opened.names, "label", where)
    if several.any():
        _refuse(
            Read(table, opened.name_rows, [], where),
            several,
            f"not exactly one 1 in the columns {_listed(list(flags))} (a classifier needs one label an image)",
        )
    names = np.array(list(flags), object)[labels.argmax(1)]
    kept = table.select(wanted).append_column("label", pa.array(names, pa.string()))
    return kept, list(flags)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(repr(printable(name)) for name in names[:MOST_NAMES]) + more


def _as_text(source: Path, role: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as it is, whole numbers (not of paths) as text, null as empty text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = str(kind) in ("string", "large_string", "string_view", "null")
    if not (text or (role == "label" and pa.types.is_integer(kind))):
        images = pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}
        raise DataError(
            f"the column {name!r} holds {'images' if images else kind}; wanted text"
            + (" or whole numbers" if role == "label" else ""),
            where=printable(str(source)),
            fix="load_dataset(...).save_to_disk(FOLDER) in Python, then kind huggingface" if images else None,
        )
    return pc.fill_null(column.cast(kind).cast(pa.large_string()), "")


def _check_rows(read: Read, paths: Sequence[str], base: Path) -> None:
    """Raises DataError at rows without path or label, and where a path is there twice."""
    for name in ("path", "label"):
        _refuse(read, np.asarray(pc.equal(read.table[name], "")), f"an empty {name}")
    places = _places(base, paths)
    if len(set(places)) < len(places):
        first: dict[str, int] = {}
        repeated = np.array([first.setdefault(place, row) != row for row, place in enumerate(places)])
        row = int(np.flatnonzero(repeated)[0])
        path, before = paths[row], paths[first[places[row]]]
        shown = repr(path) if path == before else f"{path!r}, which is {before!r}"
        _refuse(read, repeated, f"a path that is in the table already ({shown})")


def _places(base: Path, paths: Sequence[str]) -> list[str]:
    """Each path as an absolute one in its only spelling; links are not looked up."""
    folder, plain = os.path.join(os.path.abspath(base), ""), os.path.normpath
    return [plain(f"//{path}" if path[0] == "/" else folder + path) for path in paths]  # it keeps two slashes


def _refuse(read: Read, wrong: np.ndarray, what: str) -> None:
    """Raises DataError with the first rows where `wrong` is true, if there are any."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
        shown = ", ".join(read.name_rows(rows[:SHOWN].tolist()))
        raise DataError(f"{what}: {shown}{more}", where=read.where)


def _split(
    read: Read,
    labels: np.ndarray,
    class_names: Sequence[str],
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of each split, and what to tell the user."""
    if "split" not in read.table.column_names:
        return _divide(read.where, labels, test_fraction, seed)
    column = read.table["split"].combine_chunks().dictionary_encode()
    split_by_word = [split_of(word) or "" for word in column.dictionary.to_pylist()]
    split = np.array([*split_by_word, ""])[np.asarray(column.indices)]
    unknown = [
        word for word, known in zip(column.dictionary.to_pylist(), split_by_word, strict=True) if not known
    ]
    shown = ", ".join(map(repr, unknown[:SHOWN]))
    _refuse(read, split == "", f"a split that is none of {', '.join(SPLITS)} ({shown})")
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    if not len(rows["train"]):
        raise DataError("no row has the split 'train'", where=read.where)
    tests = [name for name in ("test", "val") if len(rows[name])]
    if not tests:
        return _divide(read.where, labels, test_fraction, seed)
    refuse_fraction(test_fraction, where=read.where)
    test = rows[tests[0]]
    in_train = np.bincount(labels[rows["train"]], minlength=len(class_names)) > 0
    unseen = np.zeros(len(labels), bool)
    unseen[test] = ~in_train[labels[test]]
    if unseen.any():
        name = class_names[labels[np.flatnonzero(unseen)[0]]]
        known = [class_names[k] for k in np.flatnonzero(in_train).tolist()]
        what = f"a label of the test set that the training set has not ({name!r}){nearly(name, known)}"
        _refuse(read, unseen, what)
    notes = (
        [f"`test` is the test set; the {len(rows['val']):,} rows of `val` are not used."]
        if len(tests) == 2
        else []
    )
    return {"train": rows["train"], "test": test}, notes


def _divide(
    where: str, labels: np.ndarray, test_fraction: float, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    splits = divide(labels, test_fraction, seed, where=where)
    return splits, [MAY_BE_WRONG] if "test" in splits else []
