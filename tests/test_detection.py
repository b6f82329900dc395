"""Two sets, classes rescued, collapse, and figures against the truth."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from fastdrpl.detection import draw_text_histogram
from fastdrpl.detection_metrics import detection_metrics
from fastdrpl.detectors.beta_mixture import detect
from fastdrpl.errors import CollapseError
from fastdrpl.labels import NoisyLabels

CLASSES = 5


def make_set(seed: int, count: int = 2000, noisy_share: float = 0.4):
    """Losses of two passes, labels and which of them are noisy."""
    random = np.random.default_rng(seed)
    noisy = random.random(count) < noisy_share
    losses = np.where(noisy, random.gamma(12, 0.35, count), random.gamma(1, 0.3, count))
    again = np.abs(losses + random.normal(0, 0.05, count))
    return losses, again, random.integers(0, CLASSES, count), noisy


@settings(max_examples=60, deadline=None)
@given(
    losses=arrays(np.float64, st.integers(1, 80), elements=st.floats(0, 1e3) | st.sampled_from([0.0, 1.0])),
    gamma=st.floats(0, 1),
    data=st.data(),
)
def test_every_sample_is_in_exactly_one_set(losses, gamma, data):
    labels = data.draw(arrays(np.int64, losses.size, elements=st.integers(0, 2)))
    try:
        detection = detect(losses, losses, labels, 3, gamma)
    except CollapseError:
        return
    assert detection.labelled.dtype == bool
    assert detection.labelled.shape == losses.shape
    unlabelled = ~detection.labelled
    assert (detection.p_noisy[unlabelled] > gamma).all()
    outside = detection.labelled & (
        detection.p_noisy > gamma
    )  # labelled although above: rescued classes only
    assert set(labels[outside]) <= set(detection.rescued_classes)
    assert set(labels) == set(labels[detection.labelled])


@pytest.mark.parametrize("compat", ["exact", "lookup"])
@pytest.mark.parametrize("seed", range(4))
def test_larger_gamma_labels_a_superset(seed, compat):
    fit, score, labels, _ = make_set(seed)
    kept = [
        detect(fit, score, labels, CLASSES, g, compat=compat).labelled for g in (0.05, 0.1, 0.5, 0.9, 1.0)
    ]
    for small, large in pairwise(kept):
        assert (large | ~small).all()
    assert kept[-1].all()
    assert kept[0].sum() < kept[2].sum()


def test_probability_comes_from_the_second_losses():
    fit, score, labels, noisy = make_set(1)
    detection = detect(fit, score, labels, CLASSES, 0.5)
    np.testing.assert_array_equal(detection.p_noisy, detection.evidence.fit.posterior(score))
    assert not np.array_equal(detection.p_noisy, detection.evidence.fit.posterior(fit))
    assert (detection.labelled == ~noisy).mean() > 0.94
    assert detection.warnings == ()


@pytest.mark.parametrize("compat", ["exact", "lookup"])
def test_losses_may_be_tensors(compat):
    fit, score, labels, _ = make_set(5)
    fit, score = fit.astype(np.float32), score.astype(np.float32)
    expected = detect(fit, score, labels, CLASSES, 0.3, compat=compat)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        moved = (torch.from_numpy(losses).to(device) for losses in (fit, score))
        got = detect(*moved, labels, CLASSES, 0.3, compat=compat)
        np.testing.assert_allclose(got.p_noisy, expected.p_noisy, atol=1e-6 if compat == "exact" else 1e-3)
        np.testing.assert_array_equal(got.labelled, expected.labelled)
        assert got.warnings == expected.warnings


def test_class_without_clean_samples_keeps_its_lowest_percent():
    fit, score, labels, _ = make_set(2, 4000)
    labels[:] = labels % 3  # classes 0..2; 4 is made below, 3 and 5 stay empty
    high = np.flatnonzero(score > np.quantile(score, 0.9))[:350]
    labels[high] = 4
    detection = detect(fit, score, labels, 6, 0.1)
    assert detection.rescued_classes == (4,)
    kept = np.flatnonzero(detection.labelled & (labels == 4))
    assert kept.size == 3
    assert score[kept].max() <= np.sort(score[high])[2]
    assert any("class 4" in warning for warning in detection.warnings)
    assert any("classes 3, 5" in warning for warning in detection.warnings)
    others = labels != 4
    np.testing.assert_array_equal(detection.labelled[others], detection.p_noisy[others] <= 0.1)


def test_small_class_keeps_at_least_one():
    fit, score, labels, _ = make_set(3)
    labels[:] = labels % 4
    labels[np.argsort(score)[-7:]] = 4
    detection = detect(fit, score, labels, CLASSES, 0.1)
    assert detection.rescued_classes == (4,)
    assert (detection.labelled & (labels == 4)).sum() == 1


def test_all_clean_is_a_warning():
    detection = detect(np.full(50, 0.3), np.full(50, 0.3), np.arange(50) % CLASSES, CLASSES, 0.1)
    assert detection.labelled.all()
    assert any("none loses its label" in warning for warning in detection.warnings)


def test_collapse_shows_the_losses():
    random = np.random.default_rng(0)
    fit, labels = make_set(0)[0], random.integers(0, CLASSES, 2000)
    score = random.normal(30, 1, 2000)  # the second pass finds all far above the first
    with pytest.raises(CollapseError) as caught:
        detect(fit, score, labels, CLASSES, 0.05)
    assert caught.value.exit_code == 5
    assert "only 0 of 2000 samples" in str(caught.value)
    assert str(caught.value).count("#") > 40
    assert "with another threshold goes on from here" in str(caught.value)
    assert "Other thresholds would keep 0 at 0.05" in str(caught.value)


def test_as_many_labelled_samples_as_classes_is_no_collapse():
    fit, _, _, _ = make_set(0)
    for clean, collapses in ((CLASSES, False), (CLASSES - 1, True)):
        score = np.full(2000, 30.0)
        score[:clean] = 1e-3
        labels = np.arange(2000) % CLASSES
        if collapses:
            with pytest.raises(CollapseError):
                detect(fit, score, labels, CLASSES, 0.1)
        else:
            assert detect(fit, score, labels, CLASSES, 0.1).labelled.sum() == CLASSES


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"score_losses": np.ones(3)}, "shapes"),
        ({"given": np.full(2000, CLASSES)}, "wanted 0 to 4"),
        ({"given": np.full(2000, -1)}, "wanted 0 to 4"),
        ({"score_losses": np.full(2000, np.nan)}, "nan"),
    ],
)
def test_bad_arguments_are_named(change, text):
    fit, score, labels, _ = make_set(0)
    arguments = {
        "fit_losses": fit,
        "score_losses": score,
        "given": labels,
        "num_classes": CLASSES,
        "gamma": 0.1,
    }
    with pytest.raises(ValueError, match=text):
        detect(**{**arguments, **change})


def test_histogram_counts_every_loss():
    losses = np.concatenate([make_set(0)[0], [np.inf] * 3])
    lines = draw_text_histogram(losses).splitlines()
    assert len(lines) == 11
    assert sum(int(line.split()[-1]) for line in lines) == losses.size
    assert draw_text_histogram(np.array([2.0, 2.0])).endswith(" 2")


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_sklearn(seed):
    random = np.random.default_rng(seed)
    score = random.integers(0, 30, 500) / 7  # many ties
    noisy, known = random.random(500) < 0.3, random.random(500) < 0.8
    labelled = random.random(500) < 0.5
    got = detection_metrics(labelled, score, NoisyLabels(noisy & known, known))
    clean, wrong = known & ~noisy, known & noisy
    assert got["auc"] == pytest.approx(roc_auc_score(clean[known], -score[known]))
    assert got["tpr"] == pytest.approx((labelled & clean).sum() / clean.sum())
    assert got["fpr"] == pytest.approx((labelled & wrong).sum() / wrong.sum())
    assert got["labelled"] + got["unlabelled"] == 500
    assert got["labelled"] == labelled.sum()


def test_perfect_and_reversed_ranking():
    noisy, known = np.array([False, False, True]), np.ones(3, bool)
    labels = NoisyLabels(noisy, known)
    assert detection_metrics(~noisy, np.array([0, 1, 2.0]), labels)["auc"] == 1
    assert detection_metrics(~noisy, np.array([2, 1, 0.0]), labels)["auc"] == 0
    assert detection_metrics(~noisy, np.zeros(3), labels)["auc"] == 0.5


def test_unknown_truth_gives_none():
    labelled, score = np.array([True, False, True]), np.array([0.1, 2, 3])
    nothing, everything = np.zeros(3, bool), np.ones(3, bool)
    counts = {"labelled": 2, "unlabelled": 1}
    unknown = detection_metrics(labelled, score, NoisyLabels(nothing, nothing))
    assert unknown == {**counts, "auc": None, "tpr": None, "fpr": None}
    clean = detection_metrics(labelled, score, NoisyLabels(nothing, everything))
    assert clean == {**counts, "auc": None, "tpr": pytest.approx(2 / 3), "fpr": None}
    noisy = detection_metrics(labelled, score, NoisyLabels(everything, everything))
    assert noisy == {**counts, "auc": None, "tpr": None, "fpr": pytest.approx(2 / 3)}
