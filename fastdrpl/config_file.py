"""Configuration to and from TOML: unknown keys, wrong types, nan and inf are errors that name the field."""

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.names import nearest

Settings = typing.TypeVar("Settings")


def to_table(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values; None is left out, paths become text."""
    table: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            table[item.name] = to_table(value)
        elif isinstance(value, Path):
            table[item.name] = str(value)
        elif value is not None:
            table[item.name] = list(value) if isinstance(value, tuple) else value
    return table


def dumps(config: Config) -> str:
    """The TOML text of a configuration, its paths absolute; `overlay_run` gives the same configuration back."""
    return tomli_w.dumps(_each_path(to_table(config), config, lambda path: str(path.absolute())))


def read_table(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises `UserError` if it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configuration: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not a TOML file: {error}", where=str(path)) from error
    except RecursionError:
        raise UserError("nested too deeply to be a configuration", where=str(path)) from None


# Settings that once had another name.
RENAMED = {
    "drpl.posterior": "detect.posterior",
    "drpl.track_augment": "detect.augment",
    "drpl.track_passes": "detect.passes",
}


def _each_path(table: dict[str, Any], config: Any, change: Callable[[Path], str]) -> dict[str, Any]:
    """A table with the values of fields that are paths changed."""
    hints = typing.get_type_hints(type(config), include_extras=False)
    changed = dict(table)
    for key, value in table.items():
        if isinstance(value, dict) and dataclasses.is_dataclass(getattr(config, key, None)):
            changed[key] = _each_path(value, getattr(config, key), change)
        elif isinstance(value, str) and Path in (hints.get(key), *typing.get_args(hints.get(key))):
            changed[key] = change(Path(value))
    return changed


def _meant_in(folder: Path) -> Callable[[Path], str]:
    """A relative path in a file means what it means where the file lies; or, if there is nothing, where we are."""

    def resolve(path: Path) -> str:
        there = folder / path  # os.path: also a name that no file could have is only one that is not there
        return str(there if os.path.exists(there) or not os.path.exists(path) else path)

    return resolve


def overlay_run(base: Config, table: dict[str, Any], *, where: str) -> Config:
    """`base`, which has the settings of one method, with the values of a file that may hold those of several.

    What stands there for another method is for that method's runs. A relative path means what it means in the folder of
    the file `where`, if something is there. Raises `UserError` for unknown keys, wrong types and
    values that cannot be.
    """
    from fastdrpl.methods import METHODS

    own = {item.name for item in dataclasses.fields(base)}
    kept = {key: value for key, value in _renamed(table).items() if key in own or key not in METHODS}
    return overlay(base, _each_path(kept, base, _meant_in(Path(where).parent)), where=where)


def _renamed(table: dict[str, Any]) -> dict[str, Any]:
    """The table with settings under their present names."""
    moved = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for old, new in RENAMED.items():
        (section, field), (new_section, new_field) = old.split("."), new.split(".")
        if isinstance(moved.get(section), dict) and field in moved[section]:
            moved.setdefault(new_section, {}).setdefault(new_field, moved[section].pop(field))
    return moved


def overlay(base: Settings, table: dict[str, Any], *, where: str, prefix: str = "") -> Settings:
    """`base` with the values of a table in place of its own; every other field stays as it is."""
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in hints:
            raise UserError(f"unknown key {name!r}{nearest(key, hints, prefix)}", where=where)
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{name!r} must be a table, not {value!r}", where=where)
            changes[key] = overlay(current, value, where=where, prefix=f"{name}.")
        else:
            changes[key] = _convert(value, hints[key], name, where)
    return typing.cast(Settings, dataclasses.replace(typing.cast(Any, base), **changes))


def _convert(value: Any, hint: Any, name: str, where: str) -> Any:
    """A TOML value as the type that a field declares."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert(value, arguments[0], name, where)
    if origin in (typing.Union, types.UnionType):  # only `X | None` occurs, and TOML has no None
        return _convert(value, arguments[0], name, where)
    if origin is typing.Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
        text = f"{name} = {value!r}{nearest(str(value), map(str, arguments))}"
        raise UserError(text, where=where, fix=f"one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_convert(item, arguments[0], name, where) for item in value)
    elif hint is Path and isinstance(value, str):
        if value:
            return Path(value)
        raise UserError(f"{name} is empty", where=where, fix="give a path, or leave it out")
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise UserError(f"{name} is {value}", where=where, fix="give a finite number")
    elif type(value) is hint:  # exact: true is no whole number
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise UserError(f"{name} = {value!r} is not of type {wanted}", where=where)
