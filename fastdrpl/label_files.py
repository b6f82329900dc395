"""Label files that others publish: of torch (CIFAR-10N, CIFAR-100N), .npy, lines of text, tables, cleanlab's table.

They hold labels alone. What is right comes from the data set or from the file's own clean labels; that the file is of
these data is checked by its length, its clean labels or its file names, and by how often it agrees with the data set.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdrpl.labels import UNKNOWN, Labels
from fastdrpl.loaders.arrays import read_npy
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import composed
from fastdrpl.loaders.sources.columns import LABELS, PATHS

ENDINGS = (".pt", ".pth", ".npy", ".txt", ".csv", ".tsv")
_OWN = {"index", "row", "given", "truth"}
_MOST = 1 << 27  # labels in a file
_FEW = 50  # labels below which agreement by chance says nothing
_FIX = "use the label file that was made for this data set"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The samples that the labels are for."""

    truth: np.ndarray  # (N,) int64, UNKNOWN where it is not known
    given: np.ndarray  # (N,) int64: the labels of the data set
    source_row: np.ndarray  # (N,) int64: row of the prepared split
    total: int  # rows of the prepared split
    class_names: tuple[str, ...]
    ids: Sequence[str] | None = None  # file name of each row of the split


@dataclass(frozen=True)
class _Found:
    """What a file holds: labels as numbers or text, perhaps clean ones, perhaps the file of each."""

    labels: Sequence[str] | np.ndarray
    clean: np.ndarray | None = None
    files: Sequence[str] | None = None


def is_foreign(path: Path) -> bool:
    """Whether a label file is one of the kinds read here, rather than one that `Labels.save` wrote."""
    kind = path.suffix.lower()
    if kind != ".csv" or not path.is_file():
        return kind in ENDINGS and kind != ".csv"
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline(1 << 16)
    return not first.startswith("# class_names:") and not set(next(csv.reader([first]), [])) >= _OWN


def read_labels(path: Path, column: str | None, rows: Rows) -> Labels:
    """The labels of a file for these samples. `column`: which of its label sets, by name, where it has several.

    Raises UserError (no such file, set or ending) or DataError (damaged, of other data, out of range).
    """
    if not path.is_file():
        raise UserError("there is no such label file", where=str(path), fix="check the path")
    try:
        found = _read(path, column)
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(f"not a readable label file: {error}", where=str(path)) from error
    try:
        if found.files is not None:
            found = _by_file(found, rows)
        given = _chosen(_numbers(found.labels, rows.class_names), rows, "labels")
        truth = rows.truth
        if found.clean is not None:
            clean = _chosen(found.clean, rows, "clean labels")
            differs = (clean != truth) & (truth != UNKNOWN)
            if differs.any():
                raise DataError(
                    f"its clean labels differ from those of the data set for {differs.sum():,} of {len(truth):,} "
                    f"samples, first at index {int(differs.argmax())}: another set, or another order"
                )
            truth = clean
        _check_agreement(given, np.where(truth >= 0, truth, rows.given))
        return Labels(given, truth, rows.source_row, rows.class_names)
    except DataError as error:
        raise DataError(error.what, where=str(path), fix=error.fix or _FIX) from error


def _read(path: Path, column: str | None) -> _Found:
    kind = path.suffix.lower()
    if kind in (".pt", ".pth"):
        from fastdrpl.loaders.torch_files import read_label_sets

        return _choose_set(read_label_sets(path), column, path)
    if kind == ".npy":
        if column is not None:
            raise UserError(
                "an .npy file has one set of labels", where="noise.file_column", fix="leave it out"
            )
        values = read_npy(path, kinds="iuU", most=_MOST)
        if values.ndim != 1:
            raise ValueError(f"an array of shape {values.shape}, wanted one row of labels")
        return _Found(values if values.dtype.kind != "U" else values.tolist())
    with open(path, encoding="utf-8-sig", newline="") as file:
        text = file.read()
    first = text.split("\n", 1)[0]
    mark = next((mark for mark in ("\t", ",", ";") if mark in first), "," if kind != ".txt" else None)
    if mark is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = [line.rsplit(None, 1) for line in lines]
        return _table(
            [pair if _is_file(pair[0]) else [line] for pair, line in zip(pairs, lines, strict=True)],
            column,
            path,
        )
    return _table([row for row in csv.reader(text.splitlines(), delimiter=mark) if row], column, path)


def _choose_set(sets: dict[str, np.ndarray], column: str | None, path: Path) -> _Found:
    clean = next(
        (sets[name] for name in sets if name.lower() in ("clean_label", "clean_labels", "clean")), None
    )
    noisy = [name for name in sets if not name.lower().startswith("clean")]
    fine = [name for name in noisy if "coarse" not in name.lower()]
    if column is None and len(fine) == 1:
        column = fine[0]
    if column not in sets:
        raise UserError(
            f"which of its label sets? {', '.join(noisy) or 'it has clean ones only'}"
            if column is None
            else f"no label set {column!r} in the file; it has {', '.join(sets)}",
            where=str(path),
            fix=f"--noise.file {path} --noise.file_column {(fine or noisy or list(sets))[0]}",
        )
    return _Found(sets[column], None if clean is None or len(clean) != len(sets[column]) else clean)


