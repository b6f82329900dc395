"""Which class is mistaken for which: matrices from files, and the similar classes of CIFAR and ImageNet."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastdrpl.files import write_atomic
from fastdrpl.loaders.arrays import is_npy, open_npz, read_npy
from fastdrpl.loaders.errors import DataError, UserError

_CIFAR10_FLIPS = (("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"))
_CIFAR10_BACK = ("dog", "cat")  # in the published code; the paper's text has the other direction only
_ROW_SUM_TOLERANCE = 1e-4  # a matrix written with four decimals must pass
# Added to every share of a confusion matrix before it is used, so that no class is impossible. The published code
# does it (as the literal 10e-6), and it is not small: over 900 classes it adds up to 0.009.
CONFUSION_FLOOR = 1e-5
MAKE_CONFUSION = (
    "`fastdrpl confusion --images VAL --out confusion.npz` (VAL = the ImageNet validation images in class folders), "
    "then --noise.confusion confusion.npz"
)
_CONFUSION_SCHEMA = 1
_MOST_CLASSES = 1 << 13  # of a stored matrix, which takes 512 MiB then


def load_matrix(path: Path, classes: int) -> np.ndarray:
    """Read a (C, C) row-stochastic matrix from .npy or .csv; rows are scaled to sum to 1 exactly.

    Raises UserError for a missing file or unknown ending, DataError for a wrong shape, value or row sum.
    """
    if path.suffix not in (".npy", ".csv") or not path.is_file():
        raise UserError("the transition matrix must be an existing .npy or .csv file", where=str(path))
    try:
        stored = (
            read_npy(path, kinds="biuf", most=_MOST_CLASSES**2)
            if path.suffix == ".npy"
            else np.loadtxt(path, delimiter=",", ndmin=2)
        )
        matrix = np.asarray(stored, dtype=np.float64)
    except (ValueError, OSError) as error:
        raise DataError(f"not a readable matrix: {error}", where=str(path)) from error
    if matrix.shape != (classes, classes):
        raise DataError(f"the matrix is {matrix.shape}, the data have {classes} classes", where=str(path))
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise DataError("the matrix has negative or non-finite values", where=str(path))
    sums = matrix.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > _ROW_SUM_TOLERANCE)
    if len(wrong):
        transposed = np.allclose(matrix.sum(axis=0), 1, atol=_ROW_SUM_TOLERANCE)
        raise DataError(
            f"row {wrong[0]} of the matrix sums to {sums[wrong[0]]:.6g}, not 1",
            where=str(path),
            fix="transpose it: its columns sum to 1"
            if transposed
            else "row = true class, column = given class",
        )
    return matrix / sums[:, None]


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often images of each class are taken for each other class, over several networks."""

    matrix: np.ndarray  # (C, C) float64: row = true class, column = predicted class; rows sum to 1
    class_names: tuple[str, ...]  # of rows and columns; for ImageNet the WordNet ids
    networks: tuple[str, ...]  # n networks that the matrix is the mean of
    accuracy: tuple[float, ...]  # (n,) top-1, 0..1
    images: tuple[int, ...]  # (n,) how many images each network saw

    def flips(self, inside: tuple[str, ...]) -> np.ndarray:
        """(C, C) float64: where a wrong label of each of the C classes `inside` goes; rows sum to 1.

        The matrix cut down to these classes, plus the floor, without the diagonal (arXiv 1912.08741, IV-A).
        Raises DataError for a class that the matrix does not have.
        """
        return without_diagonal(self._block(inside, inside))

    def outside_chances(
        self, inside: tuple[str, ...], outside: tuple[str, ...], direction: Literal["row", "column"]
    ) -> np.ndarray:
        """(C, O) float64: for each of C labels, how likely each of O outside classes is; rows sum to 1.

        column: P(truth is o | taken for c) up to the prior, as the published code has it.
        row: P(taken for o | truth is c), as the paper's text has it. Raises DataError as `flips` does.
        """
        chances = (
            self._block(inside, outside) if direction == "row" else self._block(outside, inside).T.copy()
        )
        return chances / chances.sum(axis=1, keepdims=True)

    def _block(self, rows: tuple[str, ...], columns: tuple[str, ...]) -> np.ndarray:
        """Part of the matrix by class names, plus the floor: the order of classes in files differs."""
        place = {name: k for k, name in enumerate(self.class_names)}
        missing = [name for name in (*rows, *columns) if name not in place]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(rows) + len(columns)} classes that are needed are not in the "
                f"confusion matrix, the first is {missing[0]!r}",
                where="noise.confusion",
                fix="use a matrix of the classes of this data set",
            )
        block = self.matrix[np.ix_([place[name] for name in rows], [place[name] for name in columns])]
        return block + CONFUSION_FLOOR


