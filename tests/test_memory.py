"""What a run says it will take, that it is refused where it does not fit, what it says when memory runs out."""

import dataclasses
import json
import pkgutil
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from bench.growth import Case, measure
from fastdrpl import loop
from fastdrpl.cli import main, parse_training
from fastdrpl.learners import Trainee
from fastdrpl.machine import cpu_computes_bf16
from fastdrpl.memory import exhausted, room
from fastdrpl.memory.columns import stage_sizes
from fastdrpl.memory.estimate import RunSize, estimate
from fastdrpl.memory.network import NetworkSize, network_size
from fastdrpl.memory.room import Room, plan_memory, refuse, remedy
from fastdrpl.methods import METHODS
from fastdrpl.models import build_model
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.settings import flatten

GB = 10**9
N, C = 1_281_167, 1_000  # ImageNet


class OneRank:
    """A machine of one rank: what `plan_memory` asks of one."""

    main = True

    def highest(self, number: int) -> int:
        return number


def imagenet(**changes) -> RunSize:
    """DRPL on ImageNet: 224 pixels, ResNet-18, on a GPU."""
    config = recipe_named("folder").config_for("drpl")
    size = RunSize(
        samples=N,
        classes=C,
        side=224,
        network=NetworkSize(parameters=11_699_132, saved=70_000_000, largest=3_211_264),
        stages=stage_sizes(plan_of(config), C, config.batch_size),
        eval_batch=500,
        half=True,
        cuda=True,
        ranks=1,
        ring="device",
    )
    return dataclasses.replace(size, **changes)


def test_imagenet_takes_what_its_columns_take():
    """Counted by hand: ten fp32 predictions, a target and a prediction of each sample."""
    on_device = estimate(imagenet())
    assert on_device.device["ring"] == N * 10 * C * 4 == 51_246_680_000
    columns = N * (2 * C * 4 + 8 + 1 + 8 + 4 + 4)  # given, labelled, posterior, losses of two passes
    assert on_device.device["label store"] == pytest.approx(columns, rel=1e-3)
    assert on_device.device["weights"] == 3 * 4 * 11_699_132
    elsewhere = estimate(imagenet(ring="host"))
    assert elsewhere.host["ring"] == N * 10 * C * 4 and "ring" not in elsewhere.device
    assert estimate(imagenet(ring="file")).file == N * 10 * C * 4
    assert estimate(imagenet(ring="device")).file == 0
    # The last stage ends with the predictions of all samples, and no ring.
    last = max(2 * N * C * 4, estimate(imagenet(ring="file")).device_bytes)
    assert elsewhere.device_bytes == pytest.approx(last, rel=0.01)


@pytest.mark.parametrize(
    ("there", "place"),
    [
        (Room(200 * GB, 141 * GB, 500 * GB), "device"),
        (Room(200 * GB, 40 * GB, 500 * GB), "host"),
        (Room(40 * GB, 40 * GB, 500 * GB), "file"),
        (Room(40 * GB, 40 * GB, 20 * GB), None),
    ],
)
def test_rings_go_to_the_first_place_with_room(there, place):
    size, machine = imagenet(), OneRank()
    plan = plan_memory(size, "auto", None, machine, there)
    settings = flatten(recipe_named("folder").config_for("drpl"))
    if place is not None:
        assert plan.ring == place
        refuse(plan, there, machine, "refuse", settings)  # does not
        assert plan_memory(size, "auto", "file", machine, there).ring == "file"  # as it was before
        return
    with pytest.raises(Exception, match=r"the disk 47\.7 GiB of 18\.6 GiB free") as error:
        refuse(plan, there, machine, "refuse", settings)
    assert error.value.exit_code == 2


def test_a_run_without_a_ring_has_it_nowhere_else():
    config = recipe_named("cifar10").config_for("ce")
    size = imagenet(stages=stage_sizes(plan_of(config), C, 128))
    plan = plan_memory(size, "auto", None, OneRank(), Room(1, 1, 1))
    assert plan.ring == "device" and plan.estimate.device["ring"] == 0


