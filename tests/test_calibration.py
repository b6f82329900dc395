"""The temperature: found again in data that were made with one, and of use where there is something to mend."""

import numpy as np
import pytest

from fastdrpl.calibration import (
    calibrate_on_kept,
    calibrate_on_test,
    calibration_error,
    fit_temperature,
    some_of,
)


def made(samples, temperature, wrong=0.0, classes=10, seed=0):
    """Log probabilities that are too sure by a factor, and labels, of which a share is drawn from all classes."""
    draw = np.random.default_rng(seed)
    logits = 3 * draw.normal(size=(samples, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = np.array([draw.choice(classes, p=each) for each in p])
    given = np.where(draw.random(samples) < wrong, draw.integers(0, classes, samples), label)
    return log_softmax(logits * temperature).astype(np.float32), given, label


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def error_by_hand(log_p, label, bins=15):
    """Naeini et al. 2015, bin by bin."""
    total = 0.0
    sure, right = np.exp(log_p).max(1), log_p.argmax(1) == label
    for k in range(bins):
        inside = (sure >= k / bins) & ((sure < (k + 1) / bins) | (k == bins - 1))
        if inside.any():
            total += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    return total


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_comes_out(temperature):
    log_p, label, _ = made(4000, temperature)
    assert fit_temperature(log_p, label, may_be_wrong=False)[0] == pytest.approx(temperature, rel=0.06)


def test_a_network_that_is_too_sure_is_mended():
    log_p, label, _ = made(4000, 4.0)
    found = calibrate_on_test(log_p, label, may_be_wrong=False)
    after = log_softmax(log_p.astype(np.float64) / found.temperature)
    assert found.error_before == pytest.approx(error_by_hand(log_p, label), abs=1e-6)
    assert found.error_after == pytest.approx(error_by_hand(after, label), abs=1e-6)
    assert error_by_hand(log_p, label) > 0.08 and error_by_hand(after, label) < 0.02
    # and on images that it was not fitted to
    others, theirs, _ = made(4000, 4.0, seed=1)
    assert error_by_hand(log_softmax(others / found.temperature), theirs) < 0.02
    assert after.argmax(1).tolist() == log_p.argmax(1).tolist()  # no decision changes


def test_wrong_test_labels_do_not_make_it_unsure():
    log_p, given, label = made(8000, 2.0, wrong=0.25)
    found = calibrate_on_test(log_p, given, may_be_wrong=True)
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    assert found.wrong == pytest.approx(0.25, abs=0.03)
    assert found.error_before is None and found.error_after is None  # those labels cannot say
    trusting, none = fit_temperature(log_p, given, may_be_wrong=False)
    assert trusting > 3 and none == 0
    assert error_by_hand(log_softmax(log_p / found.temperature), label) < 0.02
    assert error_by_hand(log_softmax(log_p / trusting), label) > 0.05
    assert fit_temperature(*made(8000, 2.0)[:2], may_be_wrong=True)[1] < 0.02  # where none are wrong


def test_labels_that_were_kept_for_agreeing_sharpen_nothing():
    log_p, _, _ = made(3000, 1.0)
    agreeing = log_p.argmax(1)
    assert fit_temperature(log_p, agreeing, may_be_wrong=False)[0] < 0.2
    found = calibrate_on_kept(np.exp(log_p), agreeing)
    assert (found.temperature, found.labels, found.samples) == (1.0, "kept", 3000)
    assert "no test set" in found.describe()
    too_sure, label, _ = made(3000, 3.0)
    assert calibrate_on_kept(np.exp(too_sure), label).temperature == pytest.approx(3.0, rel=0.1)


def test_few_samples_and_hopeless_ones_stay_sane():
    log_p, _, _ = made(10, 1.0)
    right = fit_temperature(log_p, log_p.argmax(1), may_be_wrong=False)[0]
    assert 0.1 < right < 1
    assert fit_temperature(log_p[:0], np.zeros(0, int), may_be_wrong=True)[0] == pytest.approx(1)
    certain = np.log(np.maximum(np.eye(3)[[0, 1, 2, 0]], 1e-38))
    assert np.isfinite(fit_temperature(certain, np.array([1, 2, 0, 1]), may_be_wrong=False)[0])
    assert calibrate_on_kept(np.eye(3, dtype=np.float32)[[0, 1]], np.array([1, 1])).temperature > 1
    one = fit_temperature(np.zeros((5, 1)), np.zeros(5, int), may_be_wrong=False)  # a single class
    assert one[0] == pytest.approx(1)


def test_the_error_of_confidences_at_the_edges_of_bins():
    p = np.array([[1.0, 0.0], [0.5, 0.5], [0.6, 0.4], [0.8, 0.2]])
    log_p = np.log(np.maximum(p, 1e-30))
    label = np.array([0, 1, 0, 1])
    assert calibration_error(log_p, label) == pytest.approx(error_by_hand(log_p, label), abs=1e-9)


def test_a_fit_takes_an_even_share_of_very_many():
    chosen = some_of(np.arange(1_000_000))
    assert len(chosen) == 20_000 and (chosen[0], chosen[-1]) == (0, 999_999)
    assert set(np.diff(chosen)) <= {50, 51}
    assert some_of(np.arange(7)).tolist() == list(range(7))
