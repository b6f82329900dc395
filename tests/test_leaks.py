"""R19: hundreds of epochs take no more memory, files or threads than the first ones."""

import os

import pytest

import fastdrpl.loop
from fastdrpl.cli import main
from fastdrpl.loaders.prepare import PrepareConfig, prepare

WORDS = [
    *("train", "digits", "--limit", "32", "--limit_test", "16", "--batch_size", "32", "--model.width", "2"),
    *(
        "--engine.threads",
        "1",
        "--engine.eval_batch",
        "32",
        "--method",
        "ce",
        "--ce.schedule.milestones",
        "2",
    ),
    *("--checkpoint.every", "0", "--track", "every"),
]


def measure() -> tuple[int, int, int]:
    """Resident bytes, open files and threads of this process."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def growth(monkeypatch, folder, epochs: int, warm: int, *words: str) -> float:
    """Relative growth of the resident memory after `warm` epochs; files and threads must not grow at all."""
    seen: list[tuple[int, int, int]] = []
    sound = fastdrpl.loop.plan_rounds

    def plan_and_measure(*given):
        seen.append(measure())
        return sound(*given)

    prepare(PrepareConfig(kind="digits", out=folder / "digits"), quiet=True)
    monkeypatch.setattr("fastdrpl.loop.plan_rounds", plan_and_measure)
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    extra = [
        "--data",
        str(folder / "digits"),
        "--run",
        str(folder / "run"),
        "--ce.schedule.epochs",
        str(epochs),
    ]
    assert main([*WORDS, *extra, *words]) == 0
    assert len(seen) == epochs
    resident, files, threads = zip(*seen[warm:], strict=True)
    assert max(files) == files[0], f"open files: {files}"
    assert max(threads) == threads[0], f"threads: {threads}"
    return max(resident[-5:]) / resident[0] - 1


def test_sixty_epochs_take_no_more_than_the_first(tmp_path, monkeypatch):
    """R19: with a step, a look at all samples, a test and a checkpoint in each."""
    assert growth(monkeypatch, tmp_path, 60, 20) < 0.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("loader", ["resident", "worker"])
def test_three_hundred_epochs_take_no_more_than_the_first(tmp_path, monkeypatch, capsys, loader):
    """R19: 300 epochs; the worker loader starts a process in each of its passes."""
    grown = growth(monkeypatch, tmp_path, 300, 50, "--engine.loader", loader, "--engine.workers", "1")
    with capsys.disabled():
        print(f"{loader}: resident memory grew by {grown:.2%} over 250 epochs; files and threads constant")
    assert grown < 0.05
