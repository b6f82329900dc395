"""The labels of a view: what the trainer is told, what is right, and which pixels are shown."""

import codecs
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdrpl.files import write_atomic
from fastdrpl.loaders.arrays import open_npz
from fastdrpl.loaders.errors import DataError, UserError

UNKNOWN = -1  # the right class is not known
OUTSIDE = -2  # the image belongs to none of the classes
_COLUMNS = ("index", "row", "given", "truth")
_NAMES_LINE = b"# class_names: "
_MOST_COMMENTS = 16  # lines before the names of columns
_MOST = 1 << 27  # samples in a file where nobody knows how many there should be
_FEW = 1 << 20  # samples of which a file may always hold more than wanted: then it is said how many
_LONGEST_NAMES = 1 << 24  # bytes of all class names
# what pyarrow and json raise for damaged files
_UNREADABLE = (ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, MemoryError)


class NoisyLabels(NamedTuple):
    """Which labels are wrong. `noisy` is False wherever `known` is False."""

    noisy: np.ndarray  # (N,) bool
    known: np.ndarray  # (N,) bool


@dataclass(frozen=True, eq=False)
class Labels:
    """Given and true labels of N samples of C classes; the arrays are copied and read-only.

    Raises DataError when the lengths differ, a value is no integer, a given label is not in 0..C-1, a true
    one not in -2..C-1, a row is negative, or class names are missing or repeated.
    """

    given: np.ndarray  # (N,) int64, the label the trainer sees
    truth: np.ndarray  # (N,) int64: >= 0, UNKNOWN (-1) or OUTSIDE (-2)
    source_row: np.ndarray  # (N,) int64: row of the prepared split whose pixels are shown
    class_names: tuple[str, ...]
    redrawn: int = (
        0  # images from outside whose class was drawn again, as the first had none left; not stored
    )

    def __post_init__(self) -> None:
        names = tuple(self.class_names)
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise DataError(f"class names must be texts, at least one and none twice; got {names[:10]!r}")
        object.__setattr__(self, "class_names", names)
        for column, low, high in (
            ("given", 0, len(names) - 1),
            ("truth", OUTSIDE, len(names) - 1),
            ("source_row", 0, np.iinfo(np.int64).max),
        ):
            values = _checked_column(column, getattr(self, column), low, high)
            if len(values) != len(self.given):
                raise DataError(f"{column} has {len(values)} values, given has {len(self.given)}")
            object.__setattr__(self, column, values)

    def __len__(self) -> int:
        return len(self.given)

    @property
    def is_noisy(self) -> NoisyLabels:
        """Which labels differ from the truth, and where that is known; an OUTSIDE sample is noisy."""
        known = self.truth != UNKNOWN
        return NoisyLabels(known & (self.given != self.truth), known)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of labels, rows and class names; the same on every machine, for every file format."""
        digest = hashlib.sha256(b"fastdrpl labels 1\n")
        digest.update(json.dumps([len(self), *self.class_names]).encode())
        for values in (self.given, self.truth, self.source_row):
            digest.update(values.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all; the ending says how: .npz, .csv or .parquet."""
        encode = _format(path)[0]
        if not path.parent.is_dir():
            raise UserError("there is no such folder", where=str(path.parent), fix="make it first")
        write_atomic(path, encode(self))

    @classmethod
    def load(cls, path: Path) -> "Labels":
        """Read what `save` wrote; `load_labels` also compares it with a data set."""
        return load_labels(path)


def load_labels(
    path: Path, *, samples: int | None = None, class_names: tuple[str, ...] | None = None
) -> Labels:
    """Read a label file (.npz, .csv, .parquet) and check that it fits.

    `samples` and `class_names` are what the data set has; where given, the file must agree. A file without
    class names takes `class_names`. Lines may be in any order; `index` must name every sample once.
    Raises UserError for an unknown ending or a missing file, DataError for a damaged file or other data.
    """
    reader = _format(path)[1]
    if not path.is_file():
        raise UserError("there is no such label file", where=str(path), fix="check the path")
    try:
        columns, names = reader(path, _MOST if samples is None else max(samples, _FEW))
    except _UNREADABLE as error:
        raise DataError(
            f"not a readable label file: {error}",
            where=str(path),
            fix=f"it needs the columns {', '.join(_COLUMNS)}",
        ) from error
    try:
        names = _agreed_names(names, class_names)
        index = _checked_column("index", columns["index"], 0, np.iinfo(np.int64).max)
        if samples is not None and len(index) != samples:
            raise DataError(f"the label file has {len(index)} samples, the data set has {samples}")
        order = np.argsort(index, kind="stable")
        wrong = np.flatnonzero(index[order] != np.arange(len(index)))
        if len(wrong):
            raise DataError(
                f"index must hold 0..{len(index) - 1}, each once; {wrong[0]} is missing or comes twice"
            )
        return Labels(columns["given"][order], columns["truth"][order], columns["row"][order], names)
    except DataError as error:
        raise DataError(
            error.what, where=str(path), fix="use the label file that was made for this data set"
        ) from error


