"""A run whose detection leaves next to no labels: nothing that was trained is lost, and another threshold goes on."""

import json

import numpy as np
import pytest
import toy

from fastdrpl.checkpoint import list_checkpoints, verify_checkpoint
from fastdrpl.cli import main
from fastdrpl.config import DetectConfig
from fastdrpl.detection import Detection, Facts, guard, lowest_of_each_class
from fastdrpl.errors import CollapseError

WORDS = [word if word != "0.5" else "0" for word in toy.WORDS]  # gamma1 0: nothing is surely right
assert WORDS != toy.WORDS


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "collapsed"
    process = toy.FORKS.Process(target=toy.command, args=(WORDS, run))
    process.start()
    process.join(240)
    assert process.exitcode == 5, toy.log_of(run)
    return run


def test_the_end_leaves_checkpoint_losses_picture_and_evidence(collapsed):
    """R15."""
    names = [path.name for path in list_checkpoints(collapsed / "checkpoints")]
    assert names == ["00000000-stage-relabel.collapsed"]
    verify_checkpoint(collapsed / "checkpoints" / names[0])
    stage = collapsed / "stages" / "relabel"
    losses = np.load(stage / "losses.npy")
    assert losses.shape == (160,)
    assert np.array_equal(losses, np.load(stage / "detection.npz")["doubt"].astype(np.float32))
    assert (stage / "histogram.png").stat().st_size > 1000
    assert json.loads((stage / "detection.json").read_text())["gamma"] == 0
    assert len((collapsed / "metrics.jsonl").read_text().splitlines()) == 6
    said = toy.log_of(collapsed)
    kept = np.load(stage / "detection.npz")["p_noisy"]
    for threshold in (0.1, 0.5):
        assert f"{int((kept <= threshold).sum())} at {threshold}" in said
    assert "no training is lost" in said


def test_another_threshold_goes_on_and_ends_as_if_it_had_been_the_first(collapsed, tmp_path, capsys):
    whole = tmp_path / "whole"
    assert main([*toy.WORDS, "--run", str(whole)]) == 0
    trained = json.loads((collapsed / "metrics.jsonl").read_text().splitlines()[5])
    assert main([*WORDS, "--run", str(collapsed)]) == 5  # the same again: at once, nothing is trained
    assert json.loads((collapsed / "metrics.jsonl").read_text().splitlines()[5]) == trained
    capsys.readouterr()
    assert main([*WORDS, "--run", str(collapsed), "--optimiser.lr", "0.01", "--drpl.gamma1", "0.5"]) == 2
    assert "optimiser.lr: 0.05 there, 0.01 now" in capsys.readouterr().err
    assert main([*WORDS, "--run", str(collapsed), "--drpl.gamma2", "0.4", "--drpl.gamma1", "0.5"]) == 2
    assert main([*toy.WORDS, "--run", str(collapsed)]) == 0
    for position in (-1, -2):
        tensors = toy.last_tensors(collapsed, position)
        assert toy.differing(tensors, toy.last_tensors(whole, position)) == []
    assert toy.outcome(collapsed)[2] == toy.outcome(whole)[2]
    changed = json.loads((collapsed / "manifest.json").read_text())["changed"]
    assert changed == [{"drpl.gamma1": [0.0, 0.5]}]
    result = json.loads((collapsed / "result.json").read_text())
    assert any("made anew with other settings" in warning for warning in result["stages"][0]["warnings"])


def test_relaxed_it_keeps_the_lowest_losses_of_each_class_and_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--detect.collapse", "relax", "--detect.collapse_share", "0.25"]
    assert main([*WORDS, "--run", str(run), *words]) == 0
    first = json.loads((run / "result.json").read_text())["stages"][0]
    assert any("25% with the lowest doubt in each class" in warning for warning in first["warnings"])
    table = toy.outcome(run)[2]
    given = np.array([row["given"] for row in table])
    losses = np.load(run / "stages" / "relabel" / "losses.npy")
    kept = np.load(run / "stages" / "relabel" / "detection.npz")["labelled"]
    for c in range(10):
        members = np.flatnonzero(given == c)
        count = max(1, int(len(members) * 0.25))
        assert set(members[kept[members]]) == set(members[np.argsort(losses[members], kind="stable")[:count]])


def found(labelled, doubt):
    p = np.where(labelled, 0.0, 1.0)
    return Detection(p, np.asarray(labelled), np.asarray(doubt, float), Facts({}), 0.5)


def test_the_rescue_is_an_option():
    given = np.array([0, 0, 0, 1, 1, 1])
    detection = found([True, True, True, False, False, False], [1, 2, 3, 6, 5, 4])
    rescued = guard(detection, given, 2, DetectConfig())
    assert rescued.labelled.tolist() == [True, True, True, False, False, True]
    assert rescued.rescued_classes == (1,)
    bare = guard(detection, given, 2, DetectConfig(rescue="no"))
    assert bare.labelled.tolist() == detection.labelled.tolist()
    assert bare.rescued_classes == ()
    assert any("no label of theirs is kept" in warning for warning in bare.warnings)


def test_fewer_labels_than_classes_stop_a_run():
    with pytest.raises(CollapseError, match="only 1 of 4 samples count as clean at gamma"):
        guard(found([True, False, False, False], [1, 2, 3, 4]), np.array([0, 0, 1, 1]), 2, DetectConfig())


@pytest.mark.parametrize("share", [0.01, 0.29, 1.0])
def test_the_lowest_of_each_class(share):
    random = np.random.default_rng(3)
    given, doubt = random.integers(0, 4, 300), random.random(300)
    chosen = lowest_of_each_class(doubt, given, share)
    for c in range(4):
        members = np.flatnonzero(given == c)
        count = max(1, int(np.floor(np.round(len(members) * share, 6))))
        assert chosen[members].sum() == count
        assert doubt[members][chosen[members]].max() <= np.sort(doubt[members])[count - 1]
