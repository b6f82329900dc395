"""R17: a disk that refuses: one clear error, the earlier checkpoint is there, the lock is free, and the run goes on."""

import ctypes
import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from disk_faults import FAULTS, WRITES, Fault, refusing

from fastdrpl.checkpoint import list_checkpoints, verify_checkpoint
from fastdrpl.cli import main, parse_training
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.lock import RunLock, lock_holder

CE = [
    *("train", "digits", "--limit", "32", "--limit_test", "20", "--batch_size", "16", "--model.width", "2"),
    *("--engine.threads", "1", "--engine.eval_batch", "80", "--noise.ratio", "0.2", "--method", "ce"),
    *("--ce.schedule.epochs", "2", "--ce.schedule.milestones", "2", "--checkpoint.every", "0"),
]
NEWNS, NEWUSER, PRIVATE, REMOUNT = 0x20000, 0x10000000, (1 << 18) | (1 << 14), 32


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "digits"
    prepare(PrepareConfig(kind="digits", out=data), quiet=True)
    return [*CE, "--data", str(data)]


@pytest.fixture(scope="module")
def unbroken(words, tmp_path_factory):
    """A run that nobody disturbs, and which calls it makes of the file system."""
    run = tmp_path_factory.mktemp("run") / "unbroken"
    with refusing(Fault("none", WRITES, 0), run, None) as met:
        assert main([*words, "--run", str(run)]) == 0
    (run.parent / "calls.json").write_text(json.dumps(met.calls))
    return run


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch):
    """Without histograms, and with the flags read once: both take longer than the training."""
    parse = functools.cache(lambda *words: parse_training(list(words)))

    def parsed(words):
        at = words.index("--run")
        config = parse(*words[:at], *words[at + 2 :])
        return dataclasses.replace(config, run=Path(words[at + 1]))

    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    monkeypatch.setattr("fastdrpl.cli.parse_training", parsed)


def assert_same(run: Path, unbroken: Path) -> None:
    assert toy.differing(toy.last_tensors(run), toy.last_tensors(unbroken)) == []
    assert toy.outcome(run) == toy.outcome(unbroken)


def files_of(run: Path) -> set[str]:
    """Without the picture, which these runs do not draw."""
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return files - {".lock", "stages/ce/histogram.png"}


def check_fault(fault: Fault, moment: int, words, run: Path, unbroken: Path, capsys) -> bool:
    """Whether the fault was met: a run whose disk refuses at that moment, and what comes after."""
    capsys.readouterr()
    with refusing(fault, run, moment) as met:
        code = main([*words, "--run", str(run)])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if not met.refused:
        assert code == 0
        return False
    if code != 0:  # a refusal while something is tidied up may not matter
        assert code == 2 and os.strerror(fault.number) in said and "where:" in said and "fix:" in said, said
        assert str(run) in said.replace("\n", "")
    assert lock_holder(run) is None
    kept = list_checkpoints(run / "checkpoints")
    for path in kept:
        verify_checkpoint(path)
    assert main([*words, "--run", str(run)]) == 0
    if kept and code != 0:
        assert "continuing from" in capsys.readouterr().err
    assert_same(run, unbroken)
    assert not files_of(unbroken) - files_of(run)
    more = files_of(run) - files_of(unbroken)  # a checkpoint that could not be pruned just then, and is whole
    assert all(name.startswith("checkpoints/") and "/.tmp-" not in name for name in more), more
    return True


@pytest.mark.parametrize(
    ("number", "fault"), list(enumerate(FAULTS)), ids=lambda value: getattr(value, "name", "")
)
def test_a_refusal_in_the_middle_of_a_run(words, unbroken, tmp_path, capsys, number, fault):
    """R17: twelve faults of a file system, each at some moment of a run."""
    calls = json.loads((unbroken.parent / "calls.json").read_text())
    most = sum(calls[name] for name in fault.calls)
    moment = max(1, most * (number % 4 + 3) // 8)  # in the middle, at a place of its own
    assert check_fault(fault, moment, words, tmp_path / "run", unbroken, capsys), "it was never met"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_refusal_at_every_moment_of_a_run(words, unbroken, tmp_path, capsys, fault):
    """R17: each fault at every fifth call of the run until it is through."""
    met = 0
    for moment in range(1, 1000, 5):
        if not check_fault(fault, moment, words, tmp_path / str(moment), unbroken, capsys):
            break
        met += 1
    with capsys.disabled():
        print(f"{fault.name}: met at {met} moments")
    assert met


def test_a_clock_that_jumps_changes_nothing(words, unbroken, tmp_path, monkeypatch, capsys):
    """R17: the hour goes back and forth by years; which checkpoint is the newest is told by number."""
    run, hours = tmp_path / "run", iter(np.random.default_rng(0).integers(-(10**9), 10**9, 10**6).tolist())
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(hours))
    fault = FAULTS[0]
    with refusing(fault, run, 15):
        assert main([*words, "--run", str(run)]) == 2
    for path in list_checkpoints(run / "checkpoints"):
        os.utime(path, (next(hours) + 1e9,) * 2)
    assert main([*words, "--run", str(run)]) == 0
    assert "continuing from" in capsys.readouterr().err
    assert_same(run, unbroken)


