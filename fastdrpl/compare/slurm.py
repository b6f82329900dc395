"""Cells as jobs of SLURM by submitit (the extra `slurm`): the same process for each, requeued when it is preempted."""

import contextlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdrpl.compare.cells import Cell
from fastdrpl.compare.children import Child, start_child
from fastdrpl.console import say
from fastdrpl.errors import DataError, UserError
from fastdrpl.files import read_json, write_json

INSTALL = "pip install 'submitit>=1.5'"
DEFAULTS = {"timeout_min": 24 * 60, "gpus_per_node": 1, "cpus_per_task": 4, "mem_gb": 16}
JOBS = "jobs"  # below the folder of a grid: what submitit writes


class CellJob:
    """What a job does: start the cell as a process and wait for it; submitit sends it to a node pickled."""

    def __init__(self, cell: Cell, out: Path, threads: int) -> None:
        self.cell, self.out, self.threads = cell, out, threads
        self._child: Child | None = None

    def __call__(self) -> int:
        """Run or continue the cell: -> its exit code, which is also kept in the folder of the grid."""
        child = self._child = start_child(self.cell, self.out, threads=self.threads)
        _wait(child)
        self._child = None
        return child.finish()[0]

    def checkpoint(self) -> Any:
        """Called by submitit shortly before the job ends early: have the run save, and come back in the queue."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()
            _wait(child)
            child.finish()
        return _submitit().helpers.DelayedSubmission(CellJob(self.cell, self.out, self.threads))


def _wait(child: Child) -> None:
    """Until the process has ended. It holds no lock: `checkpoint` comes from a signal while `__call__` is in here."""
    with contextlib.suppress(ChildProcessError):  # it was seen to have ended before
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)


def submit_cells(
    cells: Sequence[Cell], out: Path, settings: dict[str, Any], *, jobs: int = 0, cluster: str | None = None
) -> list[tuple[Cell, str]]:
    """Submit the cells that no job has yet: -> (cell, number of its job) of the new ones.

    `settings` are parameters of `submitit.AutoExecutor`, in place of DEFAULTS; `jobs` limits how many run at once,
    0 = no limit. Raises UserError where submitit or SLURM is missing, or does not know a parameter.
    """
    submitit = _submitit()
    wanted = [cell for cell in cells if not _is_queued(cell, out, cluster)]
    if len(wanted) < len(cells):
        say(f"{len(cells) - len(wanted)} cells are with a job already")
    if not wanted:
        return []
    merged = DEFAULTS | settings
    if jobs:
        merged["slurm_array_parallelism"] = jobs
    try:
        executor = submitit.AutoExecutor(folder=out / JOBS, cluster=cluster or "slurm")
        executor.update_parameters(**merged)
    except (RuntimeError, NameError, ValueError, AssertionError, TypeError) as error:  # what submitit raises
        raise UserError(
            f"cannot submit to SLURM: {error}",
            where="[slurm]",
            fix="call it where `sbatch` and `srun` are, with parameters that submitit's executors know",
        ) from error
    threads = int(merged.get("cpus_per_task", 0))
    with executor.batch():
        submitted = [executor.submit(CellJob(cell, out, threads)) for cell in wanted]
    for cell, job in zip(wanted, submitted, strict=True):
        cell.ending(out).parent.mkdir(parents=True, exist_ok=True)
        write_json(job_file(cell, out), {"job": str(job.job_id)})
    return [(cell, str(job.job_id)) for cell, job in zip(wanted, submitted, strict=True)]


def job_file(cell: Cell, out: Path) -> Path:
    """Where the number of a cell's job is kept, beside its run folder."""
    return out / f"{cell.name}.job"


def _is_queued(cell: Cell, out: Path, cluster: str | None) -> bool:
    """Whether a job of this cell waits or runs."""
    file = job_file(cell, out)
    if not file.exists():
        return False
    with contextlib.suppress(DataError, KeyError, TypeError):
        number = str(read_json(file)["job"])
        kind = _submitit().LocalJob if cluster in ("local", "debug") else _submitit().SlurmJob
        return not kind(folder=out / JOBS, job_id=number).done()
    return False  # a file that was cut off: submit again, the lock of the run folder keeps two apart


def _submitit() -> Any:
    """The library. Raises UserError with the line that installs it."""
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise UserError(f"submitit does not import: {error}", fix=INSTALL) from error
