"""The four noises of ImageNet: 100 classes to learn, 900 outside, drawn by which class is taken for which."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdrpl.confusion import average, read_counts
from fastdrpl.imagenet import class_split, split_classes
from fastdrpl.labels import OUTSIDE, Labels
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources.imagenet_small import class_order
from fastdrpl.noise import Pool, achieved, draw_noise, flip_matrix
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.transitions import Confusion, load_confusion, save_confusion

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


@pytest.fixture(scope="module")
def confusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


# --- the split of the classes ---


def test_the_published_split_of_the_classes():
    inside, outside = class_split()
    assert inside[:5].tolist() == [521, 737, 740, 660, 411]
    assert sorted([*inside, *outside]) == list(range(1000)) and (len(inside), len(outside)) == (100, 900)
    ids = class_order()
    assert len(set(ids)) == 1000
    assert ids[0] == "n02119789"  # the kit fox: the order of the challenge, not the sorted one
    assert [ids[k] for k in inside[:4]] == ["n02708093", "n07715103", "n07717410", "n03761084"]
    # candle, dock, spiny lobster and steel arch bridge are shown in the paper
    assert {"n02948072", "n03216828", "n01984695", "n04311004"} <= {ids[k] for k in inside}
    assert "n02948072" not in {sorted(ids)[k] for k in inside}


def test_the_split_is_that_of_the_published_lists(real_meta: Path):
    inside, outside = class_split()
    assert inside.tolist() == np.loadtxt(real_meta / "drpl_InDistributionClasses.txt", dtype=int).tolist()
    assert outside.tolist() == np.loadtxt(real_meta / "drpl_OutOfDistributionClasses.txt", dtype=int).tolist()
    assert sorted(class_order()) == (real_meta / "imagenet_synsets.txt").read_text().split()


def test_the_classes_are_found_by_name_in_any_order():
    ids = class_order()
    for names in (ids, tuple(sorted(ids))):
        inside, outside = split_classes(names)
        assert [names[k] for k in inside] == [ids[k] for k in class_split()[0]]
        assert [names[k] for k in outside] == [ids[k] for k in class_split()[1]]
    assert split_classes(ids)[0].tolist() != split_classes(tuple(sorted(ids)))[0].tolist()


@pytest.mark.parametrize(
    "names", [NAMES, class_order()[:-1], (*class_order()[:-1], "x"), (*class_order(), "x")]
)
def test_other_data_have_no_paper_classes(names: tuple[str, ...]):
    with pytest.raises(UserError, match=f"these data have {len(names)} classes"):
        split_classes(names)


# --- rates ---

KINDS = ("uniform", "nonuniform", "uniform_ood", "nonuniform_ood")


def settings_of(kind: str, confusion: Path) -> dict:
    return {
        "kind": kind,
        "confusion": confusion if kind.startswith("nonuniform") else None,
        "pool": make_pool() if kind.endswith("ood") else None,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [0, 10, 29, 50, 80, 100])
def test_the_ratio_is_exact_in_the_set_or_in_each_class(kind: str, percent: int, confusion: Path):
    truth = truth_of()
    for exact in ("published", "global", "per_class"):
        labels = draw(ratio=percent / 100, exact=exact, truth=truth, **settings_of(kind, confusion))
        noisy = labels.is_noisy.noisy
        if exact == "per_class":
            for k in range(INSIDE):
                assert noisy[truth == k].sum() == (truth == k).sum() * percent // 100
        else:
            assert noisy.sum() == SAMPLES * percent // 100


@pytest.mark.parametrize("kind", KINDS)
def test_bernoulli_holds_on_average(kind: str, confusion: Path):
    rates = [
        draw(ratio=0.3, exact="bernoulli", seed=seed, **settings_of(kind, confusion)).is_noisy.noisy.mean()
        for seed in range(20)
    ]
    assert abs(np.mean(rates) - 0.3) < 4 * np.sqrt(0.21 / SAMPLES / 20)
    assert np.std(rates) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", ["global", "per_class", "bernoulli"])
def test_a_larger_ratio_keeps_what_a_smaller_one_changed(kind: str, exact: str, confusion: Path):
    low, high = (draw(ratio=r, exact=exact, **settings_of(kind, confusion)) for r in (0.15, 0.55))
    changed = low.is_noisy.noisy
    assert changed.any() and high.is_noisy.noisy[changed].all()
    assert high.is_noisy.noisy.sum() > changed.sum()
    for column in ("given", "truth", "source_row"):
        assert np.array_equal(getattr(low, column)[changed], getattr(high, column)[changed])


@pytest.mark.parametrize("kind", ["uniform_ood", "nonuniform_ood"])
def test_a_larger_ratio_keeps_swaps_although_classes_run_out(kind: str, confusion: Path):
    pool = make_pool(each=230)
    source = confusion if kind == "nonuniform_ood" else None
    low, high = (draw(source, pool, kind=kind, ratio=r, exact="per_class") for r in (0.5, 0.6))
    swapped = low.truth == OUTSIDE
    assert np.array_equal(low.source_row[swapped], high.source_row[swapped])
    if kind == "nonuniform_ood":
        assert 0 < low.redrawn < high.redrawn


# --- in-distribution ---


def test_nonuniform_follows_the_matrix_cut_to_the_classes(confusion: Path):
    chances = expected(NAMES, NAMES, lambda row, column: 0 if row == column else share(row, column))
    flips = flip_matrix(NoiseConfig(kind="nonuniform", confusion=confusion), NAMES)
    np.testing.assert_allclose(flips, chances, rtol=1e-12)
    observed = np.zeros((INSIDE, INSIDE))
    for seed in range(50):
        labels = draw(confusion, kind="nonuniform", ratio=0.5, seed=seed)
        noisy = labels.is_noisy.noisy
        assert noisy.sum() == SAMPLES // 2 and np.array_equal(labels.source_row, np.arange(SAMPLES) * 2)
        np.add.at(observed, (labels.truth[noisy], labels.given[noisy]), 1)
    assert observed.trace() == 0
    assert chi_square(observed, chances) > 0.001
    assert chi_square(observed, np.roll(chances, 1, axis=0)) < 1e-9
    assert chi_square(observed, expected(NAMES, NAMES, lambda row, column: row != column)) < 1e-9


def test_the_floor_gives_a_class_without_mistakes_somewhere_to_go(confusion: Path):
    flips = flip_matrix(NoiseConfig(kind="nonuniform", confusion=confusion), NAMES)
    np.testing.assert_allclose(flips[0], [0, *[1 / (INSIDE - 1)] * (INSIDE - 1)])
    rare = [(k, j) for k in range(1, INSIDE) for j in range(INSIDE) if flips[k, j] and flips[k, j] < 1e-3]
    assert rare  # a pair that never occurred stays possible
    stored = load_confusion(confusion).matrix
    for k, j in rare:
        row = stored[place(NAMES[k])]
        rest = sum(row[place(name)] + 1e-5 for name in NAMES) - row[place(NAMES[k])] - 1e-5
        assert flips[k, j] == pytest.approx(1e-5 / rest)


# --- out-of-distribution ---


@pytest.mark.parametrize("kind", ["uniform_ood", "nonuniform_ood"])
@settings(max_examples=40)
@given(percent=st.integers(0, 100), samples=st.integers(1, 300), seed=st.integers(0, 2**64 - 1))
def test_swaps(kind: str, confusion: Path, percent: int, samples: int, seed: int):
    """Labels stay, no image comes twice, and what is not swapped is not touched."""
    truth, pool = truth_of(samples), make_pool(each=(samples + OUTER) // OUTER)  # just enough images
    source = confusion if kind == "nonuniform_ood" else None
    labels = draw(source, pool, truth, kind=kind, ratio=percent / 100, seed=seed)
    swapped = labels.truth == OUTSIDE
    assert swapped.sum() == samples * percent // 100
    assert np.array_equal(labels.given, truth)
    assert np.array_equal(labels.truth[~swapped], truth[~swapped])
    assert np.array_equal(labels.source_row[~swapped], 2 * np.flatnonzero(~swapped))
    shown = labels.source_row[swapped]
    assert len(set(shown.tolist())) == len(shown) and set(shown.tolist()) <= set(pool.rows.tolist())


def test_uniform_swaps_take_every_image_of_the_pool_alike():
    pool = make_pool(each=500)
    uses, by_label = np.zeros(len(pool)), np.zeros((INSIDE, OUTER))
    for seed in range(50):
        labels = draw(pool=pool, kind="uniform_ood", ratio=0.5, seed=seed)
        uses[np.searchsorted(pool.rows, labels.source_row[labels.truth == OUTSIDE])] += 1
        np.add.at(by_label, outer_class(labels, pool), 1)
    chance = SAMPLES // 2 / len(pool)  # each image in each draw
    variance = 50 * chance * (1 - chance)
    # 4,000 uses with a fixed sum: almost a chi-square of as many degrees
    assert 0.001 < stats.chi2.sf(((uses - 50 * chance) ** 2).sum() / variance, len(pool)) < 0.999
    assert chi_square(by_label, np.full((INSIDE, OUTER), 1 / OUTER)) > 0.001


@pytest.mark.parametrize("direction", ["column", "row"])
def test_nonuniform_swaps_follow_the_matrix(direction: str, confusion: Path):
    def column(label: str, outer: str) -> float:
        return share(outer, label)

    tables = {"column": expected(NAMES, OUTER_NAMES, column), "row": expected(NAMES, OUTER_NAMES, share)}
    pool, observed = make_pool(), np.zeros((INSIDE, OUTER))
    for seed in range(50):
        labels = draw(confusion, pool, kind="nonuniform_ood", ratio=0.5, seed=seed, ood_direction=direction)
        assert labels.redrawn == 0
        np.add.at(observed, outer_class(labels, pool), 1)
    assert chi_square(observed, tables[direction]) > 0.001
    assert chi_square(observed, tables["row" if direction == "column" else "column"]) < 1e-9
    stored = load_confusion(confusion).outside_chances(NAMES, OUTER_NAMES, direction)
    np.testing.assert_allclose(stored, tables[direction], rtol=1e-12)


def test_the_default_direction_is_that_of_the_published_code(confusion: Path):
    one, two = (
        draw(confusion, make_pool(), kind="nonuniform_ood", ratio=0.5, **extra)
        for extra in ({}, {"ood_direction": "column"})
    )
    assert one.fingerprint == two.fingerprint


def test_a_class_that_runs_out_is_drawn_again_among_the_others(confusion: Path):
    """Every image of the pool is used, and the last ones go to whatever label comes."""
    pool = make_pool(each=SAMPLES // OUTER)
    labels = draw(confusion, pool, kind="nonuniform_ood", ratio=1.0)
    assert sorted(labels.source_row.tolist()) == pool.rows.tolist()
    assert 0 < labels.redrawn < SAMPLES and achieved(labels)["redrawn"] == labels.redrawn
    # one image less than needed
    short = Pool(pool.rows[1:], pool.label[1:], OUTER_NAMES)
    with pytest.raises(UserError, match=f"{SAMPLES} images are to be replaced, but there are {SAMPLES - 1}"):
        draw(confusion, short, kind="nonuniform_ood", ratio=1.0)
    with pytest.raises(UserError, match="3000 images"):
        draw(pool=short, kind="uniform_ood", ratio=1.0)


def test_one_class_runs_out_by_a_known_number(confusion: Path):
    plenty = make_pool()
    full = draw(confusion, plenty, kind="nonuniform_ood", ratio=0.5)
    wanted = np.bincount(outer_class(full, plenty)[1], minlength=OUTER)
    scarce = int(wanted.argmax())
    keep = np.ones(len(plenty), bool)
    keep[np.flatnonzero(plenty.label == scarce)[100:]] = False
    pool = Pool(plenty.rows[keep], plenty.label[keep], OUTER_NAMES)
    labels = draw(confusion, pool, kind="nonuniform_ood", ratio=0.5)
    assert np.bincount(outer_class(labels, pool)[1])[scarce] == 100
    assert labels.redrawn == wanted[scarce] - 100


def test_a_class_without_images_is_never_drawn(confusion: Path):
    pool = make_pool()
    pool = Pool(pool.rows[pool.label != 2], pool.label[pool.label != 2], OUTER_NAMES)
    labels = draw(confusion, pool, kind="nonuniform_ood", ratio=0.5)
    assert labels.redrawn == 0 and 2 not in outer_class(labels, pool)[1]


def test_draws_are_pure_and_know_images_by_row(confusion: Path):
    pool, other = make_pool(), make_pool(first=5_000_000)
    a = [draw(confusion, pool, kind="nonuniform_ood", ratio=0.3, seed=s).fingerprint for s in (1, 2)]
    draw(pool=other, kind="uniform_ood", ratio=0.9, seed=1)
    b = [draw(confusion, pool, kind="nonuniform_ood", ratio=0.3, seed=s).fingerprint for s in (2, 1)]
    assert a == b[::-1] and a[0] != a[1]
    assert pool.rows.tolist() == make_pool().rows.tolist()
    # A pool with further images in front: the shuffle of the others stays, so those drawn are drawn in both.
    longer = Pool(
        np.append(np.arange(900_000, 900_100), pool.rows), np.append(np.zeros(100, int), pool.label), OUTER_NAMES
    )  # fmt: skip
    one, two = (set(draw(pool=p, kind="uniform_ood", ratio=1.0).source_row.tolist()) for p in (pool, longer))
    assert {row for row in two if row >= 1_000_000} < one and min(two) < 1_000_000


def test_keyed_draws_never_change(confusion: Path):
    prints = [
        draw(ratio=0.4, exact=exact, **settings_of(kind, confusion)).fingerprint[:16]
        for kind in KINDS[1:]
        for exact in ("global", "per_class")
    ]
    assert prints == [
        "b7c42a007de59cfd",
        "055816ee8dad2eec",
        "d7aa8257987d848c",
        "0254934236240794",
        "9dbc4287aae6c094",
        "aa7fe7861bb0deaa",
    ]


def test_what_was_achieved_counts_images_from_outside(confusion: Path):
    labels = draw(confusion, make_pool(), kind="nonuniform_ood", ratio=0.4, exact="per_class")
    figures, sizes = achieved(labels), np.bincount(truth_of())
    assert figures["outside"] == [int(size) * 40 // 100 for size in sizes]
    assert figures["wrong"] == sum(figures["outside"]) and figures["known"] == SAMPLES
    assert figures["rate"] == figures["wrong"] / SAMPLES
    assert figures["per_class"] == [0.0] * INSIDE and figures["redrawn"] == 0
    assert figures["transitions"] == np.diag(sizes - figures["outside"]).tolist()


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_labels_with_swaps_are_exported_and_imported(ending: str, confusion: Path, tmp_path: Path):
    labels = draw(confusion, make_pool(), kind="nonuniform_ood", ratio=0.4)
    labels.save(tmp_path / f"noise{ending}")
    again = draw(file=tmp_path / f"noise{ending}")
    assert again.fingerprint == labels.fingerprint and (again.truth == OUTSIDE).sum() == SAMPLES * 4 // 10


# --- refusals ---


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "nonuniform_ood"}, "fastdrpl confusion --images VAL --out confusion.npz"),
        ({"kind": "uniform", "confusion": Path("c.npz")}, "kind uniform does not draw by confusion"),
        ({"kind": "uniform_ood", "confusion": Path("c.npz")}, "does not draw by confusion"),
        ({"kind": "uniform_ood", "legacy_rng": True}, "order of its images that was not published"),
        ({"kind": "nonuniform", "confusion": Path("c.npz"), "legacy_rng": True}, "not published"),
        ({"kind": "nonuniform_ood", "confusion": Path("c.npz"), "legacy_rng": True}, "not published"),
    ],
)
def test_values_that_do_not_go_together_are_refused(config: dict, message: str):
    with pytest.raises(UserError, match=message):
        NoiseConfig(**config)


def test_nonuniform_on_imagenet_says_how_to_make_the_matrix(tmp_path: Path):
    with pytest.raises(UserError, match=r"fastdrpl confusion --images VAL --out confusion\.npz"):
        draw(kind="nonuniform", ratio=0.3)
    with pytest.raises(UserError, match=r"no such confusion matrix[\s\S]*fastdrpl confusion --images VAL"):
        draw(tmp_path / "none.npz", kind="nonuniform", ratio=0.3)


def test_data_without_images_from_outside(confusion: Path):
    for config in ({"kind": "uniform_ood"}, {"kind": "nonuniform_ood", "confusion": confusion}):
        with pytest.raises(UserError, match="--classes paper"):
            draw(ratio=0.3, **config)


def test_a_pool_holds_other_classes_and_each_row_once():
    for rows, label in (([3, 3], [0, 0]), ([4, 3], [0, 0]), ([3], [0, 0]), ([3], [OUTER]), ([3], [-1])):
        with pytest.raises(ValueError, match="of a pool"):
            Pool(np.array(rows), np.array(label), OUTER_NAMES)
    with pytest.raises(ValueError, match="classes outside the view"):
        draw(pool=Pool(np.arange(SAMPLES), np.zeros(SAMPLES, int), ("in 0",)), kind="uniform_ood", ratio=0.1)


def test_a_matrix_of_other_classes(tmp_path: Path, confusion: Path):
    truth = np.arange(10) % 2
    with pytest.raises(DataError, match=r"2 of the 4 classes that are needed .* the first is 'cow'"):
        draw_noise(
            truth, truth, ("cow", "in 1"), NoiseConfig(kind="nonuniform", ratio=0.5, confusion=confusion)
        )
    np.save(tmp_path / "counts.npy", np.eye(3))
    np.savez(tmp_path / "counts.npz", net=np.eye(3))
    for name in ("counts.npy", "counts.npz"):
        with pytest.raises(UserError, match="fastdrpl confusion --counts"):
            load_confusion(tmp_path / name)
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "cut.npz").write_bytes(confusion.read_bytes()[:-100])
    for name in ("text.npz", "cut.npz"):
        with pytest.raises(DataError, match="not a readable confusion matrix"):
            load_confusion(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"matrix": np.full((2, 2), 0.4)},
        {"matrix": np.array([[1.5, -0.5], [0, 1]])},
        {"matrix": np.full((2, 2), np.nan)},
        {"matrix": np.eye(3)},
        {"class_names": ("a", "a")},
    ],
)
def test_a_stored_matrix_that_is_not_sound(change: dict, tmp_path: Path):
    sound = {
        "matrix": np.eye(2),
        "class_names": ("a", "b"),
        "networks": ("n",),
        "accuracy": (1.0,),
        "images": (9,),
    }
    save_confusion(Confusion(**sound), tmp_path / "c.npz")
    back = load_confusion(tmp_path / "c.npz")
    assert np.array_equal(back.matrix, np.eye(2))
    assert (back.class_names, back.networks, back.accuracy, back.images) == tuple(sound.values())[1:]
    save_confusion(Confusion(**(sound | change)), tmp_path / "c.npz")
    with pytest.raises(DataError, match="not a sound confusion matrix"):
        load_confusion(tmp_path / "c.npz")


# --- the real size, the real matrix ---


def real_sizes() -> np.ndarray:
    """As ImageNet's: 895 classes of 1,300 images and 105 smaller ones, 1,281,167 in all."""
    sizes = np.full(1000, 1300)
    sizes[np.random.default_rng(0).permutation(1000)[:105]] = 1300 - 179
    sizes[sizes < 1300] -= np.arange(105) < 1_300_000 - 179 * 105 - 1_281_167
    return sizes