def save_confusion(confusion: Confusion, path: Path) -> None:
    """Write an .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        schema=np.array(_CONFUSION_SCHEMA),
        matrix=confusion.matrix,
        class_names=np.array(confusion.class_names),
        networks=np.array(confusion.networks),
        accuracy=np.array(confusion.accuracy, np.float64),
        images=np.array(confusion.images, np.int64),
    )
    write_atomic(path, buffer.getvalue())


def load_confusion(path: Path) -> Confusion:
    """Read what `save_confusion` wrote. Raises UserError for a missing or other file, DataError for a bad one."""
    if not path.is_file():
        raise UserError("there is no such confusion matrix", where=str(path), fix=MAKE_CONFUSION)
    try:
        stored = None if is_npy(path) else _read_stored(path)
    except (ValueError, OSError) as error:
        raise DataError(
            f"not a readable confusion matrix: {error}", where=str(path), fix="make it again"
        ) from error
    if stored is None:
        raise UserError(
            "not a file that `fastdrpl confusion` made",
            where=str(path),
            fix=f"if it holds counts: `fastdrpl confusion --counts {path} --out confusion.npz`",
        )
    schema, confusion = stored
    matrix, count = confusion.matrix, len(set(confusion.class_names))
    sound = schema == _CONFUSION_SCHEMA and matrix.shape == (count, count)
    sound &= count == len(confusion.class_names)
    if not (sound and (matrix >= 0).all() and np.allclose(matrix.sum(axis=1), 1)):
        raise DataError(
            f"not a sound confusion matrix of schema {_CONFUSION_SCHEMA}: each class needs a row of shares that "
            "sum to 1",
            where=str(path),
            fix="make it again",
        )
    return confusion


def _read_stored(path: Path) -> tuple[int, Confusion] | None:
    """The schema and content of a stored matrix; None for an .npz file of something else. Raises ValueError."""
    with open_npz(path) as stored:
        if "schema" not in stored.names:
            return None

        def row(name: str, kinds: str) -> list[Any]:
            return list(stored.read(name, kinds=kinds, most=_MOST_CLASSES).ravel().tolist())

        matrix = stored.read("matrix", kinds="f", most=_MOST_CLASSES**2)
        return sum(row("schema", "iu")), Confusion(
            matrix=np.asarray(matrix, np.float64),
            class_names=tuple(row("class_names", "U")),
            networks=tuple(row("networks", "U")),
            accuracy=tuple(row("accuracy", "f")),
            images=tuple(row("images", "iu")),
        )


def without_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Remove the diagonal and scale the rows to sum to 1; a row with nothing left stays zero."""
    rest = matrix * (1 - np.eye(len(matrix)))
    sums = rest.sum(axis=1, keepdims=True)
    return np.divide(rest, sums, out=np.zeros_like(rest), where=sums > 0)


def cifar10_flips(class_names: tuple[str, ...], both_directions: bool) -> list[tuple[int, int]]:
    """Pairs (true class, class it is mistaken for) of CIFAR-10 (arXiv 1912.08741, section IV-B).

    `both_directions`: dogs become cats as well. Raises UserError if these are not the classes of CIFAR-10.
    """
    flips = (*_CIFAR10_FLIPS, _CIFAR10_BACK) if both_directions else _CIFAR10_FLIPS
    if not {name for flip in flips for name in flip} <= set(class_names):
        raise UserError(
            "nonuniform noise is defined for CIFAR-10, for data with superclasses (CIFAR-100), and for ImageNet "
            "with a confusion matrix",
            where="noise.kind",
            fix=f"ImageNet: {MAKE_CONFUSION}\n  or:    --noise.kind matrix with a transition matrix of your own",
        )
    return [(class_names.index(source), class_names.index(target)) for source, target in flips]


def superclass_cycles(superclass: Sequence[int], classes: int) -> list[tuple[int, int]]:
    """Pairs (class, next class of its superclass, by number; the last goes to the first).

    `superclass` (C,): the coarse class of each class. Raises UserError where a class has no partner.
    """
    if len(superclass) != classes:
        raise UserError(
            f"there are {len(superclass)} superclass entries for {classes} classes", where="superclass"
        )
    pairs: list[tuple[int, int]] = []
    for coarse in sorted(set(superclass)):
        members = [fine for fine in range(classes) if superclass[fine] == coarse]
        if len(members) == 1:
            raise UserError(
                f"superclass {coarse} has one class only: it has no similar class", where="noise.kind"
            )
        pairs += zip(members, members[1:] + members[:1], strict=True)
    return pairs