def test_what_is_said_to_fit_fits():
    """The flags, given to a run, make a size that there is room for."""
    config, there = recipe_named("folder").config_for("drpl"), Room(40 * GB, 22 * GB, 30 * GB)
    asked = plan_memory(imagenet(), "device", None, OneRank(), there)
    said = remedy(asked.size, flatten(config), there)
    assert said is not None and "--engine.ring file" in said and "--drpl.ring fp16" in said
    words = dict(re.findall(r"--(\S+) (\S+)", said))
    changed = parse_training(
        ["folder", *(word for pair in words.items() for word in (f"--{pair[0]}", pair[1]))]
    )
    size = imagenet(
        ring=changed.engine.ring if changed.engine.ring != "auto" else "device",
        eval_batch=changed.engine.eval_batch,
        stages=stage_sizes(plan_of(changed), C, changed.batch_size),
    )
    assert there.lacking(asked.size, asked.estimate) and not there.lacking(size, estimate(size))


def test_where_nothing_helps_none_is_said():
    settings = flatten(recipe_named("folder").config_for("drpl"))
    assert remedy(imagenet(), settings, Room(GB, GB, GB)) is None


@pytest.mark.parametrize("width", [2, 8])
def test_what_a_network_leaves_is_what_is_left(width):
    """Beside a forward pass of seven images, whose saved tensors are counted by their addresses."""
    size, network, kept = network_size("preact_resnet18", 10, width, 16), None, {}
    network = build_model("preact_resnet18", 10, width, 1)

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        holding.append(tensor)
        return tensor

    holding = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.zeros(7, 3, 16, 16))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    left = sum(size for place, size in kept.items() if place not in own)
    # Statistics of a batch are of no image: a few kilobytes that the two images of the estimate count anew.
    assert size.saved * 7 == pytest.approx(left, rel=0.05)
    assert size.parameters == sum(tensor.numel() for tensor in network.state_dict().values())


QUICK = ("drpl", "dividemix", "nlnl")


@pytest.mark.parametrize(
    "method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_stages_keep_what_they_are_said_to_keep(method, tmp_path, monkeypatch):
    """A real run: bytes in the store after each epoch, random numbers, and images that go through with gradient."""
    batch, samples = 32, 160
    words = ["digits", "--method", method, "--limit", str(samples), "--limit_test", "20", "--test_every", "0"]
    words += ["--batch_size", str(batch), "--model.width", "2", "--epochs_scale", "0.05"]
    words += ["--detect.collapse", "relax", "--engine.eval_batch", "80", "--run", str(tmp_path / "run")]
    config = parse_training(words)
    said = {size.name: size for size in stage_sizes(plan_of(config), 10, batch)}
    seen: dict[str, dict[str, float]] = {}
    images = []

    def steps(self, stage, rounds, epoch, after_step):
        state, found = self.state, seen.setdefault(stage.name, {"drawn": 0.0, "images": 0.0, "rings": 0.0})

        def after(done, number):
            found["images"] = max(found["images"], sum(images) / (stage.batch_size or batch) / stage.networks)
            images.clear()
            after_step(done, number)

        real(self, stage, rounds, epoch, after)
        if dataclasses.is_dataclass(draws := self._inputs.draws):
            tensors = (getattr(draws, item.name) for item in dataclasses.fields(draws))
            found["drawn"] = sum(
                v.nbytes for v in tensors if isinstance(v, torch.Tensor) and samples in v.shape
            )
        found["rings"] = sum(state.store[name].nbytes for name in state.store.rings)

    def call(self, inputs):
        images.extend([len(inputs)] if torch.is_grad_enabled() else [])
        return forward(self, inputs)

    def judged(state, stage, *arguments, **named):
        columns = state.store.state()
        rings = sum(state.store[name].nbytes for name in state.store.rings)
        seen[stage.name]["columns"] = sum(v.nbytes for v in columns.values()) - rings
        return judge(state, stage, *arguments, **named)

    real, forward, judge = loop.Loop._steps, Trainee.__call__, loop.judge
    monkeypatch.setattr(loop.Loop, "_steps", steps)
    monkeypatch.setattr(Trainee, "__call__", call)
    monkeypatch.setattr(loop, "judge", judged)
    assert main(["train", *words]) == 0
    assert seen.keys() == said.keys()
    for name, found in seen.items():
        size = said[name]
        assert found["rings"] == size.rings * samples
        assert found["drawn"] == size.drawn * samples
        # The last batch takes in a tail; a stage may be too short, or the images too few, for the most there can be.
        least = 0.74 if method in QUICK else 0
        assert least * size.images <= found["images"] <= 1.26 * size.images
        if (
            "columns" in found
        ):  # what `refresh` adds, and what a decision before the first adds, are some bytes
            assert size.columns * samples - 9 * samples <= found["columns"] <= (size.columns + 32) * samples


def test_a_run_that_does_not_fit_is_refused_before_it_writes(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setattr(room, "free_memory", lambda: 220 << 20)
    words = [*toy.COMMON, "--engine.eval_batch", "30000", "--model.width", "16", "--run", str(run)]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the run does not fit: it takes about main memory" in said and "of 220 MiB free" in said
    assert "activations" in said and "--engine.memory warn" in said
    fix = re.search(r"fix: --engine.eval_batch (\d+)", said)
    assert fix, said
    assert list(tmp_path.iterdir()) == []
    # With the remedy it begins; what it takes is in its manifest.
    monkeypatch.setattr(loop.Loop, "run", lambda self: (_ for _ in ()).throw(KeyError("began")))
    with pytest.raises(KeyError, match="began"):
        main([*words, "--engine.eval_batch", fix[1]])
    stored = json.loads((run / "manifest.json").read_text())["memory"]
    assert stored["ring"] == "device" and stored["device"] == {} and stored["host"]["activations"] > 0
    assert "memory, about: host" in capsys.readouterr().err
    with pytest.raises(KeyError, match="began"):
        main([*words[:-1], str(tmp_path / "other"), "--engine.memory", "warn"])
    assert "warning: the run may not fit" in capsys.readouterr().err


def starve(words, run, where, name) -> None:
    """As `toy.command`, with 400 MB more of addresses than there are when `name` of a module or class is called."""
    owner = pkgutil.resolve_name(where)
    real = getattr(owner, name)

    def hungry(*arguments):
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + 400 * 10**6, resource.RLIM_INFINITY))
        return real(*arguments)

    setattr(owner, name, hungry)
    toy.command(words, run)