def imagenet(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], Pool]:
    """Truth, rows and names of the 100 classes, and the pool of the 900, of a shuffled set of these class sizes."""
    ids = class_order()
    inside, outside = class_split()
    label = np.random.default_rng(5).permutation(np.repeat(np.arange(1000), sizes))
    number = np.full(1000, -1)
    number[inside] = np.arange(100)
    position = np.full(1000, -1)
    position[outside] = np.arange(900)
    rows, others = np.flatnonzero(number[label] >= 0), np.flatnonzero(position[label] >= 0)
    pool = Pool(others, position[label[others]], tuple(ids[k] for k in outside))
    return number[label[rows]], rows, tuple(ids[k] for k in inside), pool


def test_the_real_size_takes_seconds(tmp_path: Path):
    sizes = real_sizes()
    assert sizes.sum() == 1_281_167 and sizes.max() == 1300
    truth, rows, names, pool = imagenet(sizes)
    draw_counts = np.random.default_rng(0).integers(0, 2, (1000, 1000)) + 40 * np.eye(1000, dtype=int)
    save_confusion(average({"net": draw_counts}), tmp_path / "c.npz")
    started = time.monotonic()
    for kind, ratio in (("uniform_ood", 0.4), ("nonuniform_ood", 0.5)):
        source = tmp_path / "c.npz" if kind == "nonuniform_ood" else None
        config = NoiseConfig(kind=kind, ratio=ratio, exact="per_class", confusion=source)
        labels = draw_noise(truth, rows, names, config, pool=pool)
        own = np.bincount(truth)
        assert (
            np.bincount(truth[labels.truth == OUTSIDE]).tolist() == (own * ratio + 1e-6).astype(int).tolist()
        )
    assert time.monotonic() - started < 20  # half a second in all on an idle core


