"""The grids that are shipped."""

import os

import numpy as np
import pytest
from test_compare_grid import write

from fastdrpl.cli import main
from fastdrpl.compare import verb
from fastdrpl.compare.cells import plan_cells
from fastdrpl.compare.grid import GRIDS, find_grid, read_grid, shipped_grids
from fastdrpl.compare.published import ABBREVIATIONS
from fastdrpl.methods import METHODS

TABLES = {  # layout, methods, noises, data sets: as the paper has them
    "table1": ("I", 3, 14, ["imagenet32"]),
    "table2": ("II", 5, 8, ["imagenet32", "imagenet64"]),
    "table3": ("III", 10, 1, ["webvision"]),
    "table4": ("IV", 9, 8, ["cifar10", "cifar100"]),
    "digits": ("plain", 13, 2, ["digits"]),
    "digits-quick": ("plain", 13, 2, ["digits"]),
    "cifar-trial": ("IV", 10, 2, ["cifar10"]),
}


def test_the_shipped_grids_are_listed(capsys):
    assert set(shipped_grids()) == set(TABLES)
    assert main(["compare", "--list"]) == 0
    said = capsys.readouterr().out
    for name, path in shipped_grids().items():
        assert f"{name} " in said and str(path) in said
        assert find_grid(name) == path


@pytest.mark.parametrize("name", TABLES)
def test_a_shipped_grid_is_sound(name, tmp_path, monkeypatch):
    """Also while some of its methods are not there yet: those that are become commands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "confusion.npz").write_bytes(b"not read yet")
    layout, methods, noises, data = TABLES[name]
    grid = read_grid(shipped_grids()[name], known_methods=list(ABBREVIATIONS))
    assert (grid.table, len(grid.methods), len(grid.noises)) == (layout, methods, noises)
    assert [entry.recipe for entry in grid.data] == data
    assert grid.out == tmp_path / "runs" / f"compare-{name}", "a shipped grid starts where one stands"
    there = tuple(method for method in grid.methods if method.label in METHODS)
    assert there
    plan = plan_cells(type(grid)(**{**vars(grid), "methods": there}))
    assert len(plan.cells) == len(there) * noises * len(data) * len(grid.seeds)
    for entry in grid.data:
        assert entry.path == (None if name.startswith("digits") else tmp_path / "data" / entry.recipe)


def test_a_file_beats_a_shipped_grid_of_its_name(tmp_path, monkeypatch):
    write(tmp_path, name="digits")
    monkeypatch.chdir(tmp_path)
    assert find_grid("digits") == tmp_path / "digits"


def test_digits_that_look_alike():
    """digits-alike.csv: every digit becomes another one, and the mean images of all ten pairs are nearest in total."""
    from sklearn.datasets import load_digits

    matrix = np.loadtxt(GRIDS / "digits-alike.csv", delimiter=",")
    images, label = load_digits(return_X_y=True)
    mean = np.stack([images[label == k].mean(0) for k in range(10)])
    distance = np.linalg.norm(mean[:, None] - mean, axis=2)
    assert sorted(matrix.argmax(1)) == list(range(10)) and (matrix.sum(1) == 1).all()
    assert not np.diagonal(matrix).any()
    ours = float((matrix * distance).sum())
    # The best among all pairings into which permutations without a fixed point can be exchanged, by dynamic programming
    # over sets of digits taken.
    best = {0: 0.0}
    for source in range(10):
        best = {
            taken: min(
                best[taken ^ 1 << target] + distance[source, target]
                for target in range(10)
                if taken >> target & 1 and target != source and taken ^ 1 << target in best
            )
            for taken in range(1 << 10)
            if taken.bit_count() == source + 1
            and any(taken >> t & 1 and t != source and taken ^ 1 << t in best for t in range(10))
        }
    assert ours == pytest.approx(best[(1 << 10) - 1])


def test_the_digits_matrix_flips_that_share(tmp_path, monkeypatch):
    from fastdrpl.noise import draw_noise
    from fastdrpl.noise_config import NoiseConfig

    monkeypatch.chdir(tmp_path)
    grid = read_grid(shipped_grids()["digits"], known_methods=list(ABBREVIATIONS))
    (noise,) = (noise for noise in grid.noises if noise.label == "NU-0.3")
    options = noise.options | {"matrix": grid.resolve(noise.options["matrix"])}
    truth = np.arange(2000) % 10
    labels = draw_noise(truth, np.arange(2000), tuple("0123456789"), NoiseConfig(**options))
    wrong = labels.given != truth
    assert wrong.sum() == 600
    pairs = set(zip(truth[wrong].tolist(), labels.given[wrong].tolist(), strict=True))
    assert pairs == {(0, 9), (9, 0), (1, 8), (8, 1), (2, 3), (3, 2), (4, 6), (6, 4), (5, 7), (7, 5)}


def test_help_of_the_verb_is_quick_to_import():
    """The module of the flags imports nothing heavy."""
    import subprocess
    import sys

    code = "import fastdrpl.compare.verb, sys; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert verb.CompareConfig().jobs == 0
