"""The beta mixture: what must hold for every input, an EM written twice, and numba against scipy."""

import math

import mpmath
import numpy as np
import pytest
import torch
from beta_mixture_cases import NASTY, make_losses
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastdrpl.kernels import beta_mixture as module
from fastdrpl.kernels.beta_mixture import INFINITE, BetaMixture, fit_beta_mixture, monotone_log_odds

BACKENDS = ("numba", "reference")


def check_posterior(fit: BetaMixture, losses: np.ndarray, backend: module.Backend = "numba") -> np.ndarray:
    """In [0, 1], of the right shape, and never falling where the loss rises; returned."""
    posterior = fit.posterior(losses, backend=backend)
    assert posterior.shape == losses.shape
    assert posterior.dtype == np.float64
    assert ((posterior >= 0) & (posterior <= 1)).all()
    assert (np.diff(posterior[np.argsort(losses, kind="stable")]) >= -1e-12).all()
    return posterior


# --- what must hold for every input ---

finite_losses = arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.one_of(
        st.floats(
            -INFINITE, INFINITE, exclude_min=True, exclude_max=True
        ),  # beyond it a loss counts as infinite
        st.floats(0, 20),
        st.sampled_from([0.0, 1e-6, 1.0, 1.00001, 5.0]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(losses=finite_losses, infinite=st.integers(0, 3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_losses_give_a_monotone_probability(backend, losses, infinite):
    losses = np.concatenate([losses, np.full(infinite, np.inf)])
    fit = fit_beta_mixture(losses, backend=backend)
    check_posterior(fit, losses, backend)
    check_posterior(fit, np.array([-np.inf, -1e308, 0.0, 1e-300, 1.0, 1e308, np.inf]), backend)
    assert fit.alpha[0] / (fit.alpha[0] + fit.beta[0]) <= fit.alpha[1] / (fit.alpha[1] + fit.beta[1])
    assert sum(fit.weight) == pytest.approx(1)
    lookup = fit.posterior(losses, compat="lookup", backend=backend)
    assert ((lookup >= 0) & (lookup <= 1)).all()


parameter = st.one_of(st.floats(1e-3, 1e4), st.floats(0.5, 3), st.sampled_from([1.0, 2.0]))


@settings(max_examples=300, deadline=None)
@given(alpha=st.tuples(parameter, parameter), beta=st.tuples(parameter, parameter), weight=st.floats(0, 1))
def test_posterior_is_monotone_for_all_signs_of_the_differences(alpha, beta, weight):
    fit = BetaMixture(alpha, beta, (1 - weight, weight), 0.0, 1.0)
    losses = np.linspace(-0.1, 1.1, 500)
    for backend in BACKENDS:
        check_posterior(fit, losses, backend)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [((2, 5), (3, 6)), ((5, 2), (6, 3)), ((2, 5), (6, 3)), ((1, 1), (1, 1)), ((2, 2.5), (2, 9))],
)
def test_flattening_leaves_the_rising_side_alone(alpha, beta):
    """Where Bayes' rule rises the posterior is Bayes' rule; where it falls the turning point's value."""
    fit = BetaMixture(alpha, beta, (0.6, 0.4), -1e-5, 1 - 1e-6)  # with these, u is the loss
    u = np.linspace(0.002, 0.998, 400)

    def bayes(x: float) -> float:
        clean, noisy = (
            w * mpmath.mpf(x) ** (a - 1) * (1 - mpmath.mpf(x)) ** (b - 1) / mpmath.beta(a, b)
            for a, b, w in zip(alpha, beta, (0.6, 0.4), strict=True)
        )
        return float(noisy / (clean + noisy))

    exact = np.array([bayes(x) for x in u])
    rises = np.gradient(exact, u) > 1e-9
    got = fit.posterior(u)
    np.testing.assert_allclose(got[1:-1][rises[1:-1]], exact[1:-1][rises[1:-1]], atol=1e-9)
    if not rises.all():  # one stretch is held at the value where the slope changes sign
        held = exact.max() if alpha[1] > alpha[0] else exact.min()
        np.testing.assert_allclose(got[1:-1][~rises[1:-1]], held, atol=1e-3)


def test_odds_that_only_fall_become_constant():
    odds = monotone_log_odds((5.0, 2.0), (2.0, 5.0), (0.5, 0.5))
    assert odds.smallest == odds.largest


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_order_of_samples_does_not_matter(backend, seed):
    losses = make_losses(seed, 9001)
    order = np.random.default_rng(seed).permutation(losses.size)
    fit, permuted = (fit_beta_mixture(x, backend=backend) for x in (losses, losses[order]))
    np.testing.assert_allclose(permuted.posterior(losses[order]), fit.posterior(losses)[order], atol=1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1, 3), (0.5, 0), (7, -2), (40, 100)])
def test_posterior_ignores_scale_and_shift(scale, shift):
    losses = make_losses(11)
    expected = fit_beta_mixture(losses).posterior(losses)
    moved = scale * losses + shift
    assert np.abs(fit_beta_mixture(moved).posterior(moved) - expected).max() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compat", ["exact", "lookup"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_two_clusters_are_told_apart(backend, compat, share):
    random = np.random.default_rng(7)
    noisy = random.random(5000) < share
    losses = np.where(noisy, random.normal(6, 0.8, 5000), random.gamma(2, 0.2, 5000)).clip(0)
    posterior = fit_beta_mixture(losses, backend=backend).posterior(losses, compat=compat)
    assert ((posterior > 0.5) == noisy).mean() > 0.98


# --- the numbers ---


def em_by_hand(losses: np.ndarray, iterations: int = 10) -> dict[str, list]:
    """The published fit, sample by sample in extended precision, with nothing shared with the package."""
    ordered = sorted(float(x) for x in losses)

    def percentile(q: float) -> float:
        at = q * (len(ordered) - 1)
        k = int(at)
        return ordered[k] + (at - k) * (ordered[min(k + 1, len(ordered) - 1)] - ordered[k])

    low, high = percentile(0.05), percentile(0.95)
    us = []
    for x in losses:
        if low <= x <= high:
            u = (x - (low + 10e-6)) / (high - (low + 10e-6) + 1e-6)
            us.append(np.longdouble(1 - 10e-4 if u >= 1 else 10e-4 if u <= 0 else u))
    a, b, w = [1.0, 2.0], [2.0, 1.0], [0.5, 0.5]
    for _ in range(iterations):
        norm = [math.gamma(a[k] + b[k]) / (math.gamma(a[k]) * math.gamma(b[k])) for k in (0, 1)]
        sums = [[np.longdouble(0)] * 3, [np.longdouble(0)] * 3]
        shares = []
        for u in us:
            r = [max(w[k] * norm[k] * u ** (a[k] - 1) * (1 - u) ** (b[k] - 1), 1e-12) for k in (0, 1)]
            shares.append([r[k] / (r[0] + r[1]) for k in (0, 1)])
        for k in (0, 1):
            total = sum(r[k] for r in shares)
            mean = sum(r[k] * u for r, u in zip(shares, us, strict=True)) / total
            variance = sum(r[k] * (u - mean) ** 2 for r, u in zip(shares, us, strict=True)) / total
            a[k] = float(mean * (mean * (1 - mean) / variance - 1))
            b[k] = float(a[k] * (1 - mean) / mean)
            w[k] = float(total / len(us))
            sums[k] = [total, mean, variance]
    return {"alpha": a, "beta": b, "weight": w, "range": [low, high]}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_is_the_published_em(backend, seed):
    losses = make_losses(100 + seed, 1500)
    expected = em_by_hand(losses)
    order = np.argsort([a / (a + b) for a, b in zip(expected["alpha"], expected["beta"], strict=True)])
    fit = fit_beta_mixture(losses, backend=backend)
    assert fit.warnings == ()
    for name in ("alpha", "beta", "weight"):
        np.testing.assert_allclose(
            getattr(fit, name), np.array(expected[name])[order], rtol=1e-9, err_msg=name
        )
    np.testing.assert_allclose((fit.low, fit.high), expected["range"], rtol=1e-12)


def test_iterations_are_counted():
    losses = make_losses(1, 500)
    expected = em_by_hand(losses, iterations=3)
    np.testing.assert_allclose(fit_beta_mixture(losses, iterations=3).alpha, expected["alpha"], rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_lookup_is_the_published_table(seed):
    losses = make_losses(200 + seed)
    fit = fit_beta_mixture(losses)
    density = [
        [
            w * math.gamma(a + b) / (math.gamma(a) * math.gamma(b)) * x ** (a - 1) * (1 - x) ** (b - 1)
            for x in (1e-12 + j / 99 * (1 - 2e-12) for j in range(100))
        ]
        for a, b, w in zip(fit.alpha, fit.beta, fit.weight, strict=True)
    ]
    table = [noisy / (clean + noisy + 1e-12) for clean, noisy in zip(*density, strict=True)]
    top = table.index(max(table))
    table[top:] = [table[top]] * (100 - top)
    low, high = fit.low + 10e-6, fit.high
    expected = []
    for x in losses:
        u = (x - low) / (high - low + 1e-6)
        u = 1 - 10e-4 if u >= 1 else 10e-4 if u <= 0 else u
        expected.append(table[math.floor(100 * u)])
    # 1 - x loses digits near 1, where the table has its last bin
    np.testing.assert_allclose(fit.posterior(losses, compat="lookup"), expected, atol=1e-6)


# --- what goes in and what is said ---


def test_kinds_of_input_give_the_same_fit():
    losses = make_losses(8).astype(np.float32)
    expected = fit_beta_mixture(losses.astype(np.float64))
    strided = np.repeat(losses, 2)[::2]
    for same in (losses, torch.from_numpy(losses), torch.from_numpy(losses).double(), strided):
        fit = fit_beta_mixture(same)
        assert fit == expected
        np.testing.assert_array_equal(fit.posterior(same), expected.posterior(losses))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_refused_by_number_and_place(backend):
    losses = make_losses(2, 100)
    losses[[4, 50]] = np.nan
    for call in (
        lambda: fit_beta_mixture(losses, backend=backend),
        lambda: BetaMixture((1, 2), (2, 1), (0.5, 0.5), 0, 1).posterior(losses, backend=backend),
    ):
        with pytest.raises(ValueError, match=r"2 of 100 losses are nan \(positions 4, 50\)"):
            call()


@pytest.mark.parametrize(
    ("losses", "error", "text"),
    [
        ([], ValueError, "no losses"),
        ([np.inf, np.inf], ValueError, "all 2 losses are infinite"),
        ([[1.0, 2.0]], ValueError, r"shape \(1, 2\)"),
        (["a"], TypeError, "dtype"),
        ([1j], TypeError, "dtype"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_input_without_a_meaning_is_refused(backend, losses, error, text):
    with pytest.raises(error, match=text):
        fit_beta_mixture(np.array(losses), backend=backend)


def test_unknown_options_are_refused():
    losses = make_losses(0)
    with pytest.raises(ValueError, match="backend"):
        fit_beta_mixture(losses, backend="numpy")
    with pytest.raises(ValueError, match="iterations"):
        fit_beta_mixture(losses, iterations=0)
    with pytest.raises(ValueError, match="compat"):
        fit_beta_mixture(losses).posterior(losses, compat="official")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one sample", "equal"),
        ("constant", "equal"),
        ("tiny", "equal"),
        ("two samples", "no spread"),
        ("two values", "shrunk to a point"),
        ("two values, few", "no spread"),
        ("three values", "no spread"),
        ("infinite", "5 of 2005 losses are infinite"),
    ],
)
def test_degenerate_losses_are_named(name, text):
    assert any(text in warning for warning in fit_beta_mixture(NASTY[name]).warnings)


def test_equal_losses_are_clean_and_two_values_are_split():
    for name in ("one sample", "constant", "zeros"):
        assert (fit_beta_mixture(NASTY[name]).posterior(NASTY[name]) == 0).all()
    for name in ("two samples", "two values", "two values, few", "two far heaps"):
        losses = NASTY[name]
        noisy = fit_beta_mixture(losses).posterior(losses) > 0.05
        np.testing.assert_array_equal(noisy, losses > losses.mean())


def test_infinite_losses_count_as_the_largest_finite_one():
    losses = NASTY["infinite"]
    finite = np.where(np.isinf(losses), losses[np.isfinite(losses)].max(), losses)
    with_infinite, without = fit_beta_mixture(losses), fit_beta_mixture(finite)
    assert (with_infinite.alpha, with_infinite.beta) == (without.alpha, without.beta)
    np.testing.assert_array_equal(with_infinite.posterior(losses), without.posterior(finite))
