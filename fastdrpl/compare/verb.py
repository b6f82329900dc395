"""`fastdrpl compare`: run what is missing of a grid, and write its tables."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdrpl.compare.cells import Cell, Plan
    from fastdrpl.compare.folder import State
    from fastdrpl.compare.grid import Grid
    from fastdrpl.compare.scheduler import Ending

UNFINISHED = 1  # exit code: some cells failed, or another process has them


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Run methods x noises x seeds x data sets of a grid file, and write their tables. Call it again to go on.

    The grid is a TOML file, or the name of a shipped grid (--list). Exit codes: 0 all cells are done, 1 some failed or
    are with another process, 2 and 3 as everywhere, 75 stopped by a signal (the same command continues).
    """

    out: Path | None = None
    """Folder of the grid, in place of the one that the file names."""
    jobs: int = 0
    """Cells at once; 0 = one on a CPU, --per_gpu on each GPU."""
    per_gpu: int = 1
    """Cells at once on each GPU."""
    only: tuple[str, ...] = ()
    """Run these cells only: METHOD, METHOD/NOISE or LABEL/METHOD/NOISE, with * for any."""
    dry_run: bool = False
    """Show the cells, how they stand and their commands; start and write nothing."""
    slurm: bool = False
    """Submit the cells to SLURM by submitit (an extra) instead of running them here."""
    tables: bool = False
    """Write the tables from the runs that are there; start nothing."""
    list: bool = False
    """Show the shipped grids."""


def compare(name: str, config: CompareConfig) -> int:
    """Carry out `fastdrpl compare NAME`: -> the exit code. Raises UserError and DataError."""
    from fastdrpl.compare.cells import plan_cells, select_cells
    from fastdrpl.compare.folder import check_data, check_folder, identity_of, state_of
    from fastdrpl.compare.grid import find_grid, read_grid

    if config.list:
        return _list_grids()
    file = find_grid(name)
    grid = read_grid(file, known_methods=_known_methods(), out=config.out)
    plan = plan_cells(grid)
    chosen = select_cells(plan.cells, config.only)
    identity = check_folder(grid.out, identity_of(grid, plan))
    states = {cell.name: state_of(grid.out, cell) for cell in chosen}
    if config.dry_run:
        return _show(grid, chosen, states)
    if config.tables:
        return _only_tables(grid, plan)
    todo = [cell for cell in chosen if states[cell.name].kind not in ("done", "running")]
    busy = [cell for cell in chosen if states[cell.name].kind == "running"]
    if todo:
        check_data(todo)
    return _carry_out(grid, plan, identity, todo, busy, len(chosen), config)


def _known_methods() -> list[str]:
    from fastdrpl.methods import METHODS

    return list(METHODS)


def _carry_out(
    grid: "Grid",
    plan: "Plan",
    identity: dict[str, Any],
    todo: "Sequence[Cell]",
    busy: "Sequence[Cell]",
    chosen: int,
    config: CompareConfig,
) -> int:
    """Run or submit what is missing, then write the tables."""
    from fastdrpl.compare.children import STOPPED
    from fastdrpl.compare.display import Display
    from fastdrpl.compare.folder import claim_folder
    from fastdrpl.compare.scheduler import choose_places, find_gpus, run_cells
    from fastdrpl.console import say, warn
    from fastdrpl.errors import UserError
    from fastdrpl.lock import RunLock

    for cell in busy:
        warn(f"{cell.name} is left alone: another process has it")
    if not todo and not busy:
        say(f"nothing to do: all {chosen} cells are done")
    gpus = find_gpus() if todo and not config.slurm and grid.flags.get("engine.device") != "cpu" else []
    places = choose_places(gpus, config.jobs, config.per_gpu, len(os.sched_getaffinity(0)))
    try:
        grid.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder: {error.strerror}", where=str(grid.out)) from error
    with RunLock(grid.out):
        claim_folder(grid.out, identity, plan)
        if config.slurm:
            return _submit(grid, todo, config)
        stopped = False
        endings: list[Ending] = []
        if todo:
            say(
                f"{grid.name}: {len(todo)} of {chosen} cells to run, {len(places.devices)} at once, in {grid.out}"
            )
            display = Display(grid.out, chosen, chosen - len(todo) - len(busy))
            endings, stopped = run_cells(todo, grid.out, places, display)
        _write(grid, plan)
    failed = [ending for ending in endings if ending.code != 0 and not ending.stopped]
    for ending in failed:
        warn(f"{ending.cell.name} failed (exit {ending.code}): {ending.error}")
        say(f"  log: {ending.cell.log(grid.out)}")
    if stopped or any(ending.stopped for ending in endings):
        say("stopped; the same command continues")
        return STOPPED
    return UNFINISHED if failed or busy else 0


def _only_tables(grid: "Grid", plan: "Plan") -> int:
    from fastdrpl.compare.folder import GRID_FILE
    from fastdrpl.errors import UserError

    if not (grid.out / GRID_FILE).exists():
        fix = "run it first, without --tables"
        raise UserError("there is nothing of this grid yet", where=str(grid.out), fix=fix)
    _write(grid, plan)
    return 0


def _write(grid: "Grid", plan: "Plan") -> None:
    """Write the tables of the whole grid, and print them."""
    from fastdrpl.compare.facts import read_runs
    from fastdrpl.compare.render import markdown, write_tables
    from fastdrpl.compare.tables import build_tables

    runs = read_runs(grid.out, plan.cells)
    tables = build_tables(grid, runs)
    paths = write_tables(grid.out, grid.name, tables, runs)
    print(markdown(grid.name, tables))
    print(f"written: {', '.join(map(str, paths))}")


def _submit(grid: "Grid", todo: "Sequence[Cell]", config: CompareConfig) -> int:
    from fastdrpl.compare.slurm import submit_cells
    from fastdrpl.console import say

    for cell, job in submit_cells(todo, grid.out, grid.slurm, jobs=config.jobs):
        say(f"job {job}: {cell.name}")
    say("`fastdrpl compare ... --tables` writes the tables of what is done")
    return 0


def _show(grid: "Grid", chosen: "Sequence[Cell]", states: "dict[str, State]") -> int:
    """The cells, how each stands, and its command."""
    from fastdrpl.compare.children import cell_command

    counts = Counter(states[cell.name].kind for cell in chosen)
    parts = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    print(f"# {grid.name}: {len(chosen)} cells ({parts}); commands are given in the folder of the grid")
    print(shlex.join(["cd", str(grid.out)]))
    for cell in chosen:
        state = states[cell.name]
        print(f"# {cell.name}: {state.kind}{f' (exit {state.code}): {state.error}' if state.error else ''}")
        print(shlex.join(cell_command(cell)))
    return 0


def _list_grids() -> int:
    from fastdrpl.compare.grid import shipped_grids

    for name, path in shipped_grids().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:<14}{first}\n{'':<14}{path}")
    return 0
