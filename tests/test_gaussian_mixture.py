"""The Gaussian mixture: what must hold for every input, an EM written with loops, and scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture as Peer

from fastdrpl.kernels.gaussian_mixture import (
    VARIANCE_FLOOR,
    GaussianMixture,
    fit_gaussian_mixture,
    lower_group,
    min_max,
)

PUBLISHED = {"n_components": 2, "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}


def make_losses(seed: int, count: int = 1500) -> np.ndarray:
    """Normalised losses as in training: a heap near 0 and a wide one, of random place, width and share."""
    random = np.random.default_rng(seed)
    noisy = random.random(count) < random.uniform(0.1, 0.8)
    wrong = random.gamma(random.uniform(3, 15), random.uniform(0.2, 0.6), count)
    right = random.gamma(random.uniform(0.4, 3), random.uniform(0.05, 0.5), count)
    return min_max(np.where(noisy, wrong, right))


def em_by_hand(values, iterations=10, tolerance=1e-2, floor=5e-4):
    """scikit-learn's procedure with one number at a time, from the best division into two groups."""
    ordered = sorted(map(float, values))

    def squares(group):
        return sum((v - sum(group) / len(group)) ** 2 for v in group)

    cuts = [k for k in range(1, len(ordered)) if ordered[k] > ordered[k - 1]]
    cut = min(cuts, key=lambda k: squares(ordered[:k]) + squares(ordered[k:]))
    shares = [[1.0, 0.0] if k < cut else [0.0, 1.0] for k in range(len(ordered))]

    def maximise():
        counts = [sum(s[k] for s in shares) for k in (0, 1)]
        means = [sum(s[k] * v for s, v in zip(shares, ordered, strict=True)) / counts[k] for k in (0, 1)]
        variances = [
            sum(s[k] * (v - means[k]) ** 2 for s, v in zip(shares, ordered, strict=True)) / counts[k] + floor
            for k in (0, 1)
        ]
        return means, variances, [c / len(ordered) for c in counts]

    means, variances, weights = maximise()
    before = -math.inf
    for done in range(1, iterations + 1):
        total = 0.0
        for sample, v in enumerate(ordered):
            density = [
                weights[k]
                * math.exp(-((v - means[k]) ** 2) / (2 * variances[k]))
                / math.sqrt(2 * math.pi * variances[k])
                for k in (0, 1)
            ]
            shares[sample] = [d / sum(density) for d in density]
            total += math.log(sum(density))
        means, variances, weights = maximise()
        if abs(total / len(ordered) - before) < tolerance:
            return means, variances, weights, done
        before = total / len(ordered)
    return means, variances, weights, iterations


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_that_of_an_em_written_with_loops(seed):
    losses = make_losses(seed, 300)
    fit = fit_gaussian_mixture(losses)
    means, variances, weights, done = em_by_hand(losses)
    assert fit.iterations == done
    np.testing.assert_allclose(fit.mean, means, rtol=1e-9)
    np.testing.assert_allclose(fit.variance, variances, rtol=1e-9)
    np.testing.assert_allclose(fit.weight, weights, rtol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_from_the_same_start_scikit_learn_gives_the_same_mixture(seed):
    losses = make_losses(seed)
    ordered = np.sort(losses)
    groups = np.split(ordered, [lower_group(ordered)])
    peer = Peer(
        **PUBLISHED,
        means_init=[[group.mean()] for group in groups],
        weights_init=[group.size / losses.size for group in groups],
        precisions_init=[[[1 / (group.var() + 5e-4)]] for group in groups],
        random_state=0,
    ).fit(losses[:, None])
    fit = fit_gaussian_mixture(losses)
    order = np.argsort(peer.means_.ravel())
    assert (fit.iterations, fit.converged) == (peer.n_iter_, peer.converged_)
    np.testing.assert_allclose(fit.mean, peer.means_.ravel()[order], rtol=1e-8)
    np.testing.assert_allclose(fit.variance, peer.covariances_.ravel()[order], rtol=1e-8)
    np.testing.assert_allclose(fit.weight, peer.weights_[order], rtol=1e-8)
    np.testing.assert_allclose(
        fit.posterior(losses), peer.predict_proba(losses[:, None])[:, order[0]], atol=1e-9
    )


@pytest.mark.parametrize("seed", range(20))
def test_from_its_own_random_start_scikit_learn_gives_nearly_the_same(seed):
    """k-means may stop a few samples beside the best division: two of its seeds differ by as much."""
    losses = make_losses(seed)
    peer = Peer(**PUBLISHED, random_state=seed).fit(losses[:, None])
    clean = peer.predict_proba(losses[:, None])[:, peer.means_.argmin()]
    ours = fit_gaussian_mixture(losses).posterior(losses)
    assert np.abs(ours - clean).max() < 0.04
    assert ((ours > 0.5) != (clean > 0.5)).mean() < 0.01


@pytest.mark.parametrize("seed", range(10))
def test_the_start_is_the_best_that_k_means_can_find(seed):
    ordered = np.sort(make_losses(seed, 400))
    cut = lower_group(ordered)
    inertia = sum(((group - group.mean()) ** 2).sum() for group in np.split(ordered, [cut]))
    assert inertia <= KMeans(2, n_init=5, random_state=seed).fit(ordered[:, None]).inertia_ * (1 + 1e-12)


finite = arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.one_of(st.floats(-1e90, 1e90), st.floats(0, 20), st.sampled_from([0.0, 1e-6, 1.0, 5.0])),
)


