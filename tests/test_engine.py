"""The training loop: bad numbers, the update, statistics, passes that only look, and every option to the end."""

import contextlib
import copy
import dataclasses
import functools
import gc
import hashlib
import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import toy
from PIL import Image
from ready_images import ReadyImages
from torch import nn

from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.cli import main, parse_training
from fastdrpl.config import DRPLConfig, EngineConfig, OptimiserConfig
from fastdrpl.detection import detect
from fastdrpl.engine import Eyes, Learner, accuracy, losses_to, probabilities, train_epoch
from fastdrpl.errors import CollapseError, NonFiniteError, PreemptedError
from fastdrpl.labels import load_labels
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.losses import Regulariser, Share
from fastdrpl.machine import build_machine
from fastdrpl.methods.drpl import Relabel, SemiSupervised
from fastdrpl.models import build_model
from fastdrpl.pixels import Transform
from fastdrpl.run import run
from fastdrpl.stages import Draws, Stage, Step
from fastdrpl.store import LabelStore

N, C = 83, 4
WORDS = [
    *("digits", "--limit", "100", "--limit_test", "37", "--batch_size", "32", "--model.width", "4"),
    *("--engine.threads", "1", "--engine.eval_batch", "30", "--checkpoint.every", "1e9"),
    *("--drpl.relabel.epochs", "3", "--drpl.relabel.milestones", "3", "--drpl.given_epochs", "1"),
    *("--drpl.semi1.epochs", "2", "--drpl.semi1.milestones", "2", "--drpl.semi2.epochs", "3"),
    *("--drpl.semi2.milestones", "3", "--drpl.average", "2", "--drpl.gamma1", "0.5", "--noise.ratio", "0.2"),
]


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Every new learner collects garbage; what the tests before this module left behind is not looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def machine():
    return build_machine(EngineConfig(device="cpu", threads=1))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(PrepareConfig(kind="digits", out=folder), quiet=True)
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs without their histograms, which take longer than the training."""
    monkeypatch.setattr("fastdrpl.detecting.draw_histogram", lambda *given, **named: None)


def words_of(digits, folder, *extra):
    return [*WORDS, "--data", str(digits), "--run", str(folder), *extra]


def train(digits, folder, *extra):
    return run(parse_training(words_of(digits, folder, *extra)))


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "unbroken"
    train(digits, folder)
    return folder


def bits(learner):
    """Weights and momentum, copied."""
    return {
        name: value.clone()
        for name, value in learner.tensors().items()
        if name.startswith("momentum.")
        or name.removeprefix("network.") in dict(learner.network.named_parameters())
    }


def hashes(folder: Path):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_run(one, other, stages=3):
    for position in range(-stages, 0):
        assert toy.differing(toy.last_tensors(one, position), toy.last_tensors(other, position)) == []
    assert toy.outcome(one) == toy.outcome(other)


# --- a small set of images, without a run around it ---


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pixels") / "pixels"
    path.write_bytes(pixels.tobytes() + bytes(2**21 - pixels.nbytes))
    offset = np.arange(N, dtype=np.int64) * 192
    label = draw.integers(0, C, N)
    return Split("train", path, 8, 8, "raw", label, np.ones(N, bool), offset, np.full(N, 192), 2**21)


@pytest.fixture
def eyes(split):
    transform = Transform(8, 2, True, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    return Eyes(ResidentLoader(split, np.arange(N)), transform, N)


def new_learner(machine, **settings):
    return Learner(build_model("preact_resnet18", C, 4, seed=1), OptimiserConfig(**settings), machine)


def new_stage(split, machine):
    store = LabelStore(N, machine.device)
    store.put("given", torch.as_tensor(split.label))
    objective = Relabel(Regulariser(0.8, 0.4), 1, 2)
    objective.begin(store, C, Pass(1, 1, 0, Purpose.train))
    return Stage("relabel", objective, DRPLConfig().relabel), store


# --- (a) numbers that are not finite ---


@dataclasses.dataclass(frozen=True)
class BadLoss:
    """An objective whose loss is not finite in one step."""

    objective: Relabel
    step: int
    value: float

    def draw(self, *given):
        return self.objective.draw(*given)

    def loss(self, step):
        outcome = self.objective.loss(step)
        return (
            dataclasses.replace(outcome, loss=outcome.loss * self.value)
            if step.number == self.step
            else outcome
        )


@dataclasses.dataclass
class BadInput:
    """A transform that spoils one value of one batch."""

    transform: Transform
    step: int
    value: float
    calls: int = 0

    def train(self, batch, pass_):
        inputs = self.transform.train(batch, pass_)
        if self.calls == self.step:
            inputs[1, 2, 3, 4] = self.value
        self.calls += 1
        return inputs


def spoil_gradient(learner, step, value):
    """One element of the gradient of one layer is not finite, while the loss is."""
    calls = []

    def hook(gradient):
        calls.append(1)
        gradient = gradient.clone()
        if len(calls) == step + 1:
            gradient.view(-1)[0] = value
        return gradient

    learner.network.linear.bias.register_hook(hook)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["loss", "gradient", "input"])
@pytest.mark.parametrize("bad", [0, 1, 4])
def test_a_bad_number_stops_all_updates_and_names_its_batch(machine, split, eyes, place, value, bad):
    learner = new_learner(machine)
    stage, store = new_stage(split, machine)
    if place == "loss":
        stage = dataclasses.replace(stage, objective=BadLoss(stage.objective, bad, value))
    elif place == "input":
        eyes = dataclasses.replace(eyes, transform=BadInput(eyes.transform, bad, value))
    else:
        spoil_gradient(learner, bad, value)
    pass_ = Pass(1, 1, 1, Purpose.train)
    order = Order(np.arange(N), 16, pass_, True)
    assert [len(order[step]) for step in range(len(order))] == [16, 16, 16, 16, 19]
    after = [bits(learner)]
    train_epoch(
        learner,
        stage,
        store,
        eyes,
        order,
        pass_,
        start_step=0,
        after_step=lambda *_: after.append(bits(learner)),
    )
    for step in range(bad):
        assert toy.differing(after[step], after[step + 1]), "a sound step changes the weights"
    for step in range(bad, len(order)):
        assert toy.differing(after[bad], after[step + 1]) == []
    with pytest.raises(NonFiniteError) as caught:
        learner.meter.refuse_bad(machine)
    assert caught.value.exit_code == 4
    assert f"sample ids {order[bad].tolist()}" in str(caught.value)


@pytest.mark.parametrize("every", ["0", "1e9"])
@pytest.mark.parametrize(("stage", "epoch", "step"), [(1, 2, 1), (3, 2, 2)])
def test_a_run_with_a_bad_number_ends_with_4_and_goes_on_from_its_last_checkpoint(
    digits, unbroken, tmp_path, monkeypatch, capsys, no_pictures, every, stage, epoch, step
):
    folder, seen = tmp_path / "run", {}
    sound = {"train": Transform.train, "pair": Transform.pair}
    place = Pass(1, stage, epoch, Purpose.train)

    def spoil(name, transform, batch, pass_, *mixture):
        inputs = sound[name](transform, batch, pass_, *mixture)
        if pass_ == place:
            seen.setdefault("steps", []).append(batch.index.tolist())
            if len(seen["steps"]) == step + 1:
                for images in inputs if name == "pair" else (inputs,):
                    images[0] = torch.nan
                seen["checkpoints"] = hashes(folder / "checkpoints")
        return inputs

    words = ["train", *words_of(digits, folder, "--checkpoint.every", every)]
    with monkeypatch.context() as patch:
        for name in sound:
            patch.setattr(Transform, name, functools.partialmethod(functools.partial(spoil, name)))
        assert main(words) == 4
    said = capsys.readouterr().err
    assert f"sample ids {seen['steps'][step]}" in said
    assert "Traceback" not in said
    assert hashes(folder / "checkpoints") == seen["checkpoints"]
    if every == "0":
        assert len(seen["steps"]) == step + 1, "the next checkpoint is where it is found"
    assert not (folder / "result.json").exists()
    assert main(words) == 0
    if seen["checkpoints"]:
        assert "continuing from" in capsys.readouterr().err
    assert_same_run(folder, unbroken)


# --- (b) the update ---


def test_a_step_is_sgd_written_out(machine):
    settings = OptimiserConfig(lr=0.1, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    learner = Learner(network, settings, machine)
    twin = copy.deepcopy(network)
    parameters, others = dict(network.named_parameters()), dict(twin.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in others.items()}
    assert {"1.weight", "1.bias", "3.bias"} <= others.keys()  # weight decay acts on these as well
    for rate in (0.1, 0.1, 0.01, 0.5, 0.001):
        inputs, wanted = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
        learner.set_learning_rate(rate)
        learner.step(nn.functional.cross_entropy(network(inputs), wanted), torch.arange(8))
        loss = nn.functional.cross_entropy(twin(inputs), wanted)
        gradients = torch.autograd.grad(loss, list(others.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(others.items(), gradients, strict=True):
                momentum[name] = 0.9 * momentum[name] + gradient + 0.01 * weight
                weight -= rate * momentum[name]
                assert torch.allclose(parameters[name], weight, rtol=1e-11, atol=1e-13)
                state = learner.tensors()[f"momentum.{name}"]
                assert torch.allclose(state, momentum[name], rtol=1e-11, atol=1e-13)


# --- (c), (d) running statistics ---


def statistics(learner):
    return torch.cat(
        [m.running_mean.clone() for m in learner.network.modules() if isinstance(m, nn.BatchNorm2d)]
    )


def test_a_frozen_forward_pass_leaves_the_statistics_alone(machine):
    learner, images = new_learner(machine), torch.randn(8, 3, 8, 8)
    learner.network.train()
    before = statistics(learner)
    frozen = learner.frozen_forward(images)
    assert torch.equal(statistics(learner), before)
    normal = learner.wrapped(images)
    assert not torch.equal(statistics(learner), before)
    assert torch.equal(frozen, normal)  # both normalise by the batch
    assert all(m.momentum == 0.1 for m in learner.network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("label_forward", "updates"), [("update", 2), ("freeze", 1)])
def test_how_often_a_semi_supervised_step_updates_the_statistics(machine, split, label_forward, updates):
    learner = new_learner(machine)
    store = LabelStore(N, machine.device)
    store.put("given", torch.as_tensor(split.label))
    store.put("labelled", torch.arange(N) % 2 == 0)
    objective = SemiSupervised(Regulariser(0.8, 0.4), DRPLConfig(label_forward=label_forward))
    objective.begin(store, C, Pass(1, 2, 0, Purpose.train))
    images = torch.randn(16, 3, 8, 8)
    network = learner.network.train()
    batch_mean = network.stem(images).mean((0, 2, 3))
    before = network.stem_bn.running_mean.clone()
    # Coefficient 1: nothing is mixed in, so that both passes see the same images.
    draws = Draws(torch.ones(1), torch.arange(N))
    step = Step(
        network=learner.wrapped,
        frozen_statistics=learner.frozen_forward,
        images=ReadyImages(images),
        index=torch.arange(16),
        store=store,
        share=Share(16),
        number=torch.tensor(0),
        draws=draws,
    )
    learner.step(objective.loss(step).loss, torch.arange(16))
    kept = 0.9**updates
    expected = kept * before + (1 - kept) * batch_mean
    assert torch.allclose(network.stem_bn.running_mean, expected, atol=1e-6)
    assert not torch.allclose(
        expected, 0.9 ** (3 - updates) * before + (1 - 0.9 ** (3 - updates)) * batch_mean
    )


# --- (e) passes that only look ---


def one_by_one(learner, eyes, split, pass_, augmented):
    """log probabilities of every image, walked singly, straight from the file."""
    pixels = np.fromfile(split.path, np.uint8)[: N * 192].reshape(N, 8, 8, 3)
    learner.network.eval()
    rows = []
    for i in range(N):
        batch = Batch(torch.tensor(pixels[i : i + 1]), torch.tensor([0]), torch.tensor([i]))
        inputs = eyes.transform.train(batch, pass_) if augmented else eyes.transform.plain(batch)
        with torch.no_grad():
            rows.append(torch.log_softmax(learner.network(inputs), 1)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 7, 41, 80, 83, 500])  # tails of 6 and 1, of 3 (joined), none
@pytest.mark.parametrize("augmented", [True, False])
def test_looking_sees_each_sample_once(machine, split, eyes, batch_size, augmented):
    learner, given = new_learner(machine), torch.as_tensor(split.label)
    learner.network.train()(torch.randn(64, 3, 8, 8))  # statistics that are not those of a fresh network
    pass_ = Pass(1, 1, 3, Purpose.track_fit)
    before = statistics(learner)
    log_p = one_by_one(learner, eyes, split, pass_, augmented)
    losses = losses_to(learner, eyes, given, pass_, batch_size=batch_size, augmented=augmented)
    assert losses.shape == (N,)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, -log_p[torch.arange(N), given], atol=1e-5)
    found = probabilities(learner, eyes, pass_, batch_size=batch_size, augmented=augmented)
    assert torch.allclose(found, log_p.exp(), atol=1e-5)
    if not augmented:
        right = int((log_p.argmax(1) == given).sum())
        assert 0 < right < N
        assert accuracy(learner, eyes, given, pass_, batch_size=batch_size) == right / N
    assert torch.equal(statistics(learner), before)


def test_the_two_passes_for_detection_draw_other_crops(machine, split, eyes):
    learner, given = new_learner(machine), torch.as_tensor(split.label)
    fit, score, again = (
        losses_to(learner, eyes, given, Pass(1, 1, 3, purpose), batch_size=30, augmented=True)
        for purpose in (Purpose.track_fit, Purpose.track_score, Purpose.track_fit)
    )
    assert torch.equal(fit, again)
    assert (fit != score).float().mean() > 0.9
    plain = [
        losses_to(learner, eyes, given, Pass(1, 1, 3, purpose), batch_size=30, augmented=False)
        for purpose in (Purpose.track_fit, Purpose.track_score)
    ]
    assert torch.equal(*plain)


# --- whole runs, in this process ---


def test_given_labels_never_change(unbroken):
    told = load_labels(unbroken / "noise.npz")
    for position in range(3):
        assert np.array_equal(toy.last_tensors(unbroken, position)["store.given"], told.given)
    table = pyarrow.parquet.read_table(unbroken / "labels.parquet")
    assert np.array_equal(table["given"], told.given)
    assert np.array_equal(table["truth"], told.truth)
    assert 0 < (told.given != told.truth).sum() < 100


def command_and_count(words, folder):
    """In a process: carry out a command, then write down how many threads torch has now."""
    try:
        toy.command(words, folder)
    finally:
        folder.with_suffix(".threads").write_text(str(torch.get_num_threads()))


def test_the_same_run_in_a_new_process_has_the_same_bits_and_threads(digits, unbroken, tmp_path):
    """The first detection of a process starts numba's threads, which share OpenMP with torch."""
    folder = tmp_path / "run"
    words = ["train", *WORDS, "--data", str(digits)]
    process = toy.FORKS.Process(target=command_and_count, args=(words, folder))
    process.start()
    process.join(240)
    assert process.exitcode == 0, toy.log_of(folder)
    assert folder.with_suffix(".threads").read_text() == "1"
    assert_same_run(folder, unbroken)


