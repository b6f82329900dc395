"""Networks that torch compiles: the numbers, how often it compiles, and what happens where it cannot."""

import functools
import json
import os
import signal

import pytest
import torch
import toy
from tiny_training import RELABEL, SEMI, Training

from fastdrpl import compiling
from fastdrpl.cli import main
from fastdrpl.errors import UserError
from fastdrpl.learners import Learners
from fastdrpl.modes import Ladder


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """torch.compile as it would be in a new process, with another back end if one is given."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def use(backend):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))

    monkeypatch.setattr(compiling, "_compiled", functools.cache(compiling._compiled.__wrapped__))
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path / "compiled"))
    yield use
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_new_networks_use_what_was_compiled_for_those_before(compiler):
    """With and without gradient and with frozen statistics; tail batches and evaluation are not compiled."""
    compiler("aot_eager")
    compiled, eager = Training(Ladder("compiled"), SEMI), Training(Ladder(), SEMI)
    for number in (1, 2):
        assert compiled.epoch(number) == pytest.approx(eager.epoch(number), rel=1e-5)
    assert graphs() == 2, "the pass without gradient and the one with it"
    frozen = compiled.learners.trainees[0].frozen
    with torch.no_grad(), compiled.learners.compiled(True):
        statistics = compiled.learners.networks[0][1].running_mean.clone()
        frozen(torch.ones(8, 3, 8, 8))
        assert torch.equal(statistics, compiled.learners.networks[0][1].running_mean)
    assert graphs() == 3
    for training in (compiled, eager):
        training.new_learners()
    for number in (3, 4):
        assert compiled.epoch(number) == pytest.approx(eager.epoch(number), rel=1e-5)
    with torch.no_grad(), compiled.learners.compiled(True):
        compiled.learners.trainees[0].frozen(torch.ones(8, 3, 8, 8))
        compiled.learners.trainees[0].evaluated(torch.ones(8, 3, 8, 8))
    assert graphs() == 3, "the next stage's networks of the same architecture"
    assert compiled.learners.tensors().keys() == eager.learners.tensors().keys()


def test_joined_forward_passes_are_compiled_as_one(compiler):
    compiler("aot_eager")
    told = []
    compiled = Training(Ladder("compiled", say=told.append), SEMI, joins=True)
    eager = Training(Ladder(), SEMI, joins=True)
    for number in (1, 2):
        assert compiled.epoch(number) == pytest.approx(eager.epoch(number), rel=1e-5)
    assert graphs() == 1 and told == []


def test_the_real_compiler_gives_the_loss_curve_of_eager_steps(compiler):
    compiled, eager = Training(Ladder("compiled"), RELABEL), Training(Ladder(), RELABEL)
    for number in range(1, 5):
        assert compiled.epoch(number) == pytest.approx(eager.epoch(number), rel=1e-3)
    assert graphs() == 1
    assert torch._dynamo.utils.counters["inductor"], "inductor compiled it"
    one, other = compiled.numbers(), eager.numbers()
    assert toy.differing(one, other), "compiled code rounds otherwise"
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-3, rtol=1e-3)


def break_compiler(graph, inputs):
    raise OSError("No working C++ compiler found in c++")


def test_a_compiler_that_fails_is_told_of_and_steps_are_eager(compiler):
    compiler(break_compiler)
    told = []
    compiled, eager = Training(Ladder("compiled", say=told.append), RELABEL), Training(Ladder(), RELABEL)
    for number in (1, 2):
        assert compiled.epoch(number) == eager.epoch(number)
    assert compiled.machine.ladder.mode == "eager"
    assert len(told) == 1
    assert "no compiled steps: torch.compile failed: OSError: No working C++ compiler" in told[0]
    assert toy.differing(compiled.numbers(), eager.numbers()) == []


def test_more_variants_than_torch_compiles_are_told_of(compiler):
    compiler("eager")
    compiling._compiled()
    assert torch._dynamo.config.recompile_limit >= compiling.MOST_VARIANTS
    told = []
    compiled = Training(Ladder("compiled", say=told.append), SEMI)
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled.epoch(1)
    assert compiled.machine.ladder.mode == "eager"
    assert len(told) == 1 and "torch.compile failed: FailOnRecompileLimitHit" in told[0]


def test_compiled_steps_by_name_that_cannot_be_had_are_refused_before_anything_is_written(
    compiler, tmp_path, capsys
):
    compiler(break_compiler)
    words = ["train", "digits", "--limit", "60", "--model.width", "4", "--engine.threads", "1"]
    folder = tmp_path / "run"
    assert main([*words, "--engine.mode", "compiled", "--run", str(folder)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--engine.mode compiled cannot be had: torch.compile failed: OSError: No working C++" in said
    assert "Traceback" not in said
    assert not folder.exists()


def test_a_rehearsal_leaves_a_network_as_it_was(compiler):
    compiler("aot_eager")
    training = Training(Ladder("compiled"), RELABEL)
    before = {name: value.clone() for name, value in training.learners.tensors().items()}
    training.learners.rehearse(torch.ones(8, 3, 8, 8))
    assert graphs() == 1
    assert toy.differing(before, training.learners.tensors()) == []
    assert all(p.grad is None for p in training.learners.networks[0].parameters())


CE = [
    *(
        "train",
        "digits",
        "--limit",
        "60",
        "--limit_test",
        "20",
        "--batch_size",
        "16",
        "--checkpoint.every",
        "1e9",
    ),
    *("--model.width", "4", "--engine.threads", "1", "--method", "ce", "--ce.schedule.epochs", "2"),
    *("--ce.schedule.milestones", "2"),
]  # three steps of 16 and a tail of 12


def test_a_compiled_run_says_so_and_goes_on_compiled_in_the_same_bits(
    compiler, tmp_path, capsys, monkeypatch
):
    compiler("aot_eager")
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*CE, "--engine.mode", "compiled", "--run", str(whole)]) == 0, capsys.readouterr().err
    assert "compiled steps" in capsys.readouterr().err
    taken, sound = [0], Learners.step

    def step_then_ask_to_stop(self, *given):
        taken[0] += 1
        if taken[0] == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return sound(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Learners, "step", step_then_ask_to_stop)
        assert main([*CE, "--engine.mode", "compiled", "--run", str(broken)]) == 75
    torch._dynamo.reset()  # as in a new process
    assert main([*CE, "--run", str(broken)]) == 0, capsys.readouterr().err
    assert toy.differing(toy.last_tensors(broken), toy.last_tensors(whole)) == []
    assert toy.outcome(broken) == toy.outcome(whole)
    for run in (whole, broken):
        machine = json.loads((run / "manifest.json").read_text())["machine"]
        assert (machine["mode"], machine["mode_reasons"]) == ("compiled", [])
    assert graphs() == 2, "of the one before the reset, and of the one after"


def test_the_manifest_says_how_a_run_went_on(compiler, tmp_path, capsys, monkeypatch):
    """What fails in the middle of a run, here in its first step."""
    compiler(break_compiler)
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    monkeypatch.setattr(Learners, "rehearse", lambda *given: None)
    monkeypatch.setattr(
        "fastdrpl.machine.build_ladder", lambda *given, say, **named: Ladder("compiled", say=say)
    )
    assert main([*CE, "--run", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("no compiled steps: torch.compile failed: OSError: No working C++ compiler") == 1
    machine = json.loads((tmp_path / "run" / "manifest.json").read_text())["machine"]
    assert machine["mode"] == "eager"
    assert machine["mode_reasons"][0] in said


# --- where compiled code is kept ---


def test_compiled_code_is_kept_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(compiling.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiling.cache_folder() == tmp_path / "cache" / "fastdrpl" / "inductor"
    compiling.keep_cache()
    assert os.environ[compiling.CACHE_VARIABLE] == str(tmp_path / "cache" / "fastdrpl" / "inductor")
    assert (tmp_path / "cache" / "fastdrpl" / "inductor").is_dir()
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(tmp_path / "own"))
    assert compiling.cache_folder() == tmp_path / "own"
    monkeypatch.delenv(compiling.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiling.cache_folder() == tmp_path / "home" / ".cache" / "fastdrpl" / "inductor"


def test_a_cache_folder_that_cannot_be_made_is_told_of(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(compiling.CACHE_VARIABLE, raising=False)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiling.keep_cache()
    assert compiling.CACHE_VARIABLE not in os.environ
    assert "compiled code is kept in the folder for temporary files only" in " ".join(
        capsys.readouterr().err.split()
    )


def test_by_name_the_first_step_that_cannot_be_compiled_ends_the_run(compiler):
    compiler(break_compiler)
    training = Training(Ladder("compiled", named=True), RELABEL)
    before = training.numbers()
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(UserError, match=r"leave it out or give --engine.mode eager"):
        training.epoch(1)
    assert toy.differing(before, training.numbers()) == []


def command_with_cache(words, folder, cache) -> None:
    """In a process: carry out a command that compiles, and write down what it found ready made."""
    os.environ[compiling.CACHE_VARIABLE] = str(cache)
    try:
        toy.command(words, folder)
    finally:
        found = dict(torch._dynamo.utils.counters["inductor"])
        folder.with_suffix(".json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_compiled_run_that_was_killed_ends_in_the_bits_of_an_unbroken_one(tmp_path):
    """Real processes and torch's own back end; what the first process compiled, the others find on disk."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*CE, "--engine.mode", "compiled", "--checkpoint.every", "0"]
    words += ["--ce.schedule.epochs", "12", "--detect.collapse", "relax"]

    def start(folder):
        process = toy.FORKS.Process(target=command_with_cache, args=(words, folder, tmp_path / "compiled"))
        process.start()
        return process

    def compiled_anew(folder) -> int:
        return json.loads(folder.with_suffix(".json").read_text()).get("fxgraph_cache_miss", 0)

    process = start(whole)
    process.join(900)
    assert process.exitcode == 0, toy.log_of(whole)
    assert compiled_anew(whole) > 0
    process = start(broken)
    toy.wait_until(lambda: len(list((broken / "checkpoints").glob("*"))) > 2, 300)
    process.kill()
    process.join()
    assert not (broken / "result.json").exists()
    process = start(broken)
    process.join(900)
    assert process.exitcode == 0, toy.log_of(broken)
    assert compiled_anew(broken) == 0
    assert "continuing from" in toy.log_of(broken)
    assert "no compiled steps" not in toy.log_of(whole) + toy.log_of(broken)
    assert toy.differing(toy.last_tensors(broken), toy.last_tensors(whole)) == []
    assert toy.outcome(broken) == toy.outcome(whole)
