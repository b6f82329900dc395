"""`fastdrpl figure cam`, `figure doubtful` and `probe` on a real, tiny run; each number is computed in another way."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from fastdrpl.cli import main
from fastdrpl.errors import UserError
from fastdrpl.export import Ensemble
from fastdrpl.figures import cam_figure, doubtful, probe_figure
from fastdrpl.figures.probe import ProbeCommand
from fastdrpl.figures.probe_fit import stage_features
from fastdrpl.figures.probe_task import choose_task
from fastdrpl.labels import load_labels
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.models import build_model
from fastdrpl.models.maps import class_maps
from fastdrpl.opening import open_run

WORDS = (
    "--method ce --limit 160 --limit_test 40 --batch_size 32 --model.width 4 --engine.threads 1 "
    "--engine.device cpu --epochs_scale 0.04 --noise.ratio 0.3 --detect.collapse relax"
)
STRANGE = ("$a$", 'b, "c"', "猫")  # classes of the photos


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path, threads = tmp_path_factory.mktemp("figures") / "run", torch.get_num_threads()
    try:
        assert main(["train", "digits", *WORDS.split(), "--run", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """8 x 8 grey pictures of three classes, 20 of each, prepared; without test images."""
    base, digits = tmp_path_factory.mktemp("photos"), load_digits()
    for k, name in enumerate(STRANGE):
        (base / "in" / name).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == k][:20]):
            Image.fromarray((pixels * 15).astype(np.uint8)).save(base / "in" / name / f"{number:02}.png")
    prepare(PrepareConfig(kind="folder", source=base / "in", out=base / "out", size=8))
    return base / "out"


@pytest.fixture
def unpainted(monkeypatch):
    """Numbers only: painting takes seconds."""
    for module in (cam_figure, doubtful, probe_figure):
        monkeypatch.setattr(module, "render", lambda *words: {})


def read(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- class activation maps ---


@pytest.mark.parametrize(("name", "width", "side"), [("preact_resnet18", 4, 20), ("resnet18", 64, 64)])
def test_the_mean_of_a_map_plus_the_bias_is_the_logit(name, width, side):
    network = build_model(name, 7, width, seed=3).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    inputs = torch.randn(3, 3, side, side)
    maps, logits = class_maps(network, inputs)
    with torch.no_grad():
        expected = network(inputs)
    assert maps.shape[:2] == (3, 7) and maps.shape[2] > 1
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_map_is_where_the_class_is():
    """A network whose last map is its input: the map of a class is the weighted sum of the channels."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward_features(self, inputs):
            return inputs

        def get_classifier(self):
            return self.head

    network, inputs = Plain(), torch.rand(2, 3, 4, 5)
    maps, _ = class_maps(network, inputs)
    weight = network.head.weight.detach()
    assert float(maps[1, 0, 2, 3]) == pytest.approx(float((weight[0] * inputs[1, :, 2, 3]).sum()), rel=1e-5)


def normalised(run, rows) -> torch.Tensor:
    """The images of rows as the network takes them, from the prepared bytes, by plain arithmetic."""
    data = open_dataset(run / "data")
    split, bytes_ = data.split("train"), (run / "data" / "train.beton").read_bytes()
    about = json.loads((run / "export" / "model.json").read_text())
    size = split.height * split.width * 3
    images = [
        np.frombuffer(bytes_, np.uint8, size, split.offset[row]).reshape(split.height, split.width, 3)
        for row in rows
    ]
    scaled = (np.stack(images) / np.float32(255) - np.float32(about["mean"])) / np.float32(about["std"])
    return torch.tensor(scaled, dtype=torch.float32).permute(0, 3, 1, 2)


