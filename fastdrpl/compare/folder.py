"""The folder of a grid: what grid it holds, and how each of its cells stands."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastdrpl.compare.cells import Cell, Plan
from fastdrpl.compare.grid import Grid
from fastdrpl.errors import DataError, UserError
from fastdrpl.files import TEMPORARY_PREFIX, read_json, write_atomic, write_json
from fastdrpl.lock import LOCK_FILE, lock_holder
from fastdrpl.methods import load_method

SCHEMA = 1
GRID_FILE = "grid.json"
STOPPED = 75  # the exit code of a run that a signal ended, which the same command continues
# Flags that may change between two calls: they do not belong to the result of a run.
_FREE = ("checkpoint.", "engine.loader", "engine.workers", "engine.ranks", "engine.threads")


@dataclass(frozen=True)
class State:
    """How a cell stands."""

    kind: Literal["done", "failed", "stopped", "running", "missing"]
    code: int | None = None  # exit code of the last attempt
    error: str = ""  # the last error line of its log, or who holds the folder


def state_of(out: Path, cell: Cell) -> State:
    """How a cell stands, from its files alone."""
    folder, ending = cell.folder(out), cell.ending(out)
    if (folder / "result.json").exists():
        return State("done", 0)
    holder = lock_holder(folder)
    if holder is not None:
        return State("running", error=holder)
    if ending.exists():
        last = read_json(ending)
        code = last.get("exit_code")
        if isinstance(code, int) and code != 0:
            return State("stopped" if last.get("stopped") else "failed", code, str(last.get("error", "")))
    return State("stopped") if (folder / "config.toml").exists() else State("missing")


def record_ending(out: Path, cell: Cell, code: int, error: str, seconds: float, *, stopped: bool) -> None:
    """Write how an attempt at a cell ended."""
    value = {"exit_code": code, "error": error, "stopped": stopped, "seconds": round(seconds, 1)}
    write_json(cell.ending(out), value | {"ended": time.strftime("%Y-%m-%d %H:%M:%S")})


def last_error(log: Path, offset: int = 0) -> str:
    """The last error line of a log from a byte on: of fastdrpl, or else its last line of all."""
    with open(log, "rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    lines = [line.rstrip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ").strip()[:300]


def identity_of(grid: Grid, plan: Plan) -> dict[str, Any]:
    """What a folder of this grid holds, as JSON values: flags of everything that decides a result.

    Methods, noises and data sets may be added to a folder, and seeds are not named at all: cells are cells.
    """
    options = {cell.name.rpartition("/")[0]: {**cell.options, **_own_method(cell)} for cell in plan.cells}
    return {
        "schema": SCHEMA,
        "name": grid.name,
        "data": {
            data.label: {"recipe": data.recipe, "fingerprint": _fingerprint(data.path)} for data in grid.data
        },
        "cells": {
            name: {key: value for key, value in flags.items() if not key.startswith(_FREE)}
            for name, flags in options.items()
        },
    }


def _own_method(cell: Cell) -> dict[str, str]:
    """What is in the file of a method of the user's own: with another content its cells are others."""
    digest = load_method(cell.method.value).digest
    return {"method": f"file with sha256 {digest}"} if digest else {}


def check_folder(out: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The identity that the folder will have, with what it holds already; writes nothing.

    Raises UserError that lists the differing fields where the folder holds another grid, or something else.
    """
    file = out / GRID_FILE
    if out.exists() and not out.is_dir():
        raise UserError("the output of a grid must be a folder", where=str(out), fix="give another --out")
    if not file.exists():
        _refuse_foreign(out)
        return identity
    before = read_json(file)
    if not isinstance(before, dict) or before.get("schema") != SCHEMA:
        raise DataError(f"not a {GRID_FILE} of schema {SCHEMA}", where=str(file), fix="give another --out")
    differing = _differences(before, identity)
    if differing:
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise UserError(
            "this folder holds another grid; nothing was changed",
            where=f"{out}: " + "; ".join(differing[:8]) + more,
            fix="give another --out, or the same flags to go on with this one",
        )
    merged = {key: {**before[key], **identity[key]} for key in ("data", "cells")}
    return {**identity, **merged}


def claim_folder(out: Path, identity: dict[str, Any], plan: Plan) -> None:
    """Write grid.json and the files that the commands need; `identity` as `check_folder` returned it."""
    for name, source in plan.files.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            write_atomic(target, source.read_bytes())
    file = out / GRID_FILE
    if not file.exists() or read_json(file) != json.loads(json.dumps(identity)):
        write_json(file, identity)


def check_data(cells: Sequence[Cell]) -> None:
    """Raise UserError where the data set of a cell is not there: better now than once for every cell."""
    for data in {cell.data.label: cell.data for cell in cells}.values():
        if data.path is not None and not (data.path / "dataset.json").is_file():
            raise UserError(
                f"the data of {data.label!r} are not a prepared dataset",
                where=str(data.path),
                fix=f"fastdrpl prepare {data.recipe} --source DIR --out {data.path}",
            )


def _fingerprint(path: Path | None) -> str | None:
    """The fingerprint of a prepared dataset; None where there is none (yet)."""
    from fastdrpl.loaders.dataset import content_fingerprint

    if path is None or not (path / "dataset.json").is_file():
        return None
    try:
        return content_fingerprint(read_json(path / "dataset.json"))
    except (KeyError, TypeError) as error:
        what = f"not the manifest of a prepared dataset: {error}"
        raise DataError(what, where=str(path / "dataset.json"), fix="prepare the data again") from error


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`field: this there, that now`, of what both have."""
    found = [] if before["name"] == now["name"] else [f"name: {before['name']!r} there, {now['name']!r} now"]
    for label in before["data"].keys() & now["data"].keys():
        for key, value in now["data"][label].items():
            there = before["data"][label].get(key)
            if None not in (there, value) and there != value:
                found.append(f"data.{label}.{key}: {there!r} there, {value!r} now")
    flags: dict[str, list[str]] = {}
    for name in sorted(before["cells"].keys() & now["cells"].keys()):
        there, here = before["cells"][name], now["cells"][name]
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                text = f"{key}: {there.get(key)!r} there, {here.get(key)!r} now"
                flags.setdefault(text, []).append(name)
    for text, names in flags.items():
        found.append(f"{text} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})")
    return found


def _refuse_foreign(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if name != LOCK_FILE and not name.startswith(TEMPORARY_PREFIX)]
    if foreign:
        raise UserError(
            f"the folder is not empty and holds no grid (it has no {GRID_FILE})",
            where=f"{out}: {', '.join(foreign[:5])}",
            fix="give another --out",
        )
