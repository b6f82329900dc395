"""Confident learning names the labels that confident predictions contradict; without cleanlab it says how to get it."""

import sys

import numpy as np
import pytest
from need import need

from fastdrpl.detectors.confident_learning import INSTALL, ConfidentLearning
from fastdrpl.errors import UserError

CLASSES = 4


def make(seed: int, count: int = 400, wrong_share: float = 0.25):
    """Probabilities of a network that is nearly always sure and right, labels, and which of them are wrong."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, CLASSES, count)
    wrong = draw.random(count) < wrong_share
    given = np.where(wrong, (truth + draw.integers(1, CLASSES, count)) % CLASSES, truth)
    probabilities = draw.dirichlet(np.full(CLASSES, 0.5), count) * 0.1
    probabilities[np.arange(count), truth] += 0.9
    return probabilities, given, wrong


@pytest.fixture
def cleanlab():
    return need("cleanlab.filter")


@pytest.mark.usefixtures("cleanlab")
@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_under_sure_predictions_are_found(seed):
    probabilities, given, wrong = make(seed)
    found = ConfidentLearning(("probability",))([probabilities], given, CLASSES)
    np.testing.assert_array_equal(found.labelled, ~wrong)
    np.testing.assert_allclose(found.doubt, 1 - probabilities[np.arange(400), given])
    np.testing.assert_array_equal(found.p_noisy, found.doubt)
    assert found.evidence.to_json()["issues"] == wrong.sum()
    assert "out-of-sample" in found.warnings[-1]


def test_the_doubt_is_cleanlabs_self_confidence(cleanlab):
    rank = need("cleanlab.rank")
    probabilities, given, _ = make(5)
    found = ConfidentLearning(("probability",))([probabilities.astype(np.float32)], given, CLASSES)
    quality = rank.get_self_confidence_for_each_label(given, probabilities)
    np.testing.assert_allclose(found.doubt, 1 - quality, atol=1e-6)


@pytest.mark.usefixtures("cleanlab")
def test_classes_without_samples_and_a_single_class():
    probabilities, given, wrong = make(1)
    wide = np.concatenate([probabilities, np.zeros((400, 2))], axis=1)
    found = ConfidentLearning(("probability",))([wide], given, CLASSES + 2)
    np.testing.assert_array_equal(found.labelled, ~wrong)
    assert any("class: 4" in warning for warning in found.warnings)
    alone = ConfidentLearning(("probability",))([probabilities], np.full(400, 2), CLASSES)
    assert alone.labelled.all()
    assert "fewer than two classes" in alone.warnings[0]


@pytest.mark.usefixtures("cleanlab")
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_rounded_probabilities_are_good_enough(kind):
    probabilities, given, wrong = make(2)
    found = ConfidentLearning(("probability",))([probabilities.astype(kind)], given, CLASSES)
    np.testing.assert_array_equal(found.labelled, ~wrong)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p, y: (p[:5], y), r"\(5, 4\)"),
        (lambda p, y: (p[:, :3], y), r"\(400, 3\)"),
        (lambda p, y: (2 * p, y), "400 of 400 rows"),
        (lambda p, y: (np.where(p == p.min(), np.nan, p), y), "1 of 400 rows"),
        (lambda p, y: (np.where(p == p.min(), -p, p), y), "1 of 400 rows"),
        (lambda p, y: (p, y + 1), "wanted 0 to 3"),
    ],
)
def test_bad_arguments_are_named(change, text):
    probabilities, given = change(*make(0)[:2])
    with pytest.raises(ValueError, match=text):
        ConfidentLearning(("probability",))([probabilities], given, CLASSES)


def test_without_cleanlab_there_is_a_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.delitem(sys.modules, "cleanlab.filter", raising=False)
    probabilities, given, _ = make(0)
    with pytest.raises(UserError, match="cleanlab is not installed") as caught:
        ConfidentLearning(("probability",))([probabilities], given, CLASSES)
    assert INSTALL in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_broken_cleanlab_is_not_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / "cleanlab").mkdir()
    (tmp_path / "cleanlab" / "__init__.py").write_text("")
    (tmp_path / "cleanlab" / "filter.py").write_text("import not_there_at_all\n")
    for name in loaded():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    probabilities, given, _ = make(0)
    try:
        with pytest.raises(UserError, match="does not import: No module named 'not_there_at_all'"):
            ConfidentLearning(("probability",))([probabilities], given, CLASSES)
    finally:
        for name in loaded():
            del sys.modules[name]


def loaded() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "cleanlab"]
