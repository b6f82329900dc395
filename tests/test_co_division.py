"""The split of an epoch: what the mixture says, and every case in which it says too little."""

import numpy as np
import pytest
import torch

from fastdrpl.detection import lowest_of_each_class
from fastdrpl.detectors.co_division import LEAST, CoDivided, co_divide
from fastdrpl.detectors.gaussian_mixture import NormalisedLossMixture, judge

N, C = 600, 3


def two_networks(seed=0):
    """Normalised losses of two networks that mostly agree, and labels."""
    random = np.random.default_rng(seed)
    wrong = random.random(N) < 0.4
    losses = [np.where(wrong, random.normal(0.7, s, N), random.normal(0.1, 0.05, N)) for s in (0.1, 0.2)]
    return np.clip(np.stack(losses, 1), 0, 1).astype(np.float32), np.arange(N) % C


def test_each_network_labels_by_its_own_posterior():
    losses, given = two_networks()
    split = co_divide(torch.from_numpy(losses), torch.from_numpy(given), 0.5, True)
    for network in (0, 1):
        clean = judge(losses[:, network]).clean[:, 0]
        np.testing.assert_allclose(split.clean[:, network], clean, atol=1e-7)
        np.testing.assert_array_equal(split.kept[:, network], clean > 0.5)
    assert (split.kept[:, 0] != split.kept[:, 1]).any()
    assert not split.by_rule.any()


def test_a_class_without_a_labelled_sample_keeps_its_lowest_hundredth():
    losses, given = two_networks()
    losses[given == 2] = 0.5 + losses[given == 2] / 2  # looks wrong throughout
    split = co_divide(losses, given, 0.5, True)
    assert not (judge(losses).clean[given == 2] > 0.5).any()
    for network in (0, 1):
        added = np.flatnonzero(split.by_rule[:, network])
        assert (given[added] == 2).all()
        assert len(added) == N // C // 100
        lowest = np.sort(losses[given == 2, network])[: len(added)]
        np.testing.assert_array_equal(np.sort(losses[added, network]), lowest)
    bare = co_divide(losses, given, 0.5, False)
    assert not bare.kept[given == 2].any()
    assert not bare.by_rule.any()


def test_with_fewer_labels_than_classes_the_lowest_tenth_of_each_class_is_kept():
    random = np.random.default_rng(3)
    losses = np.stack([np.append([0.0, 0.01], 1 - 0.1 * random.random(N - 2)) for _ in (0, 1)], 1)
    given = np.arange(N) % C
    assert (judge(losses).clean > 0.5).sum(0).tolist() == [2, 2]
    split = co_divide(losses, given, 0.5, True)
    for network in (0, 1):
        lowest = lowest_of_each_class(losses[:, network], given, 0.1)
        np.testing.assert_array_equal(split.kept[:, network], lowest)
        assert split.by_rule[:, network].sum() == N // 10 - 2


def test_a_batch_is_always_left():
    """One class and few samples: a tenth of it would be one sample."""
    losses = np.append(0.0, np.linspace(0.9, 1.0, 11))[:, None]
    given = np.zeros(12, dtype=np.int64)
    split = co_divide(losses, given, 0.5, False)
    assert (judge(losses).clean > 0.5).sum() == 1
    np.testing.assert_array_equal(np.flatnonzero(split.kept), np.arange(LEAST))
    assert split.by_rule.sum() == LEAST - 1


def test_equal_losses_label_everything():
    split = co_divide(np.full((N, 2), 0.5), np.arange(N) % C, 0.5, True)
    assert split.kept.all()
    assert (split.clean == 1).all()
    assert not split.by_rule.any()


def test_the_reported_split_is_that_of_the_mean_posterior_with_notes():
    losses, given = two_networks()
    epochs = np.zeros((N, 2), dtype=np.int32)
    plain = NormalisedLossMixture(("normalised",), 0.3)([losses], given, C)
    detector = CoDivided(("normalised", "by_rule"), 0.3)
    quiet = detector([losses, torch.from_numpy(epochs)], given, C)
    np.testing.assert_array_equal(quiet.p_noisy, plain.p_noisy)
    np.testing.assert_array_equal(quiet.labelled, plain.labelled)
    assert quiet.warnings == plain.warnings == ()
    epochs[[4, 9], 1] = [7, 2]
    (note,) = detector([losses, epochs], given, C).warnings
    assert "in at least 7 epochs the split by network 2" in note
    assert "2 samples" in note


def test_nan_is_refused():
    losses, given = two_networks()
    losses[5, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        co_divide(losses, given, 0.5, True)