def test_a_second_run_in_the_folder_is_refused_and_leaves_it_alone(words, unbroken, tmp_path, capsys):
    """R17: two runs in one folder."""
    run = tmp_path / "run"
    run.mkdir()
    with RunLock(run):
        assert main([*words, "--run", str(run)]) == 2
        assert "in use by process" in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [".lock"]
    assert main([*words, "--run", str(run)]) == 0
    assert_same(run, unbroken)


# --- real full disks ---


def on_a_small_disk(words, place: Path, kib: int, out: Path) -> None:
    """In a process: a disk of `kib` KiB at `place` that only it sees; train until it is full, then with more room."""
    sys.stdout = sys.stderr = log = open(out.with_suffix(".log"), "w", buffering=1)  # noqa: SIM115
    system = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *given) -> None:
        if getattr(system, name)(*given):
            out.write_text(json.dumps({"refused": os.strerror(ctypes.get_errno())}))
            os._exit(0)

    call("unshare", NEWNS if os.geteuid() == 0 else NEWNS | NEWUSER)
    call("mount", b"none", b"/", None, PRIVATE, None)
    call("mount", b"small", bytes(place), b"tmpfs", 0, f"size={kib}k".encode())
    run = place / "run"
    facts = {"first": main([*words, "--run", str(run)])}
    facts["said"] = Path(log.name).read_text()
    facts["kept"] = len([verify_checkpoint(path) for path in list_checkpoints(run / "checkpoints")])
    facts["holder"] = lock_holder(run)
    facts["temporary"] = [path.name for path in run.rglob(".tmp-*")]
    call("mount", b"small", bytes(place), b"tmpfs", REMOUNT, b"size=64m")
    facts["second"] = main([*words, "--run", str(run)])
    facts["continued"] = "continuing from" in Path(log.name).read_text()
    out.write_text(json.dumps(facts | {"outcome": toy.outcome(run)}, default=str))


def test_a_disk_that_fills_up_in_a_whole_run(words, unbroken, tmp_path):
    """R17: a full disk (a tmpfs of its own); with room again the same command ends in the same result."""
    size = sum(path.stat().st_size for path in list_checkpoints(unbroken / "checkpoints")[-1].iterdir())
    (tmp_path / "disk").mkdir()
    out = tmp_path / "facts.json"
    process = toy.FORKS.Process(
        target=on_a_small_disk, args=(words, tmp_path / "disk", 3 * size // 1024, out)
    )
    process.start()
    process.join(120)
    facts = json.loads(out.read_text())
    if "refused" in facts:
        pytest.skip(f"no mount namespaces for this user: {facts['refused']}")
    assert facts["first"] == 2, facts["said"]
    assert "No space left on device" in facts["said"] and "free some space" in facts["said"]
    assert "Traceback" not in facts["said"]
    assert facts["kept"] >= 1 and facts["holder"] is None and facts["temporary"] == []
    assert facts["second"] == 0 and facts["continued"]
    assert facts["outcome"] == json.loads(json.dumps(toy.outcome(unbroken), default=str))


def with_streams(words, out: str, err: str) -> None:
    sys.stdout, sys.stderr = open(out, "w"), open(err, "a", buffering=1)  # noqa: SIM115
    sys.exit(main(words))


@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_full_disk_behind_the_output_loses_no_training(words, unbroken, tmp_path, full):
    """R17: what is printed goes to a full disk: the run is trained to its end, and the exit code tells the truth."""
    run, log = tmp_path / "run", tmp_path / "log"
    streams = ("/dev/full", str(log)) if full == "stdout" else (str(log), "/dev/full")
    process = toy.FORKS.Process(target=with_streams, args=([*words, "--run", str(run)], *streams))
    process.start()
    process.join(120)
    assert process.exitcode == (2 if full == "stdout" else 0), log.read_text()
    assert_same(run, unbroken)
    said = log.read_text()
    assert "Traceback" not in said
    if full == "stdout":
        assert "the work is done, but its output could not be written: No space left on device" in said
    else:
        assert "labels look wrong" in said
