"""Cells: a grid as commands, one run folder each, checked by the command line that they are for."""

import contextlib
import fnmatch
import functools
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl.compare.grid import Data, Grid, Method, Noise
from fastdrpl.errors import UserError
from fastdrpl.files import sha256_file
from fastdrpl.names import nearest

FILES = "files"  # below the folder of a grid: copies of the files that its flags name


@dataclass(frozen=True)
class Cell:
    """One run. Its command is given in the folder of the grid, so that paths in it stay true when that moves."""

    data: Data
    method: Method
    noise: Noise
    seed: int
    words: tuple[str, ...]  # after `fastdrpl`
    options: dict[str, Any]  # every flag but data, run and seed, by dotted name

    @property
    def name(self) -> str:
        """LABEL/METHOD/NOISE/seed-S: its folder below that of the grid."""
        return f"{self.data.label}/{self.method.label}/{self.noise.label}/seed-{self.seed}"

    def folder(self, out: Path) -> Path:
        """The run folder."""
        return out / self.name

    def log(self, out: Path) -> Path:
        """What the run printed, beside its folder."""
        return out / f"{self.name}.log"

    def ending(self, out: Path) -> Path:
        """How the last attempt ended, beside the run folder."""
        return out / f"{self.name}.json"


@dataclass(frozen=True)
class Plan:
    """The cells of a grid, and the files that their commands need below its folder."""

    cells: tuple[Cell, ...]  # seed by seed, so that a first whole table is there early
    files: dict[str, Path]  # path below the folder of the grid -> where the file is


def plan_cells(grid: Grid) -> Plan:
    """All cells of a grid. Raises UserError for flags that `fastdrpl train` does not take, with the cell's name."""
    files: dict[str, Path] = {}
    paths: set[str] = set()  # flags that name a file
    options: dict[tuple[str, str, str], dict[str, Any]] = {}
    for data in grid.data:
        for method in grid.methods:
            for noise in grid.noises:
                merged = {
                    **grid.flags,
                    **grid.method_flags.get(method.label, {}),
                    **{f"noise.{key}": value for key, value in noise.options.items()},
                }
                options[data.label, method.label, noise.label] = merged
                # Noises and methods do not depend on each other: every flag is read in one of these.
                if method is grid.methods[0] or noise is grid.noises[0]:
                    where = f"{grid.file}, {data.label}/{method.label}/{noise.label}"
                    paths |= _check_options(grid, data, method, merged, where)
    for merged in options.values():
        for key in paths & merged.keys():
            merged[key] = _keep(grid.resolve(str(merged[key])), key, files)
    cells = [
        _cell(data, method, noise, seed, options[data.label, method.label, noise.label])
        for seed in grid.seeds
        for data in grid.data
        for method in grid.methods
        for noise in grid.noises
    ]
    return Plan(tuple(cells), files)


def select_cells(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Cells that a pattern fits: METHOD, METHOD/NOISE or LABEL/METHOD/NOISE, with * and ?; all without patterns.

    Raises UserError for a pattern that fits none.
    """
    if not patterns:
        return list(cells)
    chosen: set[str] = set()
    for pattern in patterns:
        found = {cell.name for cell in cells if _fits(cell, pattern)}
        if not found:
            known = list(dict.fromkeys(f"{cell.method.label}/{cell.noise.label}" for cell in cells))
            known += list(dict.fromkeys(cell.method.label for cell in cells))
            what = f"--only {pattern!r} fits no cell of the grid{nearest(pattern, known)}"
            raise UserError(what, fix="give METHOD, METHOD/NOISE or LABEL/METHOD/NOISE, with * for any")
        chosen |= found
    return [cell for cell in cells if cell.name in chosen]


def flag_words(key: str, value: Any) -> list[str]:
    """A flag as words of the command line."""
    if isinstance(value, bool):
        section, _, name = key.rpartition(".")
        return [f"--{key}" if value else f"--{section}.no_{name}" if section else f"--no_{name}"]
    if isinstance(value, list | tuple):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", str(value)]


def _fits(cell: Cell, pattern: str) -> bool:
    data, method, noise = cell.data.label, cell.method.label, cell.noise.label
    subject = (method, f"{method}/{noise}", f"{data}/{method}/{noise}")[min(2, pattern.count("/"))]
    return fnmatch.fnmatchcase(subject, pattern)


def _cell(data: Data, method: Method, noise: Noise, seed: int, options: dict[str, Any]) -> Cell:
    words = ["train", data.recipe, *([] if data.path is None else ["--data", str(data.path)])]
    words += ["--method", method.value]
    first = ("noise.kind", "noise.ratio")
    for key in (*first, *(key for key in options if key not in first)):
        words += flag_words(key, options[key])
    words += ["--seed", str(seed), "--run"]
    cell = Cell(data, method, noise, seed, (), options)
    return Cell(data, method, noise, seed, (*words, cell.name), options)


def _check_options(grid: Grid, data: Data, method: Method, options: dict[str, Any], where: str) -> set[str]:
    """Have the command line read the flags: -> those that name a file."""
    from fastdrpl.settings import flatten

    known = _known_flags(data.recipe, method.value, str(grid.file))
    for key in options:
        if key not in known:
            what = f"unknown flag {key!r}{nearest(key, known)}"
            raise UserError(what, where=where, fix=f"fastdrpl train {data.recipe} --help")
    words = ["train", data.recipe, "--method", method.value]
    for key, value in options.items():
        words += flag_words(key, value)
    read = flatten(_read_words(words, where))
    return {key for key in options if isinstance(read.get(key), Path)}


@functools.cache
def _known_flags(recipe: str, method: str, where: str) -> tuple[str, ...]:
    """Every flag of a method, by dotted name."""
    from fastdrpl.settings import flatten

    return tuple(flatten(_read_words(["train", recipe, "--method", method], where)))


def _read_words(words: list[str], where: str) -> Any:
    """A configuration from words; what the command line says of words that it cannot read becomes a UserError."""
    from fastdrpl.cli import parse_training

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parse_training(words[1:])
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from None
    except SystemExit:
        # The text of tyro's box: what stands between its title and the first rule.
        lines = [line.strip("╭╮╰╯│─+|- ") for line in said.getvalue().splitlines()]
        body = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines[1:]))
        text = " ".join(body) or "these flags cannot be read"
        raise UserError(text, where=where, fix="fastdrpl train RECIPE --help lists every flag") from None


def _keep(path: Path, key: str, files: dict[str, Path]) -> str:
    """The name below the folder of the grid under which a file is kept: another content has another name."""
    if not path.is_file():
        raise UserError(f"{key} names a file that is not there", where=str(path))
    digest = sha256_file(path)[:8]
    name = f"{FILES}/{path.stem}-{digest}{path.suffix}"
    files[name] = path
    return name
