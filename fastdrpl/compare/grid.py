"""A grid file: which data, methods, noises and seeds are compared, and with which flags."""

import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl import config_file
from fastdrpl.errors import UserError
from fastdrpl.names import nearest

GRIDS = Path(__file__).resolve().parent / "grids"  # those that come with the package
LAYOUTS = ("plain", "I", "II", "III", "IV")
_CODES = {
    "none": "0",
    "uniform": "U",
    "nonuniform": "NU",
    "uniform_ood": "U-OOD",
    "nonuniform_ood": "NU-OOD",
    "matrix": "matrix",
}
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SECTIONS = ("grid", "data", "flags", "methods", "slurm")
_GRID_KEYS = ("name", "recipe", "data", "out", "methods", "noises", "seeds", "table")
_SET_BY_GRID = ("recipe", "data", "method", "seed", "run", "noise.kind", "noise.ratio")


@dataclass(frozen=True)
class Data:
    """A data set of a grid."""

    label: str  # names it in folders and tables
    recipe: str
    path: Path | None  # absolute; None: the recipe brings its data


@dataclass(frozen=True)
class Method:
    """A method of a grid."""

    label: str
    value: str  # of --method: a name, or the absolute path of a file


@dataclass(frozen=True)
class Noise:
    """A noise of a grid: `options` are flags below `noise.`, among them kind and ratio."""

    label: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A whole grid file. Flags have dotted names; values are those of TOML."""

    file: Path
    name: str
    out: Path
    table: str  # one of LAYOUTS
    data: tuple[Data, ...]
    methods: tuple[Method, ...]
    noises: tuple[Noise, ...]
    seeds: tuple[int, ...]
    flags: dict[str, Any]
    method_flags: dict[str, dict[str, Any]]  # by the label of a method
    slurm: dict[str, Any]

    def resolve(self, path: str) -> Path:
        """A path of the file, absolute: see `resolve_path`."""
        return resolve_path(self.file, path)


def shipped_grids() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    return {path.stem: path for path in sorted(GRIDS.glob("*.toml"))}


def find_grid(name: str) -> Path:
    """A grid file by its path, or a shipped one by its name. Raises UserError with the nearest name."""
    path, shipped = Path(name), shipped_grids()
    if path.is_file():
        return path.resolve()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"there is no grid {name!r}{nearest(name, shipped)}",
        fix=f"give a TOML file, or one of the shipped grids: {', '.join(shipped)}",
    )


def resolve_path(file: Path, path: str) -> Path:
    """A path that a grid file names, absolute.

    Relative paths start where the file lies. For a shipped grid, which lies inside the package, they start in the
    current folder, but for the files that were shipped with it.
    """
    if file.parent != GRIDS or (GRIDS / path).is_file():
        return (file.parent / Path(path).expanduser()).resolve()
    return Path(path).expanduser().resolve()


def read_grid(file: Path, *, known_methods: typing.Collection[str], out: Path | None = None) -> Grid:
    """Read and check a grid file; `out` replaces its output folder.

    Raises UserError naming the file for unknown names (with the nearest one), wrong types, empty lists and cells
    that occur twice. Values of flags are checked later, by the command line that they are for.
    """
    table, where = config_file.read_table(file), str(file)
    _refuse_unknown(table, _SECTIONS, "section", where)
    grid = _take(table, "grid", dict, where, required=True)
    _refuse_unknown(grid, _GRID_KEYS, "key", where, prefix="grid.")
    name = _take(grid, "name", str, where, default=file.stem)
    _check_label(name, "grid.name", where)
    layout = _take(grid, "table", str, where, default="plain")
    if layout not in LAYOUTS:
        what = f"grid.table is {layout!r}{nearest(layout, LAYOUTS)}"
        raise UserError(what, where=where, fix=f"one of {', '.join(LAYOUTS)}")
    methods = tuple(_method(entry, known_methods, file) for entry in _list(grid, "methods", str, where))
    noises = tuple(_noise(entry, where) for entry in _list(grid, "noises", dict, where))
    seeds = tuple(_list(grid, "seeds", int, where))
    if not all(0 <= seed < 2**63 for seed in seeds):
        raise UserError(f"grid.seeds are {list(seeds)}", where=where, fix="give whole numbers from 0 up")
    data = _data(table, grid, file)
    for what, labels in (
        ("method", [method.label for method in methods]),
        ("label of a noise", [noise.label for noise in noises]),
        ("noise", [repr(sorted(noise.options.items())) for noise in noises]),
        ("seed", list(map(str, seeds))),
        ("label of a data set", [entry.label for entry in data]),
        ("data set", [f"{entry.recipe} {entry.path or ''}" for entry in data]),
    ):
        _refuse_twice(what, labels, where)
    per_method = _take(table, "methods", dict, where, default={})
    known = dict.fromkeys([*(method.label for method in methods), *known_methods])
    _refuse_unknown(per_method, known, "method", where, prefix="methods.")
    flags = _flags(_take(table, "flags", dict, where, default={}), "flags", where)
    for key in flags:
        if "." in key and key.partition(".")[0] in known:
            fix = f"move it below [methods.{key.partition('.')[0]}]"
            raise UserError(
                f"{key!r} is a setting of one method, and [flags] are of all", where=where, fix=fix
            )
    folder = _take(grid, "out", str, where, default=f"runs/{name}")
    return Grid(
        file=file,
        name=name,
        out=resolve_path(file, folder) if out is None else out.expanduser().resolve(),
        table=layout,
        data=data,
        methods=methods,
        noises=noises,
        seeds=seeds,
        flags=flags,
        method_flags={
            key: _flags(_take(per_method, key, dict, where), f"methods.{key}", where) for key in per_method
        },
        slurm=_take(table, "slurm", dict, where, default={}),
    )


def _method(entry: str, known: typing.Collection[str], file: Path) -> Method:
    """A method by name, or a file with one."""
    if entry.endswith(".py"):
        path = resolve_path(file, entry)
        if not path.is_file():
            raise UserError(f"there is no file {entry!r} with a method", where=str(file))
        _check_label(path.stem, "grid.methods", str(file))
        return Method(path.stem, str(path))
    if entry not in known:
        what = f"unknown method {entry!r}{nearest(entry, known)}"
        raise UserError(what, where=str(file), fix=f"one of {', '.join(sorted(known))}")
    return Method(entry, entry)


def _noise(entry: dict[str, Any], where: str) -> Noise:
    """A noise; its label is made of kind and ratio where none is given."""
    from fastdrpl.noise_config import NoiseConfig

    hints = typing.get_type_hints(NoiseConfig)
    _refuse_unknown(entry, ["label", *hints], "key", where, prefix="grid.noises.")
    kind = _take(entry, "kind", str, where, required=True)
    kinds = typing.get_args(hints["kind"])
    if kind not in kinds:
        what = f"unknown noise kind {kind!r}{nearest(kind, kinds)}"
        raise UserError(what, where=where, fix=f"one of {', '.join(kinds)}")
    ratio = entry.get("ratio", 0.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float):
        raise UserError(f"grid.noises: ratio is {ratio!r}, wanted a number", where=where)
    code = "file" if "file" in entry else _CODES.get(kind, kind)
    default = code if kind == "none" else f"{code}-{float(ratio):g}"
    label = _take(entry, "label", str, where, default=default)
    _check_label(label, "grid.noises: label", where)
    return Noise(label, {key: value for key, value in entry.items() if key != "label"} | {"ratio": ratio})


def _data(table: dict[str, Any], grid: dict[str, Any], file: Path) -> tuple[Data, ...]:
    """The data sets: `recipe` and `data` of [grid], or [[data]] entries."""
    from fastdrpl.recipes import recipe_named

    where = str(file)
    entries = _list(table, "data", dict, where, prefix="") if "data" in table else []
    if entries and {"recipe", "data"} & grid.keys():
        raise UserError("data are named both in [grid] and in [[data]]", where=where, fix="keep one of them")
    if not entries:
        single = {"recipe": _take(grid, "recipe", str, where, required=True)}
        entries = [single | ({"path": grid["data"]} if "data" in grid else {})]
    found = []
    for entry in entries:
        _refuse_unknown(entry, ("recipe", "path", "label"), "key", where, prefix="data.")
        recipe = _take(entry, "recipe", str, where, required=True)
        try:
            recipe_named(recipe)
        except UserError as error:
            raise UserError(error.what, where=where, fix=error.fix) from None
        path = _take(entry, "path", str, where)
        label = _take(entry, "label", str, where, default=recipe)
        _check_label(label, "data.label", where)
        found.append(Data(label, recipe, None if path is None else resolve_path(file, path)))
    return tuple(found)


def flatten_table(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(flatten_table(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _flags(table: dict[str, Any], section: str, where: str) -> dict[str, Any]:
    """Flags by dotted name, none of which the grid itself sets."""
    flat = flatten_table(table)
    for key in flat:
        if key in _SET_BY_GRID:
            fix = "leave it out: data, methods, noises and seeds of the grid set it"
            raise UserError(f"{section} sets {key!r}, which differs from cell to cell", where=where, fix=fix)
    return flat


def _refuse_unknown(
    table: dict[str, Any], known: typing.Collection[str], what: str, where: str, prefix: str = ""
) -> None:
    for key in table:
        if key not in known:
            raise UserError(
                f"unknown {what} {prefix + key!r}{nearest(key, known, prefix)}",
                where=where,
                fix=f"one of {', '.join(known)}",
            )


def _refuse_twice(what: str, values: list[str], where: str) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        fix = "every cell of a grid must be another run: name each once"
        raise UserError(f"{what} {twice[0]} occurs twice", where=where, fix=fix)


def _take(
    table: dict[str, Any], key: str, kind: type, where: str, *, default: Any = None, required: bool = False
) -> Any:
    """The value of a key, which must be of a type."""
    if key not in table:
        if required:
            raise UserError(
                f"{key!r} is missing",
                where=where,
                fix=f"add `{key} = ...` (docs/compare.md shows a whole grid)",
            )
        return default
    value = table[key]
    if type(value) is not kind:
        wanted = "table" if kind is dict else "text" if kind is str else kind.__name__
        raise UserError(f"{key!r} is {value!r}, wanted a {wanted}", where=where)
    return value


def _list(table: dict[str, Any], key: str, kind: type, where: str, prefix: str = "grid.") -> list[Any]:
    """A list that is there, not empty, and of one type."""
    values = _take(table, key, list, where, required=True)
    if not values:
        raise UserError(
            f"{prefix}{key} is empty: there is nothing to run", where=where, fix="name one or more"
        )
    for value in values:
        if type(value) is not kind:
            wanted = {dict: "a table", str: "text", int: "a whole number"}[kind]
            raise UserError(f"{prefix}{key}: {value!r} is not {wanted}", where=where)
    return values


def _check_label(label: str, what: str, where: str) -> None:
    """Labels become names of folders."""
    if not _FOLDER_NAME.fullmatch(label):
        fix = "use letters, digits, dots, dashes and underlines, a letter or digit first"
        raise UserError(f"{what} is {label!r}, which cannot be the name of a folder", where=where, fix=fix)
