"""One cell as a process of its own: started, asked to stop, and what is left of it when it has ended."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fastdrpl
from fastdrpl.compare.cells import Cell
from fastdrpl.compare.folder import STOPPED, last_error, record_ending
from fastdrpl.files import explain_write_error


def cell_command(cell: Cell, threads: int = 0) -> list[str]:
    """The command of a cell, to be given in the folder of the grid; `threads` unless its flags say so, 0 = as usual."""
    words = [sys.executable, "-m", "fastdrpl", *cell.words]
    if threads and "engine.threads" not in cell.options:
        words += ["--engine.threads", str(threads)]
    return words


def cell_environment(threads: int = 0, device: str | None = None) -> dict[str, str]:
    """The environment of a cell: this fastdrpl, so many threads, one GPU."""
    environment = dict(os.environ)
    # The process starts in another folder: what was relative to this one would be lost.
    before = environment.get("PYTHONPATH", "")
    paths = [str(Path(path).resolve()) for path in before.split(os.pathsep) if path]
    root = Path(fastdrpl.__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file():  # a checkout, which may not be installed
        paths = [str(root), *(path for path in paths if path != str(root))]
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    return environment


@dataclass
class Child:
    """A running cell."""

    cell: Cell
    out: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    offset: int  # where this attempt begins in the log
    began: float
    asked: bool = False  # whether it was asked to stop

    def stop(self) -> None:
        """Ask it to save and end; a second time, to end at once."""
        self.asked = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def finish(self) -> tuple[int, str, bool]:
        """After its end: keep how it ended, -> (exit code, last error line, whether it can go on)."""
        self.log.close()
        status = self.process.wait()
        code = status if status >= 0 else 128 - status  # as shells have it
        stopped = code == STOPPED or (self.asked and code != 0)  # asked before it had handlers of its own
        error = "" if code == 0 or stopped else last_error(self.cell.log(self.out), self.offset)
        record_ending(self.out, self.cell, code, error, self.seconds(), stopped=stopped)
        return code, error, stopped


def start_child(cell: Cell, out: Path, *, threads: int = 0, device: str | None = None) -> Child:
    """Start a cell in the folder of its grid, in a session of its own: Ctrl-C reaches it through us only."""
    path = cell.log(out)
    # A run that goes on has its threads in the manifest: the bits of its result depend on them.
    goes_on = (cell.folder(out) / "manifest.json").exists()
    command = cell_command(cell, 0 if goes_on else threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = open(path, "ab")  # noqa: SIM115 - it lives as long as the process
    except OSError as error:
        raise explain_write_error(error, path) from error
    offset = log.tell()
    log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} fastdrpl {' '.join(command[3:])}\n".encode())
    log.flush()
    process = subprocess.Popen(
        command,
        cwd=out,
        env=cell_environment(threads, device),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Child(cell, out, process, log, offset, time.monotonic())
