"""`fastdrpl detect` on the folder of a real, tiny run: what a run writes is what the comparison reads."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from need import need

from fastdrpl.cli import main
from fastdrpl.detect.probabilities import class_probabilities
from fastdrpl.errors import DataError, UserError
from fastdrpl.labels import load_labels
from fastdrpl.loaders.dataset import open_dataset

WORDS = ("--limit 120 --limit_test 40 --batch_size 32 --model.width 4 --engine.threads 1 --engine.device cpu "
         "--drpl.gamma1 0.9 --drpl.gamma2 0.9 --epochs_scale 0.05 --track every --detect.collapse relax")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path, threads = tmp_path_factory.mktemp("detect") / "run", torch.get_num_threads()
    try:
        assert main(["train", "digits", *WORDS.split(), "--run", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    return path


def read(run, capsys, *words):
    capsys.readouterr()
    assert main(["detect", str(run), "--format", "json", *words]) == 0
    return json.loads(capsys.readouterr().out)["groups"]


def test_the_figures_are_those_of_the_result(run, capsys):
    (group,) = read(run, capsys)
    result = json.loads((run / "result.json").read_text())
    own = [row for row in group["detectors"] if row["labelled"] is not None]
    assert [row["stage"] for row in own] == [stage["name"] for stage in result["stages"]]
    for row, stage in zip(own, result["stages"], strict=True):
        for name in ("labelled", "auc", "tpr", "fpr"):
            assert row[name] == pytest.approx(stage["detection"][name]), (row["stage"], name)
    assert group["noisy"] / group["known"] == pytest.approx(result["noise_rate"])


def test_the_second_split_decided(run, capsys):
    (group,) = read(run, capsys)
    assert [row["stage"] for row in group["detectors"] if row["final"]] == ["semi1"]


def test_the_losses_of_every_epoch_are_read(run, capsys):
    result = json.loads((run / "result.json").read_text())
    (group,) = read(run, capsys, "--epoch", "1")
    for stage in result["stages"]:
        rows = [row for row in group["detectors"] if row["stage"] == stage["name"]]
        assert [row["detector"] for row in rows][:3] == [
            "last loss",
            f"mean loss of {stage['epochs']} epoch" + "s" * (stage["epochs"] > 1),
            "loss after epoch 1",
        ]
    last = result["stages"][-1]["epochs"]
    (group,) = read(run, capsys, "--epoch", str(last))
    ends = [row["auc"] for row in group["detectors"] if row["stage"] == "semi2"]
    assert ends[0] == ends[2]  # the last epoch's losses are the last ones


def test_the_networks_probabilities_are_those_behind_the_suggestions(run):
    labels = load_labels(run / "noise.npz")
    found = class_probabilities(run, labels)
    assert found.shape == (120, 10)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    suggested = pyarrow.parquet.read_table(run / "labels.parquet")["suggested"].to_numpy()
    np.testing.assert_array_equal(found.argmax(axis=1), suggested)


def test_images_stored_as_jpeg_are_decoded(run, tmp_path):
    """The same digits, a little blurred: nearly the same probabilities."""
    jpeg = tmp_path / "jpeg"
    assert main(["prepare", "digits", "--store", "jpeg", "--out", str(jpeg)]) == 0
    moved = shutil.copytree(run, tmp_path / "moved", ignore=shutil.ignore_patterns("data"))
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["identity"]["data"] = open_dataset(jpeg).fingerprint
    manifest["data"] = str(jpeg)
    (moved / "manifest.json").write_text(json.dumps(manifest))
    labels = load_labels(run / "noise.npz")
    raw, blurred = class_probabilities(run, labels), class_probabilities(moved, labels)
    assert np.abs(raw - blurred).max() > 0 and np.abs(raw - blurred).mean() < 0.02


def test_confident_learning_is_a_row_of_its_own_with_its_caveat(run, capsys):
    need("cleanlab.filter")
    (group,) = read(run, capsys, "--confident_learning")
    row = group["detectors"][-1]
    assert (row["stage"], row["detector"], row["final"]) == (None, "confident learning", False)
    assert row["labelled"] is not None and 0 < row["auc"] < 1
    assert any("out-of-sample" in note for note in group["notes"])


def test_data_that_are_gone_or_others_are_named(run, tmp_path):
    labels = load_labels(run / "noise.npz")
    moved = shutil.copytree(run, tmp_path / "moved")
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["identity"]["data"] = "0" * 64
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not the images"):
        class_probabilities(moved, labels)
    shutil.rmtree(moved / "data")
    manifest["data"] = str(tmp_path / "nowhere")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no prepared dataset"):
        class_probabilities(moved, labels)
    (moved / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="a field is missing"):
        class_probabilities(moved, labels)
    (moved / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        class_probabilities(moved, labels)


def test_confident_learning_without_a_network_leaves_the_rest(run, tmp_path, capsys):
    need("cleanlab.filter")
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "export" / "model.safetensors").unlink()
    assert main(["detect", str(broken), "--confident_learning"]) == 3
    said = capsys.readouterr()
    assert "cannot load the network" in said.err
    assert "* semi1" in said.out and "confident learning" not in said.out
