"""The methods: a file each, and a line in the table below.

A method's file has `stages(settings, config)`, which returns its stages; if it has settings, a frozen dataclass
`Settings`; and if they differ between recipes, `RECIPES`: recipe -> source -> field -> value. Its docstring begins with
a line that says what it is. A file of the user's own (`--method path/to/file.py`) is built in the same way.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.names import nearest
from fastdrpl.settings import sources
from fastdrpl.stages import Stage

METHODS = (
    "ce",
    "mixup",
    "forward",
    "joint",
    "gce",
    "bootstrap",
    "dmi",
    "pencil",
    "dividemix",
    "two_stage",
    "nlnl",
    "incv",
    "drpl",
)

Changes = Mapping[str, Mapping[str, Mapping[str, Any]]]  # recipe -> source -> field -> value


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True)
class Method:
    """What a method's file says."""

    name: str  # as in --method
    section: str  # its settings are flags --<section>.<field>
    summary: str
    settings: type
    stages: Callable[[Any, Config], tuple[Stage, ...]]
    changes: Changes
    digest: str = ""  # sha256 of a file of the user's own

    def settings_for(self, recipe: str) -> Any:
        """The settings with what a recipe changes."""
        changed = {
            name: value for found in self.changes.get(recipe, {}).values() for name, value in found.items()
        }
        return self.settings(**changed)

    def sources_for(self, recipe: str) -> dict[str, str]:
        """Where the number of each field comes from, by dotted name."""
        found = sources(self.settings_for(recipe), f"{self.section}.")
        for source, fields in self.changes.get(recipe, {}).items():
            for name in fields:
                whole = f"{self.section}.{name}"
                found |= {key: source for key in found if key == whole or key.startswith(f"{whole}.")}
        return found


@functools.cache
def load_method(name: str) -> Method:
    """A method by its name or by the path of its file. Raises `UserError` for one that there is not, or is broken."""
    if name.endswith(".py") or "/" in name or "\\" in name:
        return _from_file(Path(name))
    if name not in METHODS:
        raise UserError(
            f"unknown method {name!r}{nearest(name, METHODS)}",
            where="--method",
            fix=f"one of {', '.join(METHODS)}, or the path of a .py file",
        )
    return _read(importlib.import_module(f"fastdrpl.methods.{name}"), name, name, "")


def _read(module: ModuleType, name: str, section: str, digest: str) -> Method:
    return Method(
        name=name,
        section=section,
        summary=(module.__doc__ or section).strip().splitlines()[0].rstrip("."),
        settings=getattr(module, "Settings", NoSettings),
        stages=module.stages,
        changes=getattr(module, "RECIPES", {}),
        digest=digest,
    )


def _from_file(path: Path) -> Method:
    """The method in a file of the user's own; what is wrong with it is said with its name and line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the method: {error.strerror}", where=str(path), fix="give the path of a .py file"
        ) from error
    section = path.stem
    taken = {item.name for item in dataclasses.fields(Config)}
    if not section.isidentifier() or section in taken or section in METHODS:
        raise UserError(
            f"the file's name {section!r} cannot name a section of settings",
            where=str(path),
            fix="call it by a word that is no method, no flag and a Python name, such as my_method.py",
        )
    specification = importlib.util.spec_from_file_location(f"fastdrpl_method_{section}", path)
    if specification is None or specification.loader is None:
        raise UserError("not a Python file", where=str(path), fix="its name must end in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise UserError(_place(error, path), where=str(path), fix="mend the file") from error
    if not callable(getattr(module, "stages", None)):
        raise UserError(
            "the file has no function `stages`",
            where=str(path),
            fix="add `def stages(settings, config)` that returns a tuple of Stage (docs/own-method.md)",
        )
    settings = getattr(module, "Settings", NoSettings)
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise UserError(
            "`Settings` is no dataclass", where=str(path), fix="write @dataclass(frozen=True, kw_only=True)"
        )
    return _read(module, str(path.resolve()), section, hashlib.sha256(content).hexdigest())


def where_in(method: Method, error: Exception) -> str:
    """An error with the line of the method's file where it arose, if it arose there."""
    return _place(error, Path(method.name))


def arose_in(method: Method, error: Exception) -> bool:
    """Whether a line of the method's file is where an error came from, or led to it."""
    return bool(_lines(error, Path(method.name)))


def _lines(error: Exception, path: Path) -> list[int | None]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]


def _place(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = _lines(error, path)
    return f"line {lines[-1] if lines else '?'}: {type(error).__name__}: {error}"
