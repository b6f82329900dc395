"""Agreement of prediction and label, against the rule written out class by class."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from fastdrpl.config import DetectConfig
from fastdrpl.detection import guard
from fastdrpl.detectors.agreement import Agreement
from fastdrpl.detectors.held_out import HeldOut
from fastdrpl.errors import CollapseError


def predictions(samples, classes, seed=0):
    generator = np.random.default_rng(seed)
    given = generator.integers(0, classes, samples)
    logits = generator.normal(size=(samples, classes)) + 2 * np.eye(classes)[given] * generator.integers(
        0, 2, (samples, 1)
    )
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probability.astype(np.float32), given


def kept_by_hand(probability, given, share):
    kept = set()
    for c in set(given.tolist()):
        agreeing = [i for i in range(len(given)) if given[i] == c and int(np.argmax(probability[i])) == c]
        agreeing.sort(key=lambda i: (-float(probability[i, c]), i))
        count = max(1, int(np.floor(share * len(agreeing) + 1e-9))) if agreeing and share > 0 else 0
        kept |= set(agreeing[:count])
    return kept


@drawn(st.integers(1, 60), st.integers(1, 6), st.floats(0, 1), st.integers(0, 999))
def test_the_most_confident_share_of_those_that_agree_is_kept(samples, classes, share, seed):
    probability, given = predictions(samples, classes, seed)
    found = Agreement(("p",), share)([torch.from_numpy(probability)], given, classes)
    assert set(np.flatnonzero(found.labelled).tolist()) == kept_by_hand(probability, given, share)
    agrees = probability.argmax(1) == given
    assert not (found.labelled & ~agrees).any()
    assert found.p_noisy.dtype == found.doubt.dtype == np.float64
    assert ((found.p_noisy >= 0) & (found.p_noisy <= 1)).all()
    assert np.array_equal(found.p_noisy == 1, ~agrees | (found.doubt == 1))
    if agrees.any() and not agrees.all():
        assert found.doubt[agrees].max() <= found.doubt[~agrees].min()


def test_doubt_ranks_by_the_probability_of_the_label_on_either_side():
    probability = np.array([[0.9, 0.1], [0.6, 0.4], [0.45, 0.55], [0.2, 0.8]], dtype=np.float32)
    found = Agreement(("p",), 1.0)([probability], np.zeros(4, dtype=np.int64), 2)
    assert found.doubt == pytest.approx([0.1, 0.4, 1.55, 1.8], abs=1e-6)
    assert found.p_noisy == pytest.approx([0.1, 0.4, 1.0, 1.0], abs=1e-6)
    assert found.labelled.tolist() == [True, True, False, False]
    assert found.evidence.to_json() == {"agreeing": 2, "share": 1.0}


def test_samples_in_another_order_are_split_alike():
    probability, given = predictions(200, 5)
    order = np.random.default_rng(1).permutation(200)
    found, moved = (
        Agreement(("p",), 0.4)([p], y, 5)
        for p, y in ((probability, given), (probability[order], given[order]))
    )
    for name in ("labelled", "doubt", "p_noisy"):
        assert np.array_equal(getattr(found, name)[order], getattr(moved, name))


def test_a_larger_share_keeps_all_that_a_smaller_one_does():
    probability, given = predictions(300, 4)
    splits = [Agreement(("p",), share)([probability], given, 4).labelled for share in (0, 0.1, 0.5, 0.8, 1)]
    assert all((a <= b).all() and a.sum() < b.sum() for a, b in itertools.pairwise(splits))


def test_no_agreement_is_a_collapse_with_a_warning_and_a_class_without_one_is_rescued():
    _, given = predictions(60, 3)
    never = np.roll(np.eye(3, dtype=np.float32), 1, 1)[given]
    found = Agreement(("p",), 0.5)([never], given, 3)
    assert not found.labelled.any()
    assert found.warnings == ("no prediction agrees with its label",)
    with pytest.raises(CollapseError):
        guard(found, given, 3, DetectConfig())
    mixed = np.where((given == 2)[:, None], never, np.eye(3, dtype=np.float32)[given])
    rescued = guard(Agreement(("p",), 0.5)([mixed], given, 3), given, 3, DetectConfig())
    assert rescued.rescued_classes == (2,)
    assert rescued.labelled[given == 2].any()


def test_what_does_not_fit_is_refused():
    probability, given = predictions(10, 3)
    for statistic, share, wanted in (
        (probability[:, :2], 0.5, "shapes"),
        (probability[0], 0.5, "shapes"),
        (probability, 1.5, "share"),
        (probability, float("nan"), "share"),
        (np.where(np.arange(10)[:, None] == 3, np.nan, probability), 0.5, "nan"),
    ):
        with pytest.raises(ValueError, match=wanted):
            Agreement(("p",), share)([statistic], given, 3)
    with pytest.raises(ValueError, match="labels reach"):
        Agreement(("p",), 0.5)([probability], given + 1, 3)


def test_held_out_keeps_all_that_agree_and_names_empty_and_single_class_halves():
    probability, given = predictions(60, 3)
    halves = (np.arange(60) % 2).astype(np.int8)
    found = HeldOut(("held_out", "half"))([probability, torch.from_numpy(halves)], given, 3)
    assert np.array_equal(found.labelled, probability.argmax(1) == given)
    assert found.warnings == ()
    empty = HeldOut(("held_out", "half"))([probability, np.where(halves == 1, 1, -1)], given, 3)
    assert [text for text in empty.warnings if "half 1 was empty" in text] == list(empty.warnings)
    lone = HeldOut(("held_out", "half"))([probability, np.where(given == 2, 0, 1)], given, 3)
    assert "half 1 held labels of class 2 only" in lone.warnings[0]
    one_class = HeldOut(("held_out", "half"))(
        [np.ones((8, 1), np.float32), halves[:8]], np.zeros(8, np.int64), 1
    )
    assert one_class.warnings == ()
