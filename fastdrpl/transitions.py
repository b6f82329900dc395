"""Which class is mistaken for which: transition matrices from files, and the similar classes of CIFAR."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError

_CIFAR10_FLIPS = (("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"))
_CIFAR10_BACK = ("dog", "cat")  # in the published code; the paper's text has the other direction only
_ROW_SUM_TOLERANCE = 1e-4  # a matrix written with four decimals must pass


def load_matrix(path: Path, classes: int) -> np.ndarray:
    """Read a (C, C) row-stochastic matrix from .npy or .csv; rows are scaled to sum to 1 exactly.

    Raises UserError for a missing file or unknown ending, DataError for a wrong shape, value or row sum.
    """
    if path.suffix not in (".npy", ".csv") or not path.is_file():
        raise UserError("the transition matrix must be an existing .npy or .csv file", where=str(path))
    try:
        stored = (
            np.load(path, allow_pickle=False)
            if path.suffix == ".npy"
            else np.loadtxt(path, delimiter=",", ndmin=2)
        )
        matrix = np.asarray(stored, dtype=np.float64)
    except (ValueError, EOFError, OSError) as error:
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
            "nonuniform noise is defined for CIFAR-10 and for data with superclasses (CIFAR-100) only",
            where="noise.kind",
            fix="use --noise.kind matrix with a transition matrix of your own, or uniform",
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