@pytest.mark.parametrize("direction", ["column", "row"])
def test_the_real_matrix_is_followed(direction: str, real_meta: Path, tmp_path: Path):
    """The expected tables are made from the counts by the sentences of the paper, for sorted ids."""
    with np.load(real_meta / "imagenet_val_confusion.npz") as stored:
        shares = np.mean([stored[name] / stored[name].sum(axis=1, keepdims=True) for name in stored], axis=0)
    path = tmp_path / "c.npz"
    save_confusion(average(read_counts(real_meta / "imagenet_val_confusion.npz")), path)
    ids = class_order()
    torchvision = {name: k for k, name in enumerate((real_meta / "imagenet_synsets.txt").read_text().split())}
    inside, outside = ([torchvision[ids[k]] for k in half] for half in class_split())
    within = shares[inside][:, inside] + 1e-5
    np.fill_diagonal(within, 0)
    beyond = shares[inside][:, outside] + 1e-5
    if direction == "column":
        beyond = (shares[outside][:, inside] + 1e-5).T
    truth, rows, names, pool = imagenet(np.full(1000, 200))
    flips, swaps = np.zeros((100, 100)), np.zeros((100, 900))
    for seed in range(50):
        if direction == "column":
            config = NoiseConfig(kind="nonuniform", ratio=0.5, confusion=path, seed=seed)
            labels = draw_noise(truth, rows, names, config)
            noisy = labels.is_noisy.noisy
            np.add.at(flips, (truth[noisy], labels.given[noisy]), 1)
        config = NoiseConfig(
            kind="nonuniform_ood", ratio=0.3, confusion=path, seed=seed, ood_direction=direction
        )
        labels = draw_noise(truth, rows, names, config, pool=pool)
        assert labels.redrawn == 0
        np.add.at(swaps, outer_class(labels, pool), 1)
    assert chi_square(swaps, beyond / beyond.sum(axis=1, keepdims=True)) > 0.001
    assert flips.trace() == 0
    if direction == "column":
        assert chi_square(flips, within / within.sum(axis=1, keepdims=True)) > 0.001
        # The order of the classes is the trap: by position instead of by id nothing fits.
        inside = class_split()[0]
        wrong = shares[inside][:, inside] + 1e-5
        np.fill_diagonal(wrong, 0)
        assert chi_square(flips, wrong / wrong.sum(axis=1, keepdims=True)) < 1e-9