def test_bf16_runs_on_the_cpu_and_stays_close(digits, unbroken, tmp_path):
    folder = tmp_path / "run"
    words = ["train", *WORDS, "--data", str(digits), "--engine.precision", "bf16"]
    process = toy.FORKS.Process(
        target=toy.command, args=(words, folder)
    )  # Accelerate: one precision a process
    process.start()
    process.join(240)
    assert process.exitcode == 0, toy.log_of(folder)
    assert json.loads((folder / "manifest.json").read_text())["machine"]["precision"] == "bf16"
    half, full = toy.outcome(folder)[0], toy.outcome(unbroken)[0]
    assert len(half) == len(full) == 8
    for one, other in zip(half[:3], full[:3], strict=True):  # the same labels until the first detection
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
        assert one["loss"] != other["loss"]
    # What is stored stays fp32: labels and weights do not lose bits.
    assert all(t.dtype != torch.bfloat16 for t in toy.last_tensors(folder).values())


def test_relabelling_finds_the_noise_of_a_separable_set(tmp_path):
    draw = np.random.default_rng(5)
    colours = {"blue": (40, 40, 200), "green": (40, 180, 40), "red": (200, 40, 40), "yellow": (190, 190, 40)}
    for name, colour in colours.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(50):
            pixels = np.clip(np.array(colour) + draw.normal(0, 25, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.png")
    prepare(
        PrepareConfig(kind="folder", source=tmp_path / "photos", out=tmp_path / "data", size=12), quiet=True
    )
    words = [
        *("folder", "--noise.kind", "uniform", "--noise.ratio", "0.4", "--model.name", "preact_resnet18"),
        *("--model.width", "8", "--augment.size", "10", "--batch_size", "20", "--optimiser.lr", "0.02"),
        *("--engine.threads", "1", "--drpl.relabel.epochs", "10", "--drpl.relabel.milestones", "8"),
        *("--drpl.given_epochs", "5", "--drpl.semi1.epochs", "1", "--drpl.semi2.epochs", "1"),
        *("--drpl.gamma1", "0.5"),
    ]
    result = run(parse_training([*words, "--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")]))
    found = result["stages"][0]["detection"]
    assert result["noise_rate"] == pytest.approx(0.4)
    assert found["auc"] > 0.95
    assert found["tpr"] > 0.8
    assert found["fpr"] < 0.2


def test_tracking_every_epoch_writes_more_and_changes_nothing(digits, unbroken, tmp_path, no_pictures):
    folder = tmp_path / "run"
    train(digits, folder, "--track", "every")
    every, final = (toy.outcome(place) for place in (folder, unbroken))
    figures = {f"detection_{name}" for name in ("labelled", "unlabelled", "auc", "tpr", "fpr")}
    wanted = {True: [True] * 8, False: [False, False, True, False, True, False, False, True]}
    for metrics, mode in ((every[0], True), (final[0], False)):
        assert [figures <= record.keys() for record in metrics] == wanted[mode]
        assert all(figures.isdisjoint(r) for r, due in zip(metrics, wanted[mode], strict=True) if not due)
    assert every[1:] == final[1:]
    for position in range(3):
        assert toy.differing(toy.last_tensors(folder, position), toy.last_tensors(unbroken, position)) == []


OPTIONS = {
    "warmup": "--drpl.warmup load --drpl.warmup_epochs 1",
    "semi_targets": "--drpl.semi_targets mean",
    "start_targets": "--drpl.start_targets uniform",
    "posterior": "--drpl.posterior lookup",
    "track_passes": "--drpl.track_passes 1",
    "track_augment": "--drpl.track_augment none",
    "label_forward": "--drpl.label_forward freeze",
    "method": "--method ce --ce.schedule.epochs 4 --ce.schedule.milestones 3",
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_trains_to_the_end_and_resumes_to_the_bit(
    digits, unbroken, tmp_path, monkeypatch, no_pictures, name
):
    extra = OPTIONS[name].split()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = train(digits, whole, *extra)
    stages = {"warmup": 5, "method": 1}.get(name, 3)
    assert len(result["stages"]) == stages
    assert toy.outcome(whole)[0] != toy.outcome(unbroken)[0], "the option changes something"

    steps = {"warmup": 26, "method": 12}.get(name, 24)
    moments = {steps // 4, steps // 2 + 1, steps - 1}  # counted over the parts of the run
    taken, sound = [0], Learner.step

    def step_then_ask_to_stop(self, loss, index):
        sound(self, loss, index)
        taken[0] += 1
        if taken[0] in moments:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Learner, "step", step_then_ask_to_stop)
    for _ in moments:
        with pytest.raises(PreemptedError, match="SIGUSR1") as caught:
            train(digits, broken, *extra)
        assert caught.value.exit_code == 75
        assert not (broken / "result.json").exists()
    train(digits, broken, *extra)
    assert taken[0] >= steps
    assert_same_run(broken, whole, stages)


# --- detection gone wrong ---


def test_too_few_clean_labels_end_the_run_with_5_and_a_histogram(digits, tmp_path, capsys, no_pictures):
    folder = tmp_path / "run"
    code = main(["train", *words_of(digits, folder, "--drpl.gamma1", "0")])
    said = capsys.readouterr().err
    assert code == 5, said
    assert "fewer than the 10 classes" in said
    bars = [line for line in said.splitlines() if " to " in line and "#" in line]
    assert sum(int(line.split()[-1]) for line in bars) == 100
    assert "Traceback" not in said
    assert not (folder / "result.json").exists()


def test_a_collapse_before_the_last_epoch_of_tracking_is_only_a_warning(
    digits, unbroken, tmp_path, capsys, monkeypatch, no_pictures
):
    """What the first epochs look like decides nothing: with `--track every` they must not end a run."""
    calls = []

    def collapse_at_first(*given, **named):
        calls.append(1)
        if len(calls) == 1:
            raise CollapseError("only 3 of 100 samples count as clean")
        return detect(*given, **named)

    monkeypatch.setattr("fastdrpl.detecting.detect", collapse_at_first)
    folder = tmp_path / "run"
    train(digits, folder, "--track", "every")
    assert "relabel, epoch 1: almost nothing counts as clean at gamma 0.5" in capsys.readouterr().err
    assert toy.outcome(folder)[1:] == toy.outcome(unbroken)[1:]
    assert "detection_auc" not in toy.outcome(folder)[0][0]


def test_without_wrong_labels_it_warns_and_trains_on(digits, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--noise.kind", "none", "--noise.ratio", "0", "--drpl.gamma1", "1", "--drpl.gamma2", "1"]
    result = train(digits, folder, *words)
    assert "all 100 samples count as clean" in capsys.readouterr().err
    assert result["suspects"] == 0
    assert result["noise_rate"] == 0
    for stage in result["stages"][:2]:
        assert stage["detection"] == {"labelled": 100, "unlabelled": 0, "auc": None, "tpr": 1, "fpr": None}
    assert len(toy.outcome(folder)[0]) == 8
    detection = json.loads((folder / "stages" / "relabel" / "detection.json").read_text())
    assert any("all 100 samples" in warning for warning in detection["warnings"])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *words_of(digits, folder, *words)]) == 0  # the summary has nothing to list
    assert "0 of 100 labels look wrong" in out.getvalue()


def test_a_class_without_clean_samples_keeps_its_best_and_is_named(digits, tmp_path, capsys, monkeypatch):
    """All labels of one class get a large loss, all others a small one: none of them counts as clean."""
    given = {}

    def losses(learner, eyes, labels, pass_, **named):
        given["labels"] = labels
        noise = torch.as_tensor(np.random.default_rng(int(pass_.epoch)).random(len(labels)))
        return torch.where(labels == 7, 6 + noise, 0.1 + noise).float()

    monkeypatch.setattr("fastdrpl.training.losses_to", losses)
    folder = tmp_path / "run"
    train(digits, folder)
    said = " ".join(capsys.readouterr().err.split())
    assert "no sample counts as clean in class 7: the lowest-loss 1 % keep their label" in said
    for stage in ("relabel", "semi1"):
        detection = json.loads((folder / "stages" / stage / "detection.json").read_text())
        assert detection["rescued_classes"] == ["7"]
        assert detection["labelled_per_class"][7] == 1
        losses_kept = np.load(folder / "stages" / stage / "losses.npy")
        labelled = toy.last_tensors(folder, 0 if stage == "relabel" else 1)["store.labelled"].numpy()
        members = np.flatnonzero(given["labels"].numpy() == 7)
        assert (
            np.flatnonzero(labelled & (given["labels"].numpy() == 7))
            == members[losses_kept[members].argmin()]
        )


def test_the_pictures_of_a_stage(unbroken):
    for stage in ("relabel", "semi1"):
        with Image.open(unbroken / "stages" / stage / "histogram.png") as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert len(list_checkpoints(unbroken / "checkpoints")) >= 3