@pytest.mark.usefixtures("unpainted")
def test_the_maps_of_chosen_images_are_those_of_the_network(run, tmp_path):
    assert main(["figure", "cam", str(run), "--images", "3,17", "--out", str(tmp_path)]) == 0
    lines = read(tmp_path / "cam.csv")
    labels, opened = load_labels(run / "noise.npz"), open_run(run)
    with torch.no_grad():
        logits = opened.network(normalised(run, labels.source_row[[3, 17]]))
    names = labels.class_names
    for k, index in enumerate((3, 17)):
        own = [line for line in lines if line["index"] == str(index)]
        best = int(logits[k].argmax())
        other = labels.truth[index] if labels.truth[index] != best else labels.given[index]
        assert list(dict.fromkeys(line["class"] for line in own if line["role"] == "predicted")) == [
            names[best]
        ]
        assert {line["class"] for line in own if line["role"] != "predicted"} == {names[other]}
        for role, c in (("predicted", best), ("other", other)):
            of_role = [line for line in own if (line["role"] == "predicted") == (role == "predicted")]
            mean = np.mean([float(line["value"]) for line in of_role])
            bias = float(opened.network.linear.bias[c].detach())
            assert mean + bias == pytest.approx(float(logits[k, c]), rel=1e-3, abs=1e-4)
            assert float(of_role[0]["logit"]) == pytest.approx(float(logits[k, c]), rel=1e-3, abs=1e-4)


@pytest.mark.usefixtures("unpainted")
def test_doubtful_and_undetected_images_are_chosen_by_the_table(run, tmp_path):
    table = pyarrow.parquet.read_table(run / "labels.parquet").to_pandas()
    assert main(["figure", "cam", str(run), "--most_doubtful", "4", "--out", str(tmp_path / "a")]) == 0
    chosen = list(dict.fromkeys(int(line["index"]) for line in read(tmp_path / "a" / "cam.csv")))
    assert chosen == table.sort_values("rank")["index"][:4].tolist()
    kept = table[table.is_noisy & table.labelled & (table.suggested == table.given)]
    code = main(["figure", "cam", str(run), "--undetected", "3", "--out", str(tmp_path / "b")])
    if len(kept):
        chosen = list(dict.fromkeys(int(line["index"]) for line in read(tmp_path / "b" / "cam.csv")))
        assert chosen == kept.sort_values("rank", ascending=False)["index"][:3].tolist()
    else:
        assert code == 2


