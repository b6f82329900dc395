"""One process per run folder."""

import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdrpl import lock
from fastdrpl.loaders.errors import UserError
from fastdrpl.lock import RunLock, lock_holder


def _start_child(work: Callable[[], None]) -> int:
    """Forks a process that runs `work` and returns its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _start_holder(folder: Path) -> int:
    """A process that takes the lock and sleeps; returns once it has it."""

    def hold() -> None:
        with RunLock(folder):
            (folder / "held").touch()
            time.sleep(60)

    child = _start_child(hold)
    while not (folder / "held").exists():
        time.sleep(0.005)
    return child


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = _start_holder(tmp_path)
    try:
        for _ in range(2):  # a refused attempt takes nothing away from the holder
            with (
                pytest.raises(UserError, match=f"process {holder} on {platform.node()}") as caught,
                RunLock(tmp_path),
            ):
                pass
            assert caught.value.exit_code == 2 and caught.value.where == str(tmp_path)
            assert f"process {holder} " in str(lock_holder(tmp_path))
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert lock_holder(tmp_path) is None
    with RunLock(tmp_path):  # killed without a word, and still let go
        assert str(os.getpid()) in str(lock_holder(tmp_path))


def test_one_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(UserError, match="this one"), RunLock(tmp_path / ".." / tmp_path.name):
            pass
        assert "this one" in str(lock_holder(tmp_path))

        def look_from_outside() -> None:
            lock._held.clear()  # what a process of its own would know
            assert f"process {os.getppid()} " in str(lock_holder(tmp_path))

        assert _wait(_start_child(look_from_outside)) == 0  # neither refusal nor looking let go of it


def test_it_is_let_go_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), RunLock(folder):
            raise ZeroDivisionError
        assert lock_holder(folder) is None
    assert lock_holder(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_loader_workers_that_outlive_a_killed_run_do_not_hold_it(tmp_path: Path) -> None:
    worker_number = tmp_path / "worker"

    def hold_with_worker() -> None:
        with RunLock(tmp_path):
            worker = _start_child(lambda: time.sleep(60))
            worker_number.write_text(str(worker))
            os.rename(worker_number, tmp_path / "started")
            time.sleep(60)

    holder = _start_child(hold_with_worker)
    while not (tmp_path / "started").exists():
        time.sleep(0.005)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(int((tmp_path / "started").read_text()), signal.SIGKILL)


def test_of_many_processes_only_one_has_it(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        done = 0
        while done < 20:
            try:
                with RunLock(tmp_path):
                    value = int(counter.read_text())
                    time.sleep(0.0005)
                    counter.write_text(str(value + 1))
                done += 1
            except UserError:
                continue

    children = [_start_child(count) for _ in range(4)]
    assert [_wait(child) for child in children] == [0] * 4
    assert counter.read_text() == "80"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught, RunLock(tmp_path / "file"):
        pass
    assert str(tmp_path / "file") in str(caught.value.where)