def test_memory_that_runs_out_before_training_is_an_error_that_leaves_nothing(tmp_path):
    """A real one: the system gives no more for the networks; at the folder nothing was written."""
    run = tmp_path / "run"
    words = [*toy.WORDS, "--model.width", "256", "--engine.memory", "warn"]
    process = toy.FORKS.Process(target=starve, args=(words, run, "fastdrpl.beginning", "RunState"))
    process.start()
    process.join(120)
    said = " ".join(toy.log_of(run).split())
    assert process.exitcode == 2, said
    assert "Traceback" not in said
    assert "memory is used up before training begins" in said and "smaller --model.width" in said
    assert not run.exists()


def test_memory_that_runs_out_is_an_error_with_a_way_out(tmp_path):
    """A real one: the system gives no more for the activations of a large batch."""
    run = tmp_path / "run"
    words = [*toy.WORDS, "--limit", "1400", "--batch_size", "1400", "--model.width", "64"]
    process = toy.FORKS.Process(target=starve, args=(words, run, "fastdrpl.loop:Loop", "run"))
    process.start()
    process.join(120)
    said = " ".join(toy.log_of(run).split())
    assert process.exitcode == 2, said
    assert "Traceback" not in said
    assert "main memory is used up while training: relabel, epoch 1" in said
    assert "there is no checkpoint yet" in said
    assert "--batch_size 700" in said and "--engine.ring file" in said
    failed = json.loads((run / "progress.json").read_text())
    assert failed["exit_code"] == 2 and "used up" in failed["failed"]


def test_what_memory_errors_look_like():
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert exhausted.is_out_of_memory(error.value)
    with pytest.raises(MemoryError) as error:
        np.empty(1 << 60, dtype=np.uint8)
    assert exhausted.is_out_of_memory(error.value)
    assert exhausted.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not exhausted.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not exhausted.is_out_of_memory(KeyError("out of memory"))


def test_out_of_memory_after_a_checkpoint_names_it(tmp_path, monkeypatch, capsys):
    """And says with what the same run goes on."""
    run, real, calls = tmp_path / "run", loop.train_epoch, []

    def train_epoch(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words")
        return real(*arguments, **named)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    words = [*toy.WORDS, "--checkpoint.every", "0", "--run", str(run)]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    assert f"the last checkpoint, {newest}, is kept" in said
    assert "used up while training: relabel, epoch 3" in said and "More words" not in said
    assert "the same command goes on with --engine.ring file" in said
    assert "begin another --run with --batch_size 16 (" in said
    assert ("--engine.precision bf16" in said) is bool(cpu_computes_bf16())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [Case(2_000, 10), Case(20_000, 100, ring="file"), Case(600, 10, width=16, batch=300)]
)
def test_what_is_estimated_is_what_is_taken(tmp_path, case):
    """The kernel's own figure of a whole run."""
    found = measure(case, tmp_path)
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.15), found
