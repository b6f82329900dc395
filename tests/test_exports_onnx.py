"""ONNX, safetensors and the network say the same of real images; a file that does not is never written."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from exported_runs import CALIBRATION, INPUT, NAMES, STORED, make_data, make_finished_run
from need import need
from PIL import Image

from fastdrpl.cli import main
from fastdrpl.export import Ensemble
from fastdrpl.exports import onnx_file as exporting
from fastdrpl.models import build_model

onnx, onnxruntime = need("onnx"), need("onnxruntime")
need("onnxscript")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one network", "two networks"])
def exported(request, data, tmp_path_factory):
    """A run and its model.onnx."""
    run = make_finished_run(tmp_path_factory.mktemp("made") / "run", data, networks=request.param)
    assert main(["export", str(run), "--to", "onnx"]) == 0
    return run


def from_weights(run, pixels):
    """Logits from the file of weights, step by step."""
    description = json.loads((run / "export" / "model.json").read_text())
    networks = [build_model("preact_resnet18", 3, 4, 9) for _ in range(description.get("networks", 1))]
    whole = networks[0] if len(networks) == 1 else Ensemble(networks)
    whole.load_state_dict(safetensors.torch.load_file(run / "export" / "model.safetensors"))
    edge = (STORED - INPUT) // 2
    inside = pixels[:, edge : edge + INPUT, edge : edge + INPUT].astype(np.float32) / 255
    inputs = (inside - np.float32(description["mean"])) / np.float32(description["std"])
    with torch.no_grad():
        return whole.eval()(torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous()).numpy()


def test_the_three_say_the_same_of_photos(exported, data, tmp_path):
    files = sorted((data.path.parent / "photos").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).resize((STORED, STORED), 2)) for file in files])
    session = onnxruntime.InferenceSession(exported / "export" / "model.onnx")
    logits, probability = session.run(["logits", "probabilities"], {"image": pixels})
    wanted = from_weights(exported, pixels)
    assert np.abs(logits - wanted).max() < 1e-3
    assert logits.argmax(1).tolist() == wanted.argmax(1).tolist()
    assert len(set(logits.argmax(1))) > 1  # or any file would agree
    by_hand = np.exp(wanted / CALIBRATION["temperature"])
    assert probability == pytest.approx(by_hand / by_hand.sum(1, keepdims=True), abs=1e-3)
    for count in (1, 5):  # any number of images
        few = session.run(["logits"], {"image": pixels[:count]})[0]
        assert few == pytest.approx(wanted[:count], abs=1e-3)
    # and what the command says of the same photos
    out = tmp_path / "photos.csv"
    assert main(["predict", str(exported), str(data.path.parent / "photos"), "--out", str(out)]) == 0
    said = out.read_text(encoding="utf-8").splitlines()[1:]
    assert len(said) == len(files)


def test_the_file_carries_what_it_takes_to_use_it(exported):
    model = onnx.load(exported / "export" / "model.onnx")
    kept = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    description = json.loads((exported / "export" / "model.json").read_text())
    assert kept["class_names"] == list(NAMES)
    for name in ("mean", "std", "stored_size", "input_size", "resample", "calibration"):
        assert kept[name] == description[name]
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    shape = image.type.tensor_type.shape.dim
    assert [each.dim_value for each in shape[1:]] == [STORED, STORED, 3] and shape[0].dim_param


@pytest.fixture
def graph(exported, monkeypatch):
    """The graph of a run, to be changed before it is checked again: to make one takes seconds."""
    model = onnx.load(exported / "export" / "model.onnx")
    monkeypatch.setattr(exporting, "_exported", lambda opened: model)
    return model


def test_a_graph_that_says_something_else_is_not_written(exported, graph, tmp_path, capsys):
    weights = next(w for w in graph.graph.initializer if w.name.endswith("linear.bias"))
    weights.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(weights) + np.float32([0, 0, 1]), weights.name
        )
    )
    assert main(["export", str(exported), "--to", "onnx", "--out", str(tmp_path / "other.onnx")]) == 2
    assert "differ by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_graph_that_says_nan_is_not_written(exported, graph, tmp_path, capsys):
    weights = next(w for w in graph.graph.initializer if w.name.endswith("linear.bias"))
    values = onnx.numpy_helper.to_array(weights) + np.float32([np.nan, 0, 0])
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    out = tmp_path / "nan.onnx"
    assert main(["export", str(exported), "--to", "onnx", "--out", str(out)]) == 2
    assert "differ by nan" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_data_noise_is_compared_and_that_is_said(exported, graph, data, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(exported, moved)
    manifest = (moved / "manifest.json").read_text()
    (moved / "manifest.json").write_text(manifest.replace(str(data.path), str(tmp_path / "gone")))
    words = ["export", str(moved), "--to", "onnx", "--out", str(tmp_path / "other.onnx")]
    assert main([*words, "--data", str(tmp_path / "gone")]) == 2  # it was named
    assert main(words) == 0
    assert "64 images of noise" in " ".join(capsys.readouterr().err.split())
