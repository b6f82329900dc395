"""Small loss keeps as many samples as it is told, those of the lowest losses, and refuses to guess how many."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastdrpl.detection import guard
from fastdrpl.detectors.small_loss import SmallLoss, loss_at, mean_loss
from fastdrpl.errors import CollapseError, UserError


def split(losses, share, **more):
    labels = np.zeros(len(losses), np.int64)
    return SmallLoss(("loss",), share, **more)([losses], labels, 1)


@given(
    losses=arrays(
        np.float64, st.integers(1, 60), elements=st.floats(0, 50) | st.sampled_from([0.0, 1.0, np.inf])
    ),
    share=st.floats(0, 1),
)
def test_as_many_as_told_and_none_lower_is_left_out(losses, share):
    found = split(losses, share)
    kept = found.labelled
    assert abs(kept.sum() - share * losses.size) < 1 and kept.sum() <= share * losses.size + 1e-6
    assert losses[kept].max(initial=-1) <= losses[~kept].min(initial=np.inf)
    np.testing.assert_array_equal(found.doubt, losses)
    assert ((found.p_noisy > 0) & (found.p_noisy <= 1)).all()
    # The split is that of `p_noisy` at the threshold, as for every detector.
    np.testing.assert_array_equal(kept, found.p_noisy <= found.threshold + 1e-9)


@pytest.mark.parametrize("count", [10, 50, 1000])
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.8, 0.9])
def test_a_noise_rate_given_in_tenths_keeps_what_it_says(count, rate):
    """1 - 0.9 is a little less than 0.1."""
    kept = split(np.random.default_rng(0).random(count), 1 - rate).labelled.sum()
    assert kept == count - round(count * rate)


def test_ties_go_to_the_smaller_index():
    np.testing.assert_array_equal(split(np.array([2.0, 1, 1, 1]), 0.5).labelled, [False, True, True, False])


def test_tensors_and_single_precision_give_the_same():
    losses = np.random.default_rng(1).random(40).astype(np.float32)
    one, other = split(losses, 0.3), split(torch.from_numpy(losses), 0.3)
    np.testing.assert_array_equal(one.labelled, other.labelled)
    assert one.doubt.dtype == other.doubt.dtype == np.float64


def test_it_refuses_to_guess():
    with pytest.raises(UserError, match="needs the noise rate") as caught:
        split(np.ones(4), None, adjustable=("mine.share",))
    assert "--mine.share" in str(caught.value)
    with pytest.raises(UserError, match="the share of labels that are right"):
        split(np.ones(4), None)


@pytest.mark.parametrize(
    ("losses", "labels", "share", "text"),
    [
        (np.ones(3), np.zeros(4, int), 0.5, r"\(3,\) and \(4,\)"),
        (np.ones((3, 2)), np.zeros(3, int), 0.5, r"\(3, 2\)"),
        (np.array([1, np.nan]), np.zeros(2, int), 0.5, "1 of 2 losses are nan"),
        (np.ones(2), np.array([0, 5]), 0.5, "wanted 0 to 1"),
        (np.ones(2), np.zeros(2, int), 1.5, "1.5"),
        (np.ones(2), np.zeros(2, int), float("nan"), "nan"),
    ],
)
def test_bad_arguments_are_named(losses, labels, share, text):
    with pytest.raises(ValueError, match=text):
        SmallLoss(("loss",), share)([losses], labels, 2)


def test_evidence_says_what_was_kept():
    found = split(np.array([3.0, 1, 2, np.inf]), 0.75)
    assert found.evidence.to_json() == {"share": 0.75, "kept": 3, "largest_loss_kept": 3.0}
    assert split(np.array([1, np.inf]), 1.0).evidence.to_json()["largest_loss_kept"] is None
    assert split(np.ones(3), 0.0).evidence.to_json() == {"share": 0.0, "kept": 0, "largest_loss_kept": None}
    assert found.evidence.curves() == ()


def test_a_share_that_keeps_next_to_nothing_is_a_collapse():
    from fastdrpl.config import DetectConfig

    labels = np.arange(100) % 10
    found = SmallLoss(("loss",), 0.05)([np.arange(100.0)], labels, 10)
    with pytest.raises(CollapseError, match="only 5 of 100"):
        guard(found, labels, 10, DetectConfig())


@given(
    losses=arrays(
        np.float32, st.tuples(st.integers(0, 9), st.integers(1, 7)), elements=st.floats(0, 9, width=32)
    )
)
def test_statistics_over_epochs(losses):
    np.testing.assert_allclose(mean_loss(losses), [sum(map(float, row)) / len(row) for row in losses])
    for epoch in range(1, losses.shape[1] + 1):
        np.testing.assert_array_equal(loss_at(losses, epoch), losses[:, epoch - 1])


@pytest.mark.parametrize("epoch", [0, -1, 4])
def test_an_epoch_that_there_is_not_is_named(epoch):
    with pytest.raises(ValueError, match=f"epoch {epoch} of 3"):
        loss_at(np.ones((5, 3)), epoch)


@pytest.mark.parametrize("shape", [(5,), (5, 0), (2, 3, 4)])
def test_losses_of_another_shape_are_named(shape):
    for statistic in (mean_loss, lambda losses: loss_at(losses, 1)):
        with pytest.raises(ValueError, match="N, epochs"):
            statistic(np.ones(shape))