@settings(max_examples=200)
@given(values=finite, seed=st.integers(0, 100))
def test_any_losses_give_probabilities_whatever_their_order(values, seed):
    losses = min_max(values)
    assert losses.min() >= 0
    assert losses.max() <= 1
    fit = fit_gaussian_mixture(losses)
    clean = fit.posterior(losses)
    assert clean.shape == losses.shape
    assert ((clean >= 0) & (clean <= 1)).all()
    assert fit.mean[0] <= fit.mean[1]
    assert min(fit.variance) >= VARIANCE_FLOOR
    assert sum(fit.weight) == pytest.approx(1)
    shuffled = np.random.default_rng(seed).permutation(losses)
    assert fit_gaussian_mixture(shuffled) == fit


@settings(max_examples=100)
@given(values=finite, scale=st.sampled_from([0.5, 2.0, 1024.0]))
def test_normalised_losses_do_not_depend_on_the_unit(values, scale):
    values[np.abs(values) < 1e-300] = 0.0  # of the smallest floats there is no half
    np.testing.assert_allclose(min_max(values * scale), min_max(values), atol=1e-12)


def test_two_far_heaps_are_told_apart():
    random = np.random.default_rng(1)
    wrong = random.random(3000) < 0.4
    losses = min_max(np.where(wrong, random.normal(4, 0.5, 3000), random.gamma(1, 0.2, 3000)))
    clean = fit_gaussian_mixture(losses).posterior(losses)
    assert ((clean < 0.5) == wrong).mean() > 0.98


@pytest.mark.parametrize("losses", [np.full(9, 3.0), np.array([7.0]), np.array([0.0, 0.0])])
def test_without_spread_everything_is_clean_and_it_is_said(losses):
    fit = fit_gaussian_mixture(min_max(losses))
    assert (fit.posterior(min_max(losses)) == 1).all()
    assert "equal" in fit.warnings[0]


def test_infinite_losses_count_as_the_largest_finite_one():
    losses = np.array([0.5, np.inf, 2.5, -np.inf, 1.5])
    np.testing.assert_array_equal(min_max(losses), [0.0, 1.0, 1.0, 0.0, 0.5])
    np.testing.assert_array_equal(min_max(np.array([-1.7e308, 1.7e308, 0.0])), [0.0, 1.0, 0.5])


@pytest.mark.parametrize("losses", [[np.nan, 1.0], [], [np.inf, np.inf]])
def test_losses_that_cannot_be_normalised_are_refused(losses):
    with pytest.raises(ValueError, match="finite"):
        min_max(np.array(losses))


@pytest.mark.parametrize("values", [[np.nan, 1.0], [], [np.inf, 1.0], [[1.0, 2.0]], [1e101, 0.0]])
def test_values_that_cannot_be_fitted_are_refused(values):
    with pytest.raises(ValueError, match="wanted"):
        fit_gaussian_mixture(np.array(values))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"tolerance": -1.0}, {"variance_floor": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted at least 1"):
        fit_gaussian_mixture(np.array([0.0, 1.0]), **wrong)


def test_scoring_takes_any_number_but_nan():
    fit = GaussianMixture((0.1, 0.6), (0.01, 0.01), (0.5, 0.5), 1, True)
    np.testing.assert_allclose(fit.posterior([-np.inf, 0.35, np.inf]), [1.0, 0.5, 0.0], atol=1e-12)
    with pytest.raises(ValueError, match="nan"):
        fit.posterior([np.nan])
