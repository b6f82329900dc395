"""The ROC figure: the right curves and points, once each, and the same bytes for the same figures."""

import io
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_labels
from PIL import Image

from fastdrpl.detect import figure
from fastdrpl.detect.collecting import FoundRun, Score
from fastdrpl.detect.comparison import compare


def make_run(name: str, labels, *, final: bool = True, stages=("first", "second")) -> FoundRun:
    scores = []
    for k, stage in enumerate(stages):
        doubt = np.random.default_rng(k).random(len(labels)) + 0.5 * labels.is_noisy.noisy
        scores += [
            Score(stage, "last loss", "loss", doubt),
            Score(stage, "detection", "own", doubt, doubt < 0.8, final=final and k == 0),
        ]
    return FoundRun(Path(name), "ce", "digits", labels, tuple(scores))


@pytest.fixture
def drawn(monkeypatch):
    """What is plotted: (x, y, marker) of every call."""
    from matplotlib.axes import Axes

    calls, plot = [], Axes.plot

    def note(self, x, y, *words, **named):
        calls.append((np.asarray(x), np.asarray(y), named.get("marker"), named.get("label")))
        return plot(self, x, y, *words, **named)

    monkeypatch.setattr(Axes, "plot", note)
    return calls


def test_curves_once_points_of_every_split_and_a_star(drawn):
    groups = compare([make_run("a", make_labels())], ())
    figure.draw_roc(groups)
    curves = [(x, y) for x, y, marker, label in drawn if marker is None and label]
    assert len(curves) == 2
    for (x, y), line in zip(curves, groups[0].lines[::2], strict=True):
        assert np.trapezoid(y, x) == pytest.approx(line.row.auc)
    points = {
        (float(x[0]), float(y[0])): marker for x, y, marker, _ in drawn if marker is not None and len(x) == 1
    }
    rows = groups[0].rows
    assert points == {(rows[1].fpr, rows[1].tpr): "*", (rows[3].fpr, rows[3].tpr): "o"}


def test_a_long_curve_is_thinned_and_keeps_its_ends(drawn):
    groups = compare([make_run("a", make_labels(samples=20_000), stages=("one",))], ())
    assert len(groups[0].lines[0].curve.fpr) > figure.POINTS
    made = figure.draw_roc(groups)
    (curve,) = [(x, y) for x, y, marker, label in drawn if marker is None and label]
    assert len(curve[0]) == figure.POINTS
    assert (curve[0][0], curve[1][0], curve[0][-1], curve[1][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve[1], curve[0]) == pytest.approx(groups[0].rows[0].auc, abs=1e-3)
    assert len(made["roc.svg"]) < 500_000


def test_both_files_are_images_and_come_out_the_same_again():
    groups = compare([make_run("a", make_labels()), make_run("b", make_labels(1))], ())
    made = figure.draw_roc(groups)
    assert sorted(made) == ["roc.png", "roc.svg"]
    with Image.open(io.BytesIO(made["roc.png"])) as image:
        assert image.width > image.height  # two panels side by side
    assert xml.etree.ElementTree.fromstring(made["roc.svg"]).tag.endswith("svg")
    assert figure.draw_roc(groups) == made


@pytest.mark.parametrize("name", ["_hidden", "$x", "$x$^_{", "a<b>&c", "\udcff"])
def test_odd_names_are_in_the_legend(name, drawn, recwarn):
    figure.draw_roc(compare([make_run(name, make_labels())], ()))
    assert not [str(warning.message) for warning in recwarn]
    named = [label for *_, marker, label in drawn if marker is None and label]
    assert len(named) == 2 and not any(label.startswith("_") for label in named)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_groups(count):
    runs = [make_run(str(k), make_labels(k, samples=60)) for k in range(count)]
    groups = compare(runs, ())
    assert len(groups) == count
    assert figure.draw_roc(groups)["roc.png"]


def test_labels_that_are_all_right_make_an_empty_panel(drawn):
    figure.draw_roc(compare([make_run("a", make_labels(rate=0.0))], ()))
    assert [label for *_, marker, label in drawn if marker is None and label] == []
