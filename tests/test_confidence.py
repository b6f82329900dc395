"""The probability of the given label as detector."""

import numpy as np
import pytest
import torch

from fastdrpl.config import DetectConfig
from fastdrpl.detection import guard
from fastdrpl.detectors.confidence import Confidence
from fastdrpl.errors import CollapseError

GIVEN = np.array([0, 1, 2, 0, 1, 2])
OWN = np.array([0.9, 0.5, 0.1, 0.49, 1.0, 0.0], np.float32)
DETECTOR = Confidence(("confidence",), 0.5, ("some.threshold",))


def test_labelled_are_those_whose_label_is_likely_enough():
    found = DETECTOR([torch.from_numpy(OWN)], GIVEN, 3)
    assert found.labelled.tolist() == [True, True, False, False, True, False]
    assert np.allclose(found.p_noisy, 1 - OWN) and np.array_equal(found.p_noisy, found.doubt)
    assert found.p_noisy.dtype == found.doubt.dtype == np.float64
    assert found.evidence.to_json() == {"least_probability_of_the_given_label": 0.5}
    assert found.evidence.curves() == ()


def test_whole_predictions_are_read_at_the_given_label():
    prediction = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    found = DETECTOR([prediction], GIVEN, 3)
    assert found.p_noisy.tolist() == [1 - prediction[i, y] for i, y in enumerate(GIVEN)]


@pytest.mark.parametrize("seed", range(3))
def test_a_higher_threshold_keeps_a_subset_and_order_does_not_matter(seed):
    draw = np.random.default_rng(seed)
    own, given = draw.random(50), draw.integers(0, 4, 50)
    before = np.ones(50, bool)
    for threshold in (0.0, 0.2, 0.5, 0.9, 1.0):
        labelled = Confidence(("c",), threshold)([own], given, 4).labelled
        assert not (labelled & ~before).any()
        before = labelled
    order = draw.permutation(50)
    shuffled = Confidence(("c",), 0.3)([own[order]], given[order], 4)
    assert np.array_equal(shuffled.labelled, Confidence(("c",), 0.3)([own], given, 4).labelled[order])
    assert Confidence(("c",), 0.0)([own], given, 4).labelled.all()


def test_what_a_float32_softmax_rounds_beyond_one_is_one():
    found = DETECTOR([np.array([1 + 1e-7, -1e-9, 1, 1, 1, 1])], GIVEN, 3)
    assert found.p_noisy.min() == 0 and found.p_noisy.max() == 1


def test_one_class_and_nobody_right():
    """A split with an empty side is defined; that nobody is left is for the guard to say."""
    found = Confidence(("c",), 0.5)([np.zeros(4)], np.zeros(4, np.int64), 1)
    assert not found.labelled.any()
    with pytest.raises(CollapseError):
        guard(found, np.zeros(4, np.int64), 1, DetectConfig())
    relaxed = guard(found, np.zeros(4, np.int64), 1, DetectConfig(collapse="relax"))
    assert relaxed.labelled.sum() == 1 and relaxed.warnings


@pytest.mark.parametrize(
    "own, threshold, word",
    [
        (np.full(6, np.nan), 0.5, "must lie"),
        (np.full(6, 1.2), 0.5, "must lie"),
        (np.full(6, -0.2), 0.5, "must lie"),
        (np.full(5, 0.5), 0.5, "shape"),
        (np.full((6, 2), 0.5), 0.5, "shape"),
        (np.full(6, 0.5), 1.5, "threshold"),
        (np.full(6, 0.5), np.nan, "threshold"),
    ],
)
def test_what_does_not_fit_is_refused(own, threshold, word):
    with pytest.raises(ValueError, match=word):
        Confidence(("c",), threshold)([own], GIVEN, 3)


def test_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match="labels"):
        DETECTOR([OWN], GIVEN, 2)
