"""Whole runs in this process: bad numbers, every option to the end and resumed, detection gone wrong."""

import contextlib
import functools
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

from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.cli import main, parse_training
from fastdrpl.detection import guard
from fastdrpl.errors import CollapseError, PreemptedError
from fastdrpl.kernels.streams import stream_of
from fastdrpl.labels import load_labels
from fastdrpl.learners import Learners
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.pixels import Transform
from fastdrpl.run import run

WORDS = [
    *("digits", "--limit", "100", "--limit_test", "37", "--batch_size", "32", "--model.width", "4"),
    *("--engine.threads", "1", "--engine.eval_batch", "30", "--checkpoint.every", "1e9"),
    *("--engine.precision", "fp32"),
    *("--drpl.relabel.epochs", "3", "--drpl.relabel.milestones", "3", "--drpl.given_epochs", "1"),
    *("--drpl.semi1.epochs", "2", "--drpl.semi1.milestones", "2", "--drpl.semi2.epochs", "3"),
    *("--drpl.semi2.milestones", "3", "--drpl.average", "2", "--drpl.gamma1", "0.5", "--noise.ratio", "0.2"),
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(PrepareConfig(kind="digits", out=folder), quiet=True)
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs without their histograms, which take longer than the training."""
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)


def words_of(digits, folder, *extra):
    words = [*WORDS, "--data", str(digits), "--run", str(folder), *extra]
    if "--method" not in extra:
        return words
    first = words.index("--drpl.relabel.epochs")
    return words[:first] + words[words.index("--noise.ratio") :]  # without the settings of drpl


def train(digits, folder, *extra):
    return run(parse_training(words_of(digits, folder, *extra)))


@pytest.fixture(scope="module")
def unbroken(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "unbroken"
    train(digits, folder)
    return folder


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


# --- whole runs, in this process ---


@pytest.mark.parametrize("every", ["0", "1e9"])
@pytest.mark.parametrize(("stage", "epoch", "step"), [(1, 2, 1), (3, 2, 2)])
def test_a_run_with_a_bad_number_ends_with_4_and_goes_on_from_its_last_checkpoint(
    digits, unbroken, tmp_path, monkeypatch, capsys, no_pictures, every, stage, epoch, step
):
    """R14."""
    folder, seen = tmp_path / "run", {}
    sound = {"train": Transform.train, "pair": Transform.pair}
    place = Pass(1, stage, epoch, Purpose.train)

    def spoil(name, transform, batch, stream, *mixture):
        inputs = sound[name](transform, batch, stream, *mixture)
        if stream_of(stream) == place.stream:
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
    """R20: the first detection of a process starts numba's threads, which share OpenMP with torch."""
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
    words = ["train", *(word if word != "fp32" else "bf16" for word in WORDS), "--data", str(digits)]
    process = toy.FORKS.Process(target=toy.command, args=(words, folder))
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
    """R24."""
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
    "posterior": "--detect.posterior lookup",
    "track_passes": "--detect.passes 1",
    "track_augment": "--detect.augment none",
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
    assert toy.outcome(whole) != toy.outcome(unbroken), "the option changes something"

    steps = {"warmup": 26, "method": 12}.get(name, 24)
    moments = {steps // 4, steps // 2 + 1, steps - 1}  # counted over the parts of the run
    taken, sound = [0], Learners.step

    def step_then_ask_to_stop(self, *given):
        done = sound(self, *given)
        taken[0] += 1
        if taken[0] in moments:
            os.kill(os.getpid(), signal.SIGUSR1)
        return done

    monkeypatch.setattr(Learners, "step", step_then_ask_to_stop)
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
        return guard(*given, **named)

    monkeypatch.setattr("fastdrpl.judging.guard", collapse_at_first)
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
    """R15: all labels of one class get a large loss, all others a small one: none of them counts as clean."""
    given = {}

    def losses(learners, eyes, look, labels, pass_):
        given["labels"] = labels
        noise = torch.as_tensor(np.random.default_rng(int(pass_.epoch)).random(len(labels)))
        return torch.where(labels == 7, 6 + noise, 0.1 + noise).float()

    monkeypatch.setattr("fastdrpl.loop.take", losses)
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
