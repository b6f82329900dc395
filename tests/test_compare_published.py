"""The paper's numbers beside those of runs."""

import pytest
from test_compare_tables import U40, cells_of, finish, make, row, tables_of

from fastdrpl.compare import published


def test_published_numbers_are_transcribed_as_the_paper_must_have_them():
    """What is known of them beside their digits: how many test images there are, and which are the best."""
    for (recipe, _, _), number in published._ACCURACIES.items():
        if recipe in ("imagenet32", "imagenet64", "webvision"):
            images = 2500 if recipe == "webvision" else 5000
            assert number.value * images / 100 == pytest.approx(round(number.value * images / 100), abs=1e-6)
    for number in published._DETECTIONS.values():
        assert 0 <= number.value <= 1
    uniform = {"kind": "uniform", "ratio": 0.6}
    on_cifar = {
        method: published.accuracy("cifar10", method, uniform).value
        for method in published.ABBREVIATIONS
        if published.accuracy("cifar10", method, uniform)
    }
    assert max(on_cifar, key=on_cifar.get) == "bootstrap" and len(on_cifar) == 9
    webvision = {
        key[1]: number.value for key, number in published._ACCURACIES.items() if key[0] == "webvision"
    }
    assert max(webvision, key=webvision.get) == "drpl" and len(webvision) == 10
    assert webvision["drpl"] - webvision["dividemix"] == pytest.approx(3.92)


@pytest.mark.parametrize(
    ("recipe", "options", "code"),
    [
        ("cifar10", {"kind": "none", "ratio": 0.0}, "0"),
        ("cifar10", {"kind": "uniform", "ratio": 0.0}, "0"),
        ("cifar100", {"kind": "nonuniform", "ratio": 0.1, "legacy_rng": True}, "NU10"),
        ("imagenet32", {"kind": "nonuniform", "ratio": 0.3, "confusion": "c.npz"}, "NU-ID30"),
        ("imagenet64", {"kind": "uniform_ood", "ratio": 0.8}, "U-OOD80"),
        ("cifar10", {"kind": "matrix", "ratio": 0.3, "matrix": "m.csv"}, None),
        ("cifar10", {"kind": "uniform", "ratio": 0.8, "excludes_truth": False}, None),
        ("cifar10", {"kind": "uniform", "ratio": 0.8, "excludes_truth": True}, "U80"),
        ("cifar10", {"kind": "nonuniform", "ratio": 0.4, "both_directions": False}, None),
        ("cifar10", {"kind": "uniform", "ratio": 0.125}, None),
        ("cifar10", {"kind": "none", "ratio": 0.0, "file": "labels.npz"}, None),
    ],
)
def test_what_the_paper_calls_a_noise(recipe, options, code):
    assert published.noise_code(recipe, options) == code


def test_doubtful_numbers_are_shown_and_not_compared(tmp_path, monkeypatch):
    """FW at 40, 60 and 80 % on CIFAR-100 repeats CE in the text of the paper."""
    for ratio in (0.4, 0.6, 0.8):
        options = {"kind": "uniform", "ratio": ratio}
        forward, ce = (published.accuracy("cifar100", method, options) for method in ("forward", "ce"))
        assert forward.value == ce.value and forward.doubtful and not ce.doubtful
        assert published.accuracy("cifar100", "gce", options).doubtful
    monkeypatch.setitem(published._ACCURACIES, ("cifar10", "ce", "U40"), published.Number(83.32, True))
    grid = make(tmp_path, noises=[U40], seeds=(1,))
    for cell in cells_of(grid):
        finish(grid, cell)
    (table,) = tables_of(grid)
    assert row(table, "CE", "paper") == ["83.32?"] and row(table, "CE", "minus paper") == ["-"]
    assert row(table, "DRPL", "paper") == ["92.92"] and row(table, "DRPL", "minus paper") == ["-12.92"]
