"""A confusion matrix, a pool of other classes and labels, on which noise is drawn."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fastdrpl.labels import OUTSIDE, Labels
from fastdrpl.noise import Pool, draw_noise
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.transitions import Confusion, save_confusion

INSIDE, OUTER = 6, 8
NAMES = tuple(f"in {k}" for k in range(INSIDE))
OUTER_NAMES = tuple(f"out {k}" for k in range(OUTER))
SAMPLES = 3_000


def random_counts(seed: int = 0) -> np.ndarray:
    """14 classes, inside and outside ones mixed, most images right; class 0 is never mistaken for another."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 12, (INSIDE + OUTER, INSIDE + OUTER)) * (draw.random((14, 14)) < 0.8)
    np.fill_diagonal(counts, 60)
    counts[place("in 0")] = 0
    counts[place("in 0"), place("in 0")] = 50
    return counts


def place(name: str) -> int:
    return sorted((*NAMES, *OUTER_NAMES), key=lambda n: n[::-1]).index(name)  # another order than the data's


def store_confusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored matrix of 14 classes in an order of its own."""
    counts = random_counts()
    names = tuple(sorted((*NAMES, *OUTER_NAMES), key=place))
    path = tmp_path_factory.mktemp("confusion") / "confusion.npz"
    shares = counts / counts.sum(axis=1, keepdims=True)
    save_confusion(Confusion(shares, names, ("net",), (0.5,), (int(counts.sum()),)), path)
    return path


def share(true: str, predicted: str) -> float:
    """The independent reference: a share of the counts, plus the published 10e-6."""
    row = random_counts()[place(true)]
    return row[place(predicted)] / row.sum() + 10e-6


def expected(rows: tuple[str, ...], columns: tuple[str, ...], value) -> np.ndarray:
    table = np.array([[value(row, column) for column in columns] for row in rows])
    return table / table.sum(axis=1, keepdims=True)


def make_pool(each: int = 2_000, first: int = 1_000_000) -> Pool:
    rows = first + np.arange(each * OUTER)
    return Pool(rows, np.random.default_rng(3).permutation(np.arange(len(rows)) % OUTER), OUTER_NAMES)


def truth_of(samples: int = SAMPLES, classes: int = INSIDE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, classes, samples)


def draw(confusion: Path | None = None, pool: Pool | None = None, truth: np.ndarray | None = None, **config):
    truth = truth_of() if truth is None else truth
    settings = NoiseConfig(confusion=confusion, **config)
    return draw_noise(truth, np.arange(len(truth)) * 2, NAMES, settings, pool=pool)


def outer_class(labels: Labels, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Given label and outside class of every swapped sample."""
    swapped = labels.truth == OUTSIDE
    position = np.searchsorted(pool.rows, labels.source_row[swapped])
    assert np.array_equal(pool.rows[position], labels.source_row[swapped])
    return labels.given[swapped], pool.label[position]


def chi_square(observed: np.ndarray, chances: np.ndarray) -> float:
    """p of one test over all rows; rare cells of a row are taken together."""
    statistic, freedom = 0.0, 0
    for counts, chance in zip(observed, chances, strict=True):
        wanted = counts.sum() * chance
        rare = wanted < 5
        counts = np.append(counts[~rare], counts[rare].sum())
        wanted = np.append(wanted[~rare], wanted[rare].sum())
        counts, wanted = counts[wanted > 0], wanted[wanted > 0]
        statistic += ((counts - wanted) ** 2 / wanted).sum()
        freedom += len(counts) - 1
    return float(stats.chi2.sf(statistic, freedom))


# --- rates ---

KINDS = ("uniform", "nonuniform", "uniform_ood", "nonuniform_ood")


def settings_of(kind: str, confusion: Path) -> dict:
    return {
        "kind": kind,
        "confusion": confusion if kind.startswith("nonuniform") else None,
        "pool": make_pool() if kind.endswith("ood") else None,
    }
