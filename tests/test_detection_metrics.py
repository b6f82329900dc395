"""Curves and precisions against scikit-learn, and against counting by hand where it has no such number."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from fastdrpl.detection_metrics import average_precision, detection_metrics, precision_at, roc_curve
from fastdrpl.labels import NoisyLabels

# Scores with many ties, with few, and without; some samples of unknown truth.
CASES = [(levels, unknown, seed) for levels in (3, 40, 0) for unknown in (0.0, 0.3) for seed in range(3)]


def make(levels: int, unknown: float, seed: int, count: int = 400):
    """(N,) scores, higher for the noisy; which samples are noisy, as far as that is known; the mask of those known."""
    draw = np.random.default_rng(seed)
    wrong, known = draw.random(count) < 0.3, draw.random(count) >= unknown
    score = draw.normal(wrong.astype(float), 1)
    if levels:
        score = np.round(score * levels) / levels
    return score, NoisyLabels(wrong & known, known), known


@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_that_of_sklearn(case):
    score, is_noisy, known = make(*case)
    curve = roc_curve(score, is_noisy)
    fpr, tpr, _ = metrics.roc_curve(~is_noisy.noisy[known], -score[known], drop_intermediate=False)
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert set(zip(curve.fpr, curve.tpr, strict=True)) <= set(zip(fpr, tpr, strict=True))
    # Along the curve the sum of both rises, so it names the place where each of their points must lie on ours.
    np.testing.assert_allclose(np.interp(fpr + tpr, curve.fpr + curve.tpr, curve.fpr), fpr, atol=1e-12)


def test_only_corners_are_kept():
    """Three noisy samples after four clean ones: straight up, then straight across."""
    is_noisy = NoisyLabels(np.arange(7) > 3, np.ones(7, bool))
    curve = roc_curve(np.arange(7.0), is_noisy)
    np.testing.assert_array_equal(curve.fpr, [0, 0, 1])
    np.testing.assert_array_equal(curve.tpr, [0, 1, 1])


@pytest.mark.parametrize("case", CASES)
def test_the_area_under_the_curve_is_the_auc_of_the_ranks(case):
    score, is_noisy, known = make(*case)
    curve = roc_curve(score, is_noisy)
    auc = detection_metrics(score < 0, score, is_noisy)["auc"]
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auc, abs=1e-12)
    assert auc == pytest.approx(metrics.roc_auc_score(is_noisy.noisy[known], score[known]), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_every_split_at_a_threshold_is_on_the_curve(case):
    score, is_noisy, _ = make(*case)
    curve = roc_curve(score, is_noisy)
    for threshold in np.quantile(score, [0.1, 0.35, 0.5, 0.9]):
        split = detection_metrics(score <= threshold, score, is_noisy)
        # The curve may rise steeply at one fpr: there the point lies between two values.
        at = np.isclose(curve.fpr, split["fpr"], atol=1e-12)
        low = curve.tpr[at].min() if at.any() else np.interp(split["fpr"], curve.fpr, curve.tpr)
        high = curve.tpr[at].max() if at.any() else low
        assert low - 1e-12 <= split["tpr"] <= high + 1e-12


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_that_of_sklearn(case):
    score, is_noisy, known = make(*case)
    wanted = metrics.average_precision_score(is_noisy.noisy[known], score[known])
    assert average_precision(score, is_noisy) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("case", [(0, 0.0, 0), (0, 0.3, 1)])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_precision_at_k_is_that_of_sklearns_curve(case, k):
    """Without ties the k most doubtful are the threshold of a point of the precision-recall curve."""
    score, is_noisy, known = make(*case)
    precision, _, threshold = metrics.precision_recall_curve(is_noisy.noisy[known], score[known])
    at = np.searchsorted(threshold, np.sort(score[known])[-k])
    assert precision_at(k, score, is_noisy) == pytest.approx(precision[at], abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_ties_at_the_cut_count_by_their_chance(k):
    """The mean over all orders in which samples of equal score could have come."""
    score = np.array([3.0, 2, 2, 2, 1, 1])
    noisy = np.array([False, True, False, True, True, False])
    found = []
    for order in itertools.permutations(range(6)):
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order)):
            found.append(noisy[list(order[:k])].mean())
    assert len(found) == 12
    assert precision_at(k, score, NoisyLabels(noisy, np.ones(6, bool))) == pytest.approx(np.mean(found))


def test_precision_at_the_number_of_noisy_samples_is_one_for_a_perfect_order():
    score, is_noisy, _ = make(0, 0.0, 5)
    perfect = is_noisy.noisy + 0.1 * (score - score.min()) / np.ptp(score)
    count = int(is_noisy.noisy.sum())
    assert precision_at(count, perfect, is_noisy) == 1
    assert average_precision(perfect, is_noisy) == 1
    assert precision_at(count, -perfect, is_noisy) == 0
    assert precision_at(400, score, is_noisy) == pytest.approx(count / 400)


def test_infinite_scores_are_an_end_of_the_order():
    noisy, known = np.array([True, False, True, False]), np.ones(4, bool)
    score = np.array([np.inf, 1, 2, -np.inf])
    finite = np.array([9.0, 1, 2, -9])
    for measure in (average_precision, lambda *given: precision_at(1, *given)):
        assert measure(score, NoisyLabels(noisy, known)) == measure(finite, NoisyLabels(noisy, known)) == 1


def test_samples_of_unknown_truth_are_left_out():
    score, is_noisy, known = make(3, 0.4, 2)
    alone = NoisyLabels(is_noisy.noisy[known], np.ones(known.sum(), bool))
    assert average_precision(score, is_noisy) == average_precision(score[known], alone)
    assert precision_at(50, score, is_noisy) == precision_at(50, score[known], alone)
    np.testing.assert_array_equal(roc_curve(score, is_noisy).tpr, roc_curve(score[known], alone).tpr)
    assert precision_at(int(known.sum()) + 1, score, is_noisy) is None


@pytest.mark.parametrize(
    ("noisy", "known", "none"),
    [
        ([0, 0, 0], [0, 0, 0], ("curve", "average", "precision")),
        ([0, 0, 0], [1, 1, 1], ("curve", "average")),
        ([1, 1, 1], [1, 1, 1], ("curve",)),
    ],
)
def test_what_cannot_be_said_is_none(noisy, known, none):
    is_noisy, score = NoisyLabels(np.array(noisy, bool), np.array(known, bool)), np.array([1.0, 2, 3])
    found = {
        "curve": roc_curve(score, is_noisy),
        "average": average_precision(score, is_noisy),
        "precision": precision_at(1, score, is_noisy),
    }
    assert {name for name, value in found.items() if value is None} == set(none)


@pytest.mark.parametrize("measure", [roc_curve, average_precision, lambda *given: precision_at(1, *given)])
def test_bad_arguments_are_named(measure):
    is_noisy = NoisyLabels(np.array([True, False]), np.ones(2, bool))
    with pytest.raises(ValueError, match="1 of 2 scores are nan"):
        measure(np.array([1.0, np.nan]), is_noisy)
    with pytest.raises(ValueError, match=r"shapes \(3,\), \(2,\), \(2,\)"):
        measure(np.ones(3), is_noisy)


def test_precision_at_nothing_is_no_question():
    with pytest.raises(ValueError, match="precision at 0"):
        precision_at(0, np.ones(2), NoisyLabels(np.array([True, False]), np.ones(2, bool)))
