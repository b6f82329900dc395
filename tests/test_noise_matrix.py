"""Noise that follows a matrix from a file."""

from pathlib import Path

import numpy as np
import pytest
from noise_cases import draw, names_of, random_truth
from scipy import stats

from fastdrpl.labels import Labels
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.noise import achieved

# --- a matrix from a file ---

MATRIX = np.array(
    [[0.6, 0.3, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.9, 0.05, 0.05, 0.0]]
)


def save_matrix(folder: Path, matrix: np.ndarray = MATRIX, ending: str = ".npy") -> Path:
    path = folder / f"matrix{ending}"
    if ending == ".npy":
        np.save(path, matrix)
    else:
        np.savetxt(path, matrix, delimiter=",")
    return path


def counts(truth: np.ndarray, given: np.ndarray) -> np.ndarray:
    return np.array(achieved(Labels(given, truth, np.arange(len(truth)), names_of(4)))["transitions"])


def fits(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Chi-square of each row of counts against probabilities; impossible targets must never occur."""
    possible = expected > 0
    assert not observed[~possible].any()
    return all(
        stats.chisquare(observed[k][possible[k]], observed[k].sum() * expected[k][possible[k]]).pvalue > 0.001
        for k in range(len(expected))
        if possible[k].sum() > 1
    )


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_the_matrix_is_followed(ending: str, tmp_path: Path):
    """R16."""
    path, truth = save_matrix(tmp_path, ending=ending), random_truth(4_000, 4)
    total = sum(
        counts(truth, draw(truth, names_of(4), kind="matrix", matrix=path, seed=seed).given)
        for seed in range(50)
    )
    assert fits(total, MATRIX)
    nearby = MATRIX.copy()
    nearby[0] += [-0.01, 0.01, 0, 0]
    assert not fits(total, nearby)  # one part in a hundred would be seen


def test_the_matrix_without_its_diagonal_says_where_and_the_ratio_how_many(tmp_path: Path):
    path, truth = save_matrix(tmp_path), random_truth(4_000, 4)
    total = np.zeros((4, 4))
    for seed in range(50):
        config = {"kind": "matrix", "matrix": path, "matrix_diagonal": "drop", "ratio": 0.5, "seed": seed}
        given = draw(truth, names_of(4), **config).given
        assert np.count_nonzero(given != truth) == np.count_nonzero(truth != 1) // 2  # class 1 has no target
        total += counts(truth, given)
    np.fill_diagonal(total, 0)
    expected = MATRIX * (1 - np.eye(4))
    expected[[0, 2, 3]] /= expected[[0, 2, 3]].sum(axis=1, keepdims=True)
    assert fits(total, expected)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"is \(3, 3\), the data have 4 classes"),
        (np.eye(4) * 0.9, "row 0 of the matrix sums to 0.9"),
        (np.array([[1.1, -0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "negative"),
        (np.full((4, 4), np.nan), "non-finite"),
        (np.array([[0.5, 0.5, 0, 0], [0.25, 0.5, 0.25, 0], [0, 0, 0.5, 0], [0.25, 0, 0.25, 1]]), "transpose"),
    ],
)
def test_wrong_matrices_say_what_is_wrong(matrix: np.ndarray, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        draw(np.arange(8) % 4, names_of(4), kind="matrix", matrix=save_matrix(tmp_path, matrix))


def test_a_matrix_file_that_is_none(tmp_path: Path):
    (tmp_path / "m.csv").write_text("a,b\n")
    (tmp_path / "m.npy").write_bytes(b"\x93NUMPY")
    for name in ("m.csv", "m.npy"):
        with pytest.raises(DataError, match="not a readable matrix"):
            draw(np.arange(4), names_of(4), kind="matrix", matrix=tmp_path / name)
    with pytest.raises(UserError, match=r"\.npy or \.csv"):
        draw(np.arange(4), names_of(4), kind="matrix", matrix=tmp_path / "none.npy")
