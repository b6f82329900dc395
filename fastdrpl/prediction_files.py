"""Where predictions go, a batch at a time: CSV or parquet, whole or not at all, or CSV on standard output."""

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import pyarrow
import pyarrow.parquet

from fastdrpl.errors import UserError
from fastdrpl.files import TEMPORARY_PREFIX, explain_write_error, fsync_folder

_GROUP = 1 << 14  # rows of a parquet row group


class Prediction(NamedTuple):
    """What the network says of a file: its first classes, and how sure it is of each."""

    file: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class PredictionFile(Protocol):
    """Takes predictions in order."""

    def write(self, rows: list[Prediction]) -> None: ...


def columns(top: int) -> list[str]:
    """Column names: file, class, probability, then class_2, probability_2 and so on."""
    more = [f"{name}_{k}" for k in range(2, top + 1) for name in ("class", "probability")]
    return ["file", "class", "probability", *more]


@contextmanager
def open_predictions(out: Path | None, top: int) -> Iterator[PredictionFile]:
    """A file to write predictions of `top` classes to, by the ending of its name; None: standard output.

    Raises `UserError` for another ending, or where it cannot be written: what was there before then still is.
    """
    if out is None:
        yield _Csv(sys.stdout, top)
        return
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(
            f"unknown kind of file for predictions: {out.suffix or 'no ending'}",
            where=str(out),
            fix="use a name that ends in .csv or .parquet",
        )
    temporary = out.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{out.name}")
    try:
        try:
            if out.suffix == ".csv":
                with open(temporary, "w", newline="", encoding="utf-8") as text:
                    yield _Csv(text, top)
                    text.flush()
                    os.fsync(text.fileno())
            else:
                with open(temporary, "wb") as binary:
                    with _Parquet(binary, top) as table:
                        yield table
                    binary.flush()
                    os.fsync(binary.fileno())
            os.replace(temporary, out)
            fsync_folder(out.absolute().parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:  # of this file: an image that cannot be read is `Unreadable`
        raise explain_write_error(error, out.absolute()) from error


class _Csv:
    def __init__(self, stream: IO[str], top: int):
        self._writer = csv.writer(stream)
        self._writer.writerow(columns(top))

    def write(self, rows: list[Prediction]) -> None:
        for row in rows:
            pairs = zip(row.classes, row.probabilities, strict=True)
            self._writer.writerow([row.file, *(cell for name, p in pairs for cell in (name, f"{p:.4f}"))])


class _Parquet:
    """Collects batches into row groups: one a batch would make a large file slow to read."""

    def __init__(self, stream: IO[bytes], top: int):
        kinds = [pyarrow.float32() if "probability" in name else pyarrow.string() for name in columns(top)]
        self._schema = pyarrow.schema(list(zip(columns(top), kinds, strict=True)))
        self._file = pyarrow.parquet.ParquetWriter(stream, self._schema)
        self._waiting: list[Prediction] = []

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def write(self, rows: list[Prediction]) -> None:
        self._waiting += rows
        if len(self._waiting) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        cells: list[list[str] | list[float]] = [[row.file for row in self._waiting]]
        for k in range((len(self._schema) - 1) // 2):
            cells += [
                [row.classes[k] for row in self._waiting],
                [row.probabilities[k] for row in self._waiting],
            ]
        if self._waiting:
            self._file.write_table(pyarrow.table(cells, schema=self._schema))
        self._waiting = []
