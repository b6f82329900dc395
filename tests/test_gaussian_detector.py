"""The detector on Gaussian mixtures: thresholds, several networks, evidence, losses that tell nothing."""

import itertools
import json

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Peer

from fastdrpl.config import DetectConfig
from fastdrpl.detection import guard
from fastdrpl.detectors.gaussian_mixture import NormalisedLossMixture, judge

N, C = 1200, 4


def losses_of_two_networks(seed=0):
    random = np.random.default_rng(seed)
    wrong = random.random(N) < 0.35
    columns = [np.where(wrong, random.gamma(9, s, N), random.gamma(1, 0.2, N)) for s in (0.5, 0.3)]
    return np.stack(columns, 1), wrong, random.integers(0, C, N)


def published_posterior(losses):
    """Line for line what scikit-learn is asked for: the posterior of the lower mean of min-max normalised losses."""
    u = ((losses - losses.min()) / (losses.max() - losses.min()))[:, None]
    peer = Peer(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(u)
    return peer.predict_proba(u)[:, peer.means_.argmin()]


def test_w_is_the_mean_of_the_networks_posteriors():
    losses, wrong, given = losses_of_two_networks()
    found = NormalisedLossMixture(("each",))([losses], given, C)
    expected = (published_posterior(losses[:, 0]) + published_posterior(losses[:, 1])) / 2
    np.testing.assert_allclose(1 - found.p_noisy, expected, atol=0.02)
    assert (found.labelled != wrong).mean() > 0.95
    np.testing.assert_array_equal(found.labelled, 1 - found.p_noisy > 0.5)


def test_one_network_may_come_as_a_vector_and_tensors_are_taken():
    losses, _, given = losses_of_two_networks()
    detector = NormalisedLossMixture(("each",))
    first = detector([losses[:, 0]], given, C)
    for same in (losses[:, :1], torch.from_numpy(losses[:, 0])):
        again = detector([same], given, C)
        np.testing.assert_array_equal(first.p_noisy, again.p_noisy)
        np.testing.assert_array_equal(first.doubt, again.doubt)


def test_doubt_is_the_mean_normalised_loss():
    losses, _, given = losses_of_two_networks()
    found = NormalisedLossMixture(("each",))([losses], given, C)
    expected = ((losses - losses.min(0)) / (losses.max(0) - losses.min(0))).mean(1)
    np.testing.assert_allclose(found.doubt, expected, atol=1e-12)


def test_a_lower_threshold_keeps_a_superset():
    losses, _, given = losses_of_two_networks()
    kept = [NormalisedLossMixture(("each",), t)([losses], given, C).labelled for t in (0.9, 0.5, 0.2, 0.0)]
    for fewer, more in itertools.pairwise(kept):
        assert (fewer <= more).all()
    assert kept[0].sum() < kept[-1].sum()


def test_curves_explain_the_share_of_samples_that_the_weights_say():
    losses, _, given = losses_of_two_networks()
    found = NormalisedLossMixture(("each",))([losses], given, C)
    curves = found.evidence.curves()
    weights = np.mean([fit.weight for fit in found.evidence.fits], 0)
    wide = np.linspace(-2, 3, 20001)
    for k, curve in enumerate(curves):
        assert curve.x[0] == 0
        assert curve.x[-1] == 1
        density = np.mean([np.exp(fit.log_densities(wide)[k]) for fit in found.evidence.fits], 0)
        assert np.trapezoid(density, wide) == pytest.approx(weights[k], rel=1e-6)
        np.testing.assert_allclose(curve.density, np.interp(curve.x, wide, density), rtol=1e-3, atol=1e-6)
    text = json.loads(json.dumps(found.evidence.to_json()))
    assert text["p_threshold"] == 0.5
    assert [mixture["mean"] for mixture in text["mixtures"]] == [
        list(fit.mean) for fit in found.evidence.fits
    ]


def test_losses_that_are_equal_are_all_clean_and_it_is_said_once_a_network():
    given = np.arange(12) % C
    losses = np.stack([np.full(12, 2.0), np.linspace(0, 1, 12)], 1)
    found = NormalisedLossMixture(("each",))([losses], given, C)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("network 1: all 12 values are equal")
    assert (judge(losses).clean[:, 0] == 1).all()
    assert found.evidence.curves() == ()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_are_in_one_set_each(count):
    given = np.zeros(count, dtype=np.int64)
    found = NormalisedLossMixture(("each",))([np.arange(count, dtype=float)], given, 1)
    assert np.isfinite(found.p_noisy).all()
    assert ((found.p_noisy < 0.5) == found.labelled).all()


def test_guard_goes_with_it():
    losses, _, given = losses_of_two_networks()
    bare = NormalisedLossMixture(("each",), 0.999999)([losses], given, C)
    kept = guard(bare, given, C, DetectConfig(collapse="relax"))
    assert np.bincount(given[kept.labelled], minlength=C).min() > 0


@pytest.mark.parametrize(
    ("losses", "threshold", "given"),
    [
        (np.zeros((N, 2, 2)), 0.5, np.zeros(N, int)),
        (np.zeros(N - 1), 0.5, np.zeros(N, int)),
        (np.zeros(N), 1.0, np.zeros(N, int)),
        (np.zeros(N), 0.5, np.full(N, C)),
        (np.full(N, np.nan), 0.5, np.zeros(N, int)),
        (np.zeros(0), 0.5, np.zeros(0, int)),
    ],
)
def test_what_does_not_fit_is_refused(losses, threshold, given):
    with pytest.raises(ValueError, match="wanted"):
        NormalisedLossMixture(("each",), threshold)([losses], given, C)
