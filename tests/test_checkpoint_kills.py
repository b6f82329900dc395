"""Checkpoints of processes that were killed, and of disks that refuse."""

import errno
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import IDENTITY, newest_of, write_sound

from fastdrpl import files
from fastdrpl.checkpoint import (
    FAULT_POINTS,
    checkpoint_name,
    list_checkpoints,
    next_sequence,
    prune,
    remove_leftovers,
    write_checkpoint,
)
from fastdrpl.loaders.errors import DataError, UserError


def _in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process and returns how that ended (as `subprocess` tells it)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_until_killed(folder: Path, done: Path) -> None:
    for _ in range(100_000):
        sequence = next_sequence(folder)
        write_sound(folder, sequence)
        done.write_text(str(sequence))
        prune(folder, keep=2)


@pytest.mark.parametrize("arrival", [1, 2, 3, 5])
@pytest.mark.parametrize("point", FAULT_POINTS)
def test_killed_at_any_point_a_verified_checkpoint_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, arrival: int
) -> None:
    """R2."""
    folder, done = tmp_path / "checkpoints", tmp_path / "done"
    monkeypatch.setenv("FASTDRPL_FAULT", f"{point}:{arrival}")
    assert _in_child(lambda: _run_until_killed(folder, done)) == 9, "the fault point was never reached"
    monkeypatch.delenv("FASTDRPL_FAULT")
    finished = int(done.read_text()) if done.exists() else None
    newest = newest_of(folder)  # fails if anything had to be skipped: a kill leaves no damaged checkpoint
    renamed = 0 if finished is None else finished + 1
    assert newest in (finished, renamed if point == "checkpoint.after-rename" else finished)
    remove_leftovers(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    following = 0 if newest is None else newest + 1
    assert write_sound(folder, next_sequence(folder)).name == checkpoint_name(following)
    prune(folder)
    assert newest_of(folder) == following


def test_killed_at_random_moments_a_verified_checkpoint_is_found(tmp_path: Path) -> None:
    folder, done = tmp_path / "checkpoints", tmp_path / "done"
    chance = random.Random(3)
    for _ in range(25):
        before = newest_of(folder)
        done.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                _run_until_killed(folder, done)
            finally:
                os._exit(0)
        while not done.exists():  # at least one is written, however busy the machine is
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        remove_leftovers(folder)
        after = newest_of(folder)
        assert after is not None and (before is None or after > before)
    prune(folder)
    assert len(list_checkpoints(folder)) == 2


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    write_sound(tmp_path, 0)
    (tmp_path / f".tmp-{os.getpid()}-00000001").mkdir()
    (tmp_path / ".tmp-1-00000001").mkdir()
    (tmp_path / ".tmp-1-00000001" / "state.json").write_text("{")
    (tmp_path / ".tmp-5-config.toml").write_text("x")
    write_sound(tmp_path, 1)  # its own temporary name is taken by a dead process of the same number
    assert remove_leftovers(tmp_path) == [".tmp-1-00000001", ".tmp-5-config.toml"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000000", "00000001"]
    assert remove_leftovers(tmp_path / "none") == []


LARGE = torch.zeros(1 << 16)  # made here: a forked child may not start the threads that its parent has


def _assert_refused_and_intact(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        write_checkpoint(folder, "00000001", {"t": LARGE}, {}, identity=IDENTITY)
    assert caught.value.exit_code == 2 and not isinstance(caught.value, DataError)
    assert caught.value.where == str(folder / "00000001") and caught.value.fix
    assert [path.name for path in folder.iterdir()] == ["00000000"], "something was left behind"
    assert newest_of(folder) == 0
    return caught.value


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    write_sound(tmp_path, 0)

    def write_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        assert "ulimit" in str(_assert_refused_and_intact(tmp_path))

    assert _in_child(write_with_little_room) == 0
    assert newest_of(tmp_path) == 0
    assert write_sound(tmp_path, 1).name == "00000001"  # and with room again it goes on


@pytest.mark.parametrize("call", ["fsync", "rename", "open", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE])
def test_any_refusal_of_the_file_system_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """R17."""
    write_sound(tmp_path, 0)
    with monkeypatch.context() as patched:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        target: Any = files if call == "open" else os
        patched.setattr(target, call, refuse, raising=False)
        with pytest.raises(UserError) as caught:
            write_checkpoint(tmp_path, "00000001", {"t": torch.zeros(8)}, {}, identity=IDENTITY)
    assert os.strerror(number) in caught.value.what and str(tmp_path) in str(caught.value.where)
    assert [path.name for path in tmp_path.iterdir()] == ["00000000"]
    assert newest_of(tmp_path) == 0