def _checked_column(column: str, values: np.ndarray, low: int, high: int) -> np.ndarray:
    """A read-only int64 copy of `values` (N,), all within low..high."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
        seen = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(f"{column} must be an (N,) array of integers, got {seen}")
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        raise DataError(
            f"{column}: {len(wrong)} of {len(values)} values are outside {low}..{high}, "
            f"the first is {values[wrong[0]]} at sample {wrong[0]}"
        )
    checked = values.astype(np.int64)
    checked.flags.writeable = False
    return checked


def _agreed_names(in_file: tuple[str, ...] | None, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    if in_file is None and wanted is None:
        raise DataError("the label file has no class names")
    if in_file is None or wanted is None or in_file == wanted:
        return in_file or wanted or ()
    if len(in_file) != len(wanted):
        raise DataError(f"the label file has {len(in_file)} classes, the data set has {len(wanted)}")
    first = next(k for k in range(len(wanted)) if in_file[k] != wanted[k])
    hint = " (the same names in another order)" if set(in_file) == set(wanted) else ""
    raise DataError(
        f"class {first} is {in_file[first]!r} in the label file and {wanted[first]!r} in the data set{hint}"
    )


# --- file formats: each encoder gives the file's bytes, each reader the columns and the class names ---

_Table = tuple[dict[str, np.ndarray], tuple[str, ...] | None]


def _columns(labels: Labels) -> dict[str, np.ndarray]:
    index = np.arange(len(labels), dtype=np.int64)
    return {"index": index, "row": labels.source_row, "given": labels.given, "truth": labels.truth}


def _names_from_json(text: bytes) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list):
        raise ValueError(f"class names must be a list, got {type(names).__name__}")
    return tuple(names)


def _encode_npz(labels: Labels) -> bytes:
    names = np.frombuffer(json.dumps(labels.class_names).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, class_names=names, **_columns(labels))  # type: ignore[arg-type]
    return buffer.getvalue()


def _read_npz(path: Path, most: int) -> _Table:
    with open_npz(path) as stored:
        columns = {name: stored.read(name, kinds="biuf", most=most) for name in _COLUMNS}
        if "class_names" not in stored.names:
            return columns, None
        names = stored.read("class_names", kinds="u", most=_LONGEST_NAMES)
        return columns, _names_from_json(names.tobytes())


def _encode_csv(labels: Labels) -> bytes:
    return encode_csv(labels)


def encode_csv(
    labels: Labels, *, comments: Sequence[str] = (), more: Mapping[str, Sequence[str | None]] | None = None
) -> bytes:
    """The bytes of a .csv label file. `comments`: further lines at its head; `more`: further columns of N texts."""
    import pyarrow
    import pyarrow.csv

    head = [_NAMES_LINE.decode() + json.dumps(labels.class_names), *comments]
    buffer = io.BytesIO("".join(f"{line}\n" for line in head).encode())
    buffer.seek(0, io.SEEK_END)
    texts = {name: pyarrow.array(values, pyarrow.string()) for name, values in (more or {}).items()}
    options = pyarrow.csv.WriteOptions(quoting_style="needed" if texts else "none")
    pyarrow.csv.write_csv(pyarrow.table({**_columns(labels), **texts}), buffer, options)
    return buffer.getvalue()


def read_comments(path: Path) -> list[bytes]:
    """The lines with `#` at the head of a .csv label file, without their ends. Raises OSError."""
    comments: list[bytes] = []
    with open(path, "rb") as file:
        line = file.readline().removeprefix(codecs.BOM_UTF8)
        while line.startswith(b"#") and len(comments) < _MOST_COMMENTS:
            comments.append(line.rstrip(b"\r\n"))
            line = file.readline()
    return comments


def _read_csv(path: Path, most: int) -> _Table:
    import pyarrow
    import pyarrow.csv

    comments, text = read_comments(path), io.BytesIO(path.read_bytes())
    for _ in comments:  # by hand: a line of comment may be longer than a block of the reader
        text.readline()
    table = pyarrow.csv.read_csv(
        text,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pyarrow.int64() for name in _COLUMNS}, include_columns=list(_COLUMNS)
        ),
    )
    _check_rows(len(table), most)
    columns = {name: table[name].to_numpy() for name in _COLUMNS}
    named = [line[len(_NAMES_LINE) :] for line in comments if line.startswith(_NAMES_LINE)]
    return columns, _names_from_json(named[0]) if named else None


def _encode_parquet(labels: Labels) -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(_columns(labels))
    table = table.replace_schema_metadata({"class_names": json.dumps(labels.class_names)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _read_parquet(path: Path, most: int) -> _Table:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        groups = range(file.metadata.num_row_groups)
        _check_rows(sum(file.metadata.row_group(number).num_rows for number in groups), most)
        table = file.read(columns=list(_COLUMNS))
    names = (table.schema.metadata or {}).get(b"class_names")
    return {name: table[name].to_numpy() for name in _COLUMNS}, None if names is None else _names_from_json(
        names
    )


def _check_rows(rows: int, most: int) -> None:
    """Raises ValueError where a file has more samples than it can be meant to have."""
    if rows > most:
        raise ValueError(f"{rows:,} samples, more than {most:,}")


_FORMATS: dict[str, tuple[Callable[[Labels], bytes], Callable[[Path, int], _Table]]] = {
    ".npz": (_encode_npz, _read_npz),
    ".csv": (_encode_csv, _read_csv),
    ".parquet": (_encode_parquet, _read_parquet),
}


def _format(path: Path) -> tuple[Callable[[Labels], bytes], Callable[[Path, int], _Table]]:
    if path.suffix not in _FORMATS:
        raise UserError(
            f"unknown kind of label file: {path.suffix or 'no ending'}",
            where=str(path),
            fix=f"use a name that ends in {', '.join(_FORMATS)}",
        )
    return _FORMATS[path.suffix]