def _table(lines: list[list[str]], column: str | None, path: Path) -> _Found:
    """Labels of a table with or without a first line of names, with or without the file of each."""
    if not lines:
        raise ValueError("it has no labels")
    head = [cell.strip().casefold() for cell in lines[0]]
    wanted = [column.casefold()] if column else ["given_label", *LABELS]  # the first is cleanlab's
    named = next((head.index(name) for name in wanted if name in head), None)
    if column and named is None:
        shown = ", ".join(repr(printable(cell)) for cell in lines[0][:12])
        raise UserError(f"no column {column!r} in the file; its first line is {shown}", where=str(path))
    body = lines[1:] if named is not None else lines
    width = len(lines[0])
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != width), None)
    if wrong:
        raise ValueError(f"line {wrong} has {len(lines[wrong - 1])} fields, the first line has {width}")
    if named is None and width > 2:
        raise ValueError(f"{width} columns, and none of them is called label or given_label")
    files = next((head.index(name) for name in PATHS if name in head), None) if named is not None else None
    if named is None and width == 2:
        files = 0
    labels = [line[named if named is not None else width - 1].strip() for line in body]
    return _Found(labels, files=None if files is None else [line[files].strip() for line in body])


def _is_file(text: str) -> bool:
    return "." in text.rsplit("/", 1)[-1][1:]


def _by_file(found: _Found, rows: Rows) -> _Found:
    """The labels in the order of the rows of the split. Raises DataError where a file has none, or two."""
    if rows.ids is None:
        raise DataError("labels by file name, but the rows of this data set are no files")
    row_of = {composed(name): row for row, name in enumerate(rows.ids)}
    short: dict[str, int | None] = {}
    for name, place in row_of.items():
        end = name.rpartition("/")[2]
        short[end] = None if end in short else place
    labels: list[str | None] = [None] * rows.total
    for name, label in zip(found.files or (), found.labels, strict=True):
        plain = composed(name.replace("\\", "/").removeprefix("./"))
        row = row_of.get(plain, short.get(plain.rpartition("/")[2]))
        if row is None:
            raise DataError(f"no image {printable(name)!r} (or several) in the data set")
        if labels[row] is not None:
            raise DataError(f"the image {printable(name)!r} has two labels")
        labels[row] = str(label)
    lost = [row for row in rows.source_row.tolist() if labels[row] is None]
    if lost:
        raise DataError(
            f"{len(lost):,} of {len(rows.source_row):,} images have no label in the file, "
            f"{printable(rows.ids[lost[0]])} for one"
        )
    return _Found([labels[row] or "" for row in rows.source_row.tolist()])


def _numbers(labels: Sequence[str] | np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """(n,) int64: numbers of classes as they are, text as names of classes, or as numbers."""
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int64)
    number_of = {composed(name): number for number, name in enumerate(names)}
    texts = [composed(label) for label in labels]
    if all(text in number_of for text in texts):
        return np.fromiter((number_of[text] for text in texts), np.int64, len(texts))
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        strange = next(text for text in texts if text not in number_of)
        raise DataError(f"{printable(strange)!r} is no class of the data set") from None


def _chosen(values: np.ndarray, rows: Rows, what: str) -> np.ndarray:
    """The labels of the samples, of a file for all rows of the split or for the samples alone; in range."""
    if len(values) not in (rows.total, len(rows.source_row)):
        raise DataError(
            f"the file has {len(values):,} {what}, the data set has {rows.total:,} training rows"
            + (f" ({len(rows.source_row):,} are used)" if rows.total != len(rows.source_row) else "")
        )
    values = values[rows.source_row] if len(values) == rows.total else values
    count = len(rows.class_names)
    if len(values) and not 0 <= values.min() <= values.max() < count:
        hint = "; they seem to be counted from 1" if values.min() == 1 and values.max() == count else ""
        raise DataError(
            f"{what} are {values.min()}..{values.max()}, the data set has classes 0..{count - 1}{hint}"
        )
    return values


def _check_agreement(given: np.ndarray, reference: np.ndarray) -> None:
    """Raises DataError where labels agree with those of the data set no more often than chance does."""
    inside = reference >= 0
    n = int(inside.sum())
    if n < _FEW:
        return
    size = int(max(given.max(), reference.max())) + 1
    shares = [np.bincount(values[inside], minlength=size) / n for values in (given, reference)]
    chance, agree = float(shares[0] @ shares[1]), float((given == reference)[inside].mean())
    if agree <= chance + 3 * math.sqrt(chance * (1 - chance) / n) and chance < 1:
        raise DataError(
            f"the labels agree with those of the data set for {agree:.1%} of {n:,} samples, as chance would "
            f"({chance:.1%}): another order, or other classes"
        )
