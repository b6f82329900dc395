"""Images from outside the classes: how many, which, and where the pool runs out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagenet_noise_cases import (
    INSIDE,
    KINDS,
    NAMES,
    OUTER,
    OUTER_NAMES,
    SAMPLES,
    chi_square,
    draw,
    expected,
    make_pool,
    outer_class,
    settings_of,
    share,
    store_confusion,
    truth_of,
)
from scipy import stats

from fastdrpl.labels import OUTSIDE
from fastdrpl.loaders.errors import UserError
from fastdrpl.noise import Pool, achieved
from fastdrpl.transitions import load_confusion


@pytest.fixture(scope="module")
def confusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_confusion(tmp_path_factory)


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