def test_two_runs_stand_side_by_side_and_every_file_is_there(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    weights = build_model("preact_resnet18", 10, 4, seed=9)
    several = Ensemble([weights, open_run(run).network])
    opened = json.loads((again / "export" / "model.json").read_text()) | {"networks": 2}
    safetensors.torch.save_file(several.state_dict(), again / "export" / "model.safetensors")
    (again / "export" / "model.json").write_text(json.dumps(opened))
    words = ["figure", "cam", str(run), str(again), "--split", "test", "--images", "0,5", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cam.csv", "cam.png", "cam.svg"]
    assert {line["run"] for line in read(tmp_path / "out" / "cam.csv")} == {"run", "again"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "which images?"),
        ("--images 3 --most_doubtful 2", "more than one way"),
        ("--images 3,x", "invalid literal"),
        ("--images 160", "there is no image 160"),
        ("--images=-1", "there is no image -1"),
        ("--split test --images 400", "there is no image 400"),
        ("--split test --most_doubtful 4", "never judged"),
        ("--most_doubtful 65", "65 images"),
        ("--images 1 --data nowhere", "no prepared dataset here"),
    ],
)
def test_images_that_are_not_there_are_refused(run, tmp_path, capsys, words, said):
    assert main(["figure", "cam", str(run), *words.split(), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_data_and_unfinished_runs_are_refused(run, photos, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["figure", "cam", str(run), "--images", "1", "--data", str(photos), *out]) == 3
    assert "not the images that the run was trained on" in capsys.readouterr().err
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    (begun / "result.json").unlink()
    for words in (["figure", "cam", str(begun), "--images", "1"], ["figure", "doubtful", str(begun)]):
        assert main([*words, *out]) == 2
        assert "not finished" in capsys.readouterr().err
    assert main(["probe", str(begun), "--data", str(photos)]) == 2
    assert "not finished" in capsys.readouterr().err


def test_without_truth_no_wrong_label_is_known(run, tmp_path, capsys):
    told = tmp_path / "told"
    shutil.copytree(run, told)
    labels = load_labels(told / "noise.npz")
    type(labels)(labels.given, np.full(len(labels), -1), labels.source_row, labels.class_names).save(
        told / "noise.npz"
    )
    assert main(["figure", "cam", str(told), "--undetected", "2", "--out", str(tmp_path / "out")]) == 2
    assert "right labels are not known" in capsys.readouterr().err


# --- doubtful images ---


def test_the_doubtful_images_are_the_first_suspects_of_each_class(run, tmp_path):
    words = ["figure", "doubtful", str(run), "--classes", "3,8", "--count", "4", "--out", str(tmp_path)]
    assert main(words) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".png", ".svg"]
    lines = read(tmp_path / "doubtful.csv")
    table = pyarrow.parquet.read_table(run / "labels.parquet").to_pandas()
    for name in ("3", "8"):
        own = table[table.given_name == name].sort_values("rank")
        first = own[~own.labelled]["index"][:4].tolist()
        found = [int(line["index"]) for line in lines if (line["class"], line["kind"]) == (name, "doubtful")]
        assert found == first
        clean = [int(line["index"]) for line in lines if (line["class"], line["kind"]) == (name, "clean")]
        assert clean == own[own.labelled]["index"].tolist()[-1:]
    assert {line["class"] for line in lines} == {"3", "8"}


@pytest.mark.usefixtures("unpainted")
def test_without_classes_those_with_most_suspects_are_shown(run, tmp_path):
    shutil.copytree(run / "data", tmp_path / "moved")
    words = ["figure", "doubtful", str(run), "--data", str(tmp_path / "moved")]
    assert main([*words, "--out", str(tmp_path)]) == 0
    table = pyarrow.parquet.read_table(run / "labels.parquet").to_pandas()
    share = (~table.labelled).groupby(table.given_name).mean()
    shown = list(dict.fromkeys(line["class"] for line in read(tmp_path / "doubtful.csv")))
    assert len(shown) == 4 and min(share[shown]) >= max(share.drop(shown))


def test_an_unknown_class_is_refused_with_the_nearest(run, tmp_path, capsys):
    assert main(["figure", "doubtful", str(run), "--classes", "3,88", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no class '88'; did you mean '8'?" in said and "10 classes: 0, 1, 2" in said


# --- linear probes ---


def test_the_features_are_the_pooled_maps_and_the_classifier_is_multinomial(run, photos, tmp_path, capsys):
    """The accuracy of every depth, by features of a plain forward pass and a classifier of torch."""
    words = ["probe", str(run), "--data", str(photos), "--out", str(tmp_path), "--test_share", "0.5"]
    assert main(words) == 0
    assert "trained on images of 16 pixels, these have 8" in capsys.readouterr().err
    names = ["probe.csv", "probe.png", "probe.svg", "probe_classes.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    lines = read(tmp_path / "probe.csv")
    assert [line["depth"] for line in lines] == ["L1", "L2", "L3", "L4"]
    assert [int(line["features"]) for line in lines] == [4, 8, 16, 32]
    opened, data = open_run(run), open_dataset(photos)
    task = choose_task(ProbeCommand(runs=(run,), data=photos, test_share=0.5), data, [opened])
    assert [
        (c["class"], c["train_images"], c["test_images"]) for c in read(tmp_path / "probe_classes.csv")
    ] == [(name, "10", "10") for name in sorted(STRANGE)]
    for line, train, test in zip(
        lines,
        plain_features(opened, photos, task.train),
        plain_features(opened, photos, task.test),
        strict=True,
    ):
        assert (line["train_images"], line["test_images"], line["converged"]) == ("30", "30", "yes")
        predicted = softmax_regression(train, task.train.label, test)
        assert float(line["test_accuracy"]) == pytest.approx((predicted == task.test.label).mean(), abs=1e-6)


def plain_features(opened, photos, part) -> list[np.ndarray]:
    """Of all images at once, from the source pictures, in double precision."""
    data = open_dataset(photos)
    files = [photos.parent / "in" / data.ids("train")[row] for row in part.rows]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    about = opened.description
    inputs = torch.tensor((pixels / 255 - about["mean"]) / about["std"]).permute(0, 3, 1, 2)
    network = build_model("preact_resnet18", 10, 4, seed=0)
    network.load_state_dict(opened.network.state_dict())
    with torch.no_grad():
        return [each.numpy() for each in network.eval().double().stage_features(inputs)]


def softmax_regression(train: np.ndarray, label: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of softmax regression with penalty |w|^2 / 2 on standardised features, by torch's L-BFGS."""
    mean, std = train.mean(0), train.std(0)
    x, y = torch.tensor((train - mean) / std), torch.tensor(label)
    weight = torch.zeros(x.shape[1], 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss():
        solver.zero_grad()
        value = (
            nn.functional.cross_entropy(x @ weight + bias, y, reduction="sum") + 0.5 * weight.square().sum()
        )
        value.backward()
        return value

    solver.step(loss)
    return (((test - mean) / std) @ weight.detach().numpy() + bias.detach().numpy()).argmax(1)


def test_batches_and_pools_make_the_same_features(run, photos, monkeypatch):
    opened, data = open_run(run), open_dataset(photos)
    task = choose_task(ProbeCommand(runs=(run,), data=photos), data, [opened])
    whole = stage_features(opened, task.train, 8, 1, "")
    monkeypatch.setattr("fastdrpl.figures.probe_fit._BATCH", 7)
    for a, b in zip(whole, stage_features(opened, task.train, 8, 1, ""), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    finer = stage_features(opened, task.train, 8, 2, "")
    assert [each.shape[1] for each in finer] == [16, 32, 64, 128]
    np.testing.assert_allclose(finer[0].reshape(len(whole[0]), 4, 4).mean(2), whole[0], rtol=1e-4, atol=1e-5)


def test_classes_that_a_run_saw_are_left_out(run, tmp_path, capsys):
    assert main(["probe", str(run), "--data", str(run / "data")]) == 2
    assert "0 classes here with images that the runs never saw" in capsys.readouterr().err
    assert main(["probe", str(run), "--data", str(run / "data"), "--seen", "--classes", "3"]) == 0
    assert "3 classes" in capsys.readouterr().err


def test_the_test_split_tests_where_it_has_the_classes_and_shown_images_never_train(run):
    opened, data = open_run(run), open_dataset(run / "data")
    command = ProbeCommand(runs=(run,), data=run / "data", seen=True, classes=4, seed=5)
    task = choose_task(command, data, [opened])
    assert task.test.split.name == "test" and len(task.names) == 4 and not task.unseen
    assert not np.isin(task.train.rows, opened.labels.source_row).any()
    again = choose_task(command, data, [opened])
    assert again.names == task.names and np.array_equal(again.train.rows, task.train.rows)
    other = choose_task(
        ProbeCommand(runs=(run,), data=run / "data", seen=True, classes=4, seed=6), data, [opened]
    )
    assert other.names != task.names
    names = np.array(data.class_names)
    for part in (task.train, task.test):
        assert (names[part.split.label[part.rows]] == np.array(task.names)[part.label]).all()


@pytest.mark.parametrize(
    "wrong", [{"classes": 1}, {"pool": 0}, {"strength": float("nan")}, {"test_share": 1.0}, {"runs": ()}]
)
def test_settings_out_of_range_are_refused(wrong, tmp_path):
    with pytest.raises(UserError):
        ProbeCommand(**({"runs": (tmp_path,), "data": tmp_path} | wrong))


def test_more_classes_than_there_are_is_an_error(run, photos, capsys):
    assert main(["probe", str(run), "--data", str(photos), "--classes", "4"]) == 2
    assert "3 classes here" in capsys.readouterr().err
