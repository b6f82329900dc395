"""Label noise: how many labels change, into what, and that the published draws come out sample for sample."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_cases import CIFAR10, draw, names_of, random_truth
from scipy import stats

from fastdrpl.labels import Labels
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.pickles import read_plain
from fastdrpl.noise import achieved, draw_noise, flip_matrix
from fastdrpl.noise_config import NoiseConfig

BOTH_WAYS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
SUPERCLASS = tuple(
    np.random.default_rng(7).permutation(np.repeat(range(20), 5)).tolist()
)  # 100 classes, 20 x 5


def hundredths(count: int, percent: int) -> int:
    """floor(count * percent / 100) in integers: the reference that no rounding can spoil."""
    return count * percent // 100


# --- uniform ---


@pytest.mark.parametrize("percent", [0, 10, 20, 30, 40, 50, 60, 70, 80, 29, 57, 100])
@pytest.mark.parametrize("legacy", [False, True])
def test_uniform_changes_exactly_the_floor_of_the_ratio(percent: int, legacy: bool):
    truth = random_truth(50_000, 10)
    labels = draw(truth, kind="uniform", ratio=percent / 100, legacy_rng=legacy)
    assert np.count_nonzero(labels.given != truth) == hundredths(50_000, percent)
    assert np.array_equal(labels.truth, truth) and np.array_equal(labels.source_row, np.arange(50_000))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 400),
    classes=st.integers(2, 12),
    percent=st.integers(0, 100),
    seed=st.integers(0, 2**64 - 1),
)
def test_uniform_per_class_is_exact_in_each_class(samples: int, classes: int, percent: int, seed: int):
    """R16."""
    truth = random_truth(samples, classes, seed % 1000)
    labels = draw(truth, names_of(classes), kind="uniform", ratio=percent / 100, exact="per_class", seed=seed)
    for k in range(classes):
        own = truth == k
        assert np.count_nonzero(labels.given[own] != k) == hundredths(int(own.sum()), percent)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 400),
    classes=st.integers(2, 12),
    percent=st.integers(0, 100),
    seed=st.integers(0, 2**64 - 1),
)
def test_uniform_global_is_exact_for_any_size(samples: int, classes: int, percent: int, seed: int):
    truth = random_truth(samples, classes, seed % 1000)
    labels = draw(truth, names_of(classes), kind="uniform", ratio=percent / 100, seed=seed)
    assert np.count_nonzero(labels.given != truth) == hundredths(samples, percent)


def test_uniform_targets_are_uniform_over_the_other_classes():
    truth = random_truth(50_000, 10)
    wrong = np.zeros((10, 10))
    for seed in range(20):
        given = draw(truth, kind="uniform", ratio=0.8, seed=seed).given
        np.add.at(wrong, (truth[given != truth], given[given != truth]), 1)
    off = wrong[~np.eye(10, dtype=bool)].reshape(10, 9)
    assert wrong.trace() == 0
    assert stats.chi2_contingency(off).pvalue > 0.001
    assert all(stats.chisquare(row).pvalue > 0.0001 for row in off)


def test_including_the_true_class_lowers_the_rate_to_nine_tenths():
    truth = random_truth(50_000, 10)
    rates = [
        achieved(draw(truth, kind="uniform", ratio=0.8, excludes_truth=False, seed=seed))["rate"]
        for seed in range(50)
    ]
    # 40,000 of 50,000 drawn anew, each wrong with 9/10
    assert abs(np.mean(rates) - 0.72) < 4 * np.sqrt(40_000 * 0.09 / 50) / 50_000
    assert min(rates) < 0.72 < max(rates)


def test_a_larger_ratio_keeps_the_wrong_labels_of_a_smaller_one():
    truth = random_truth(5_000, 10)
    for exact in ("global", "per_class", "bernoulli"):
        low, high = (draw(truth, kind="uniform", ratio=r, exact=exact).given for r in (0.2, 0.6))
        changed = low != truth
        assert np.array_equal(low[changed], high[changed])


def test_seeds_differ_and_repeat():
    truth = random_truth(2_000, 10)
    one, again, two = (draw(truth, kind="uniform", ratio=0.5, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint != two.fingerprint


def test_keyed_draws_never_change():
    truth = np.arange(1_000) % 10
    prints = [
        draw(truth, kind="uniform", ratio=0.4).fingerprint[:16],
        draw(truth, kind="uniform", ratio=0.4, exact="per_class").fingerprint[:16],
        draw(truth, kind="nonuniform", ratio=0.4).fingerprint[:16],
    ]
    assert prints == ["368c14b3fe419805", "24f43cb59a1888e1", "450fa0610f6b5c22"]


def test_global_numpy_state_is_untouched():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    draw(random_truth(100, 10), kind="uniform", ratio=0.4, legacy_rng=True)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# --- nonuniform ---


@pytest.mark.parametrize(
    ("exact", "legacy"), [("published", True), ("published", False), ("per_class", False), ("global", False)]
)
@pytest.mark.parametrize("both", [True, False])
def test_cifar10_nonuniform_touches_only_the_listed_pairs(exact: str, legacy: bool, both: bool):
    allowed = {a: b for a, b in BOTH_WAYS.items() if both or a != 5}
    truth = np.arange(50_000) % 10
    given = draw(
        truth, kind="nonuniform", ratio=0.4, exact=exact, both_directions=both, legacy_rng=legacy
    ).given
    for k in range(10):
        targets = given[(truth == k) & (given != truth)]
        assert set(targets.tolist()) == ({allowed[k]} if k in allowed else set())
        if k in allowed and exact == "per_class":
            assert len(targets) == 2_000
        if k in allowed and exact == "published":
            assert abs(len(targets) - 2_000) < 5 * np.sqrt(5_000 * 0.4 * 0.6)
    if exact == "global":
        assert np.count_nonzero(given != truth) == len(allowed) * 2_000


def test_cats_and_dogs_change_places_once():
    """At ratio 1 every cat is a dog and every dog a cat: a second look at changed labels would undo it."""
    truth = np.arange(1_000) % 10
    for legacy in (True, False):
        given = draw(truth, kind="nonuniform", ratio=1.0, legacy_rng=legacy).given
        assert set(given[truth == 3].tolist()) == {5} and set(given[truth == 5].tolist()) == {3}


@pytest.mark.parametrize("legacy", [True, False])
def test_superclass_noise_stays_inside_and_goes_round_in_fives(legacy: bool):
    truth = random_truth(20_000, 100)
    given = draw(truth, names_of(100), SUPERCLASS, kind="nonuniform", ratio=0.4, legacy_rng=legacy).given
    coarse = np.array(SUPERCLASS)
    assert np.array_equal(coarse[given], coarse[truth])
    following = {k: set(given[(truth == k) & (given != truth)].tolist()) for k in range(100)}
    assert all(len(targets) == 1 for targets in following.values())
    after = {k: targets.pop() for k, targets in following.items()}
    for k in range(100):
        walk = [k]
        while (step := after[walk[-1]]) != k:
            walk.append(step)
        assert sorted(walk) == np.flatnonzero(coarse == coarse[k]).tolist()
        assert after[k] == min([m for m in walk if m > k], default=min(walk))
    assert abs(np.mean(given != truth) - 0.4) < 5 * np.sqrt(0.24 / 20_000)


def test_cifar100_cycles_on_the_real_coarse_labels(real_cifar: Path):
    folder = real_cifar / "cifar-100-python"
    with open(folder / "train", "rb") as file:
        train = read_plain(file, where="train")
    with open(folder / "meta", "rb") as file:
        names = tuple(name.decode() for name in read_plain(file, where="meta")[b"fine_label_names"])
    fine, coarse = np.array(train[b"fine_labels"]), np.array(train[b"coarse_labels"])
    superclass = tuple(int(coarse[fine == k][0]) for k in range(100))
    flips = flip_matrix(NoiseConfig(kind="nonuniform", ratio=0.4), names, superclass)
    after = {names[k]: names[int(flips[k].argmax())] for k in range(100)}
    # flowers: orchid, poppy, rose, sunflower, tulip; trees wrap around
    assert (after["orchid"], after["tulip"]) == ("poppy", "orchid")
    assert (after["maple_tree"], after["willow_tree"]) == ("oak_tree", "maple_tree")
    assert np.array_equal(np.linalg.matrix_power(flips, 5), np.eye(100))
    assert not np.array_equal(np.linalg.matrix_power(flips, 4), np.eye(100))
    labels = draw_noise(
        fine, np.arange(50_000), names, NoiseConfig(kind="nonuniform", ratio=0.4), superclass=superclass
    )
    assert np.array_equal(np.array(superclass)[labels.given], coarse)


def test_nonuniform_needs_to_know_what_is_similar():
    truth = np.arange(20) % 4
    with pytest.raises(UserError, match="CIFAR-10"):
        draw(truth, names_of(4), kind="nonuniform", ratio=0.4)
    with pytest.raises(UserError, match="one class only"):
        draw(truth, names_of(4), (0, 0, 0, 1), kind="nonuniform", ratio=0.4)
    with pytest.raises(UserError, match="3 superclass entries for 4 classes"):
        draw(truth, names_of(4), (0, 0, 0), kind="nonuniform", ratio=0.4)


# --- the published draws ---


def test_the_old_generator_still_gives_the_published_permutation():
    assert np.random.RandomState(42).permutation(1_000)[:5].tolist() == [521, 737, 740, 660, 411]


def test_published_uniform_against_an_independent_loop():
    """What the published code does, one draw after the other."""
    truth = random_truth(3_000, 10)
    expected = truth.tolist()
    generator = np.random.RandomState(42)
    order = generator.permutation(3_000)
    for position in range(int(3_000 * 0.4)):
        while True:
            label = int(generator.randint(10, dtype=np.int32))
            if label != truth[order[position]]:
                break
        expected[order[position]] = label
    assert draw(truth, kind="uniform", ratio=0.4, legacy_rng=True).given.tolist() == expected


@pytest.mark.parametrize("superclass", [None, SUPERCLASS])
def test_published_nonuniform_against_an_independent_loop(superclass: tuple[int, ...] | None):
    classes = 10 if superclass is None else 100
    names = CIFAR10 if superclass is None else names_of(100)
    truth = random_truth(3_000, classes)
    following = dict(BOTH_WAYS)
    if superclass is not None:
        for coarse in range(20):
            five = [k for k in range(100) if superclass[k] == coarse]
            following |= {five[j]: five[(j + 1) % 5] for j in range(5)}
    expected = truth.tolist()
    generator = np.random.RandomState(42)
    for sample in generator.permutation(3_000):
        chances = np.zeros(classes)
        chances[truth[sample]] = 1
        if truth[sample] in following:
            chances[truth[sample]] = 1 - 0.4
            chances[following[truth[sample]]] = 0.4
        expected[sample] = int(generator.choice(np.arange(classes), p=chances))
    assert (
        draw(truth, names, superclass, kind="nonuniform", ratio=0.4, legacy_rng=True).given.tolist()
        == expected
    )


# --- configuration, files, figures ---


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "uniform", "ratio": -0.1},
        {"kind": "uniform", "ratio": 1.1},
        {"kind": "uniform", "ratio": float("nan")},
        {"kind": "uniform", "ratio": float("inf")},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 2**32, "legacy_rng": True, "kind": "uniform"},
        {"kind": "matrix"},
        {"kind": "uniform", "matrix": Path("m.npy")},
        {"kind": "uniform", "file": Path("labels.npz")},
        {"kind": "matrix", "matrix": Path("m.npy"), "ratio": 0.4},
        {"kind": "matrix", "matrix": Path("m.npy"), "exact": "per_class"},
        {"kind": "matrix", "matrix": Path("m.npy"), "legacy_rng": True},
        {"kind": "uniform", "exact": "per_class", "legacy_rng": True},
        {"kind": "nonuniform", "exact": "global", "legacy_rng": True},
    ],
)
def test_values_that_do_not_go_together_are_refused(config: dict):
    with pytest.raises(UserError):
        NoiseConfig(**config)


def test_without_noise_the_given_labels_stay():
    unknown = np.full(3, -1)
    labels = draw_noise(unknown, np.arange(3), ("a", "b"), NoiseConfig(), given=np.array([0, 1, 1]))
    assert labels.given.tolist() == [0, 1, 1] and not labels.is_noisy.known.any()
    assert draw(np.arange(10)).given.tolist() == list(range(10))


@pytest.mark.parametrize("unknown", [-1, -2])
def test_labels_without_known_truth_cannot_be_made_wrong(unknown: int):
    with pytest.raises(UserError, match="1 of 3 samples have no known true class"):
        draw_noise(
            np.array([0, unknown, 1]), np.arange(3), ("a", "b"), NoiseConfig(kind="uniform", ratio=0.5)
        )


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_exported_labels_are_imported(ending: str, tmp_path: Path):
    truth, path = random_truth(500, 10), tmp_path / f"labels{ending}"
    labels = draw(truth, kind="uniform", ratio=0.4)
    labels.save(path)
    assert draw(truth, file=path).fingerprint == labels.fingerprint
    with pytest.raises(DataError, match="has 500 samples, the data set has 499"):
        draw(truth[1:], file=path)
    other = truth.copy()
    other[7] = (other[7] + 1) % 10
    with pytest.raises(
        DataError, match="truth differs from the data set for 1 of 500 samples, first at index 7"
    ):
        draw(other, file=path)
    with pytest.raises(DataError, match="row differs"):
        draw_noise(truth, np.arange(500) + 1, CIFAR10, NoiseConfig(file=path))
    unknown = np.full(500, -1)
    assert draw(unknown, file=path).fingerprint == labels.fingerprint


def test_achieved_counts_by_hand():
    labels = Labels(np.array([0, 1, 1, 2, 0]), np.array([0, 0, 1, -1, -2]), np.arange(5), ("a", "b", "c"))
    figures = json.loads(json.dumps(achieved(labels), allow_nan=False))
    assert figures["samples"] == 5 and figures["known"] == 4 and figures["wrong"] == 2
    assert figures["rate"] == 0.5
    assert figures["per_class"] == [0.5, 0.0, None]
    assert figures["transitions"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert figures["outside"] == [1, 0, 0]
    nothing = Labels(np.array([0]), np.array([-1]), np.array([0]), ("a",))
    assert achieved(nothing)["rate"] is None
