"""Settings: frozen dataclasses whose fields carry their default, their range and where the number comes from.

The text below a field is its help on the command line. Imports no torch.
"""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdrpl.errors import UserError

POSITIVE = (1, 2**31 - 1)
COUNT = (0, 2**31 - 1)
SHARE = (0.0, 1.0)
WEIGHT = (0.0, 1e6)
ALPHA = (1e-3, 1e6)  # of a beta distribution
NAME_LIMIT, PATH_LIMIT = 255, 4096  # bytes of a file's name and of a path, the closing zero included


def setting(default: Any, source: str = "", within: tuple[float, float] | None = None) -> Any:
    """A field of a settings class: its default, the source of that number, and smallest and largest value."""
    metadata = {"source": source} if within is None else {"source": source, "within": within}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a stage lasts and when its learning rate drops."""

    epochs: int
    """Epochs."""
    milestones: tuple[int, ...] = ()
    """Epochs (the first is 1) in which the learning rate has dropped already."""

    def scaled(self, factor: float) -> "Schedule":
        """The same shape over `factor` times as many epochs; the first always runs at the full rate."""
        return Schedule(
            epochs=scale_epoch(self.epochs, factor),
            milestones=tuple(max(2, scale_epoch(milestone, factor)) for milestone in self.milestones),
        )


def scale_epoch(epoch: int, factor: float) -> int:
    """An epoch number on a schedule that is `factor` times as long, at least 1."""
    return max(1, round(epoch * factor))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of nested dataclasses under its dotted name, in order."""
    return {name: value for name, value, _ in walk(config, prefix)}


def sources(config: Any, prefix: str = "") -> dict[str, str]:
    """Where the number of every field comes from, by dotted name; empty where a field does not change a result."""
    return {name: source for name, _, source in walk(config, prefix)}


def walk(config: Any, prefix: str = "", source: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted name, value, source) of every field; a field of a nested class may take its source from above."""
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        found = item.metadata.get("source") or source
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{name}.", found)
        else:
            yield name, value, found


def check(config: Any, prefix: str = "") -> None:
    """Refuse numbers outside their range and schedules that cannot be; raises `UserError` with the field's name."""
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        if isinstance(value, Schedule):
            _check_schedule(value, name)
        elif dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        elif isinstance(value, Path):
            _check_path(value, name)
        elif "within" in item.metadata:
            low, high = item.metadata["within"]
            if not low <= value <= high:  # false for nan as well
                raise UserError(
                    f"--{name} is {value}, out of range", fix=f"give a number from {low:g} to {high:g}"
                )


def _check_path(path: Path, name: str) -> None:
    """Refuse what no file system could have."""
    longest = max(map(len, map(os.fsencode, path.parts)), default=0)
    if "\0" in str(path) or longest > NAME_LIMIT or len(os.fsencode(path)) >= PATH_LIMIT:
        raise UserError(
            f"--{name} cannot be the name of a file: {_shorten(str(path))!r}",
            fix=f"give a path of at most {PATH_LIMIT - 1} bytes, each name in it of at most {NAME_LIMIT}",
        )


def _shorten(text: str) -> str:
    """The first 60 characters of a longer text."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_schedule(schedule: Schedule, name: str) -> None:
    epochs, milestones = schedule.epochs, schedule.milestones
    if not 1 <= epochs < 2**31:
        raise UserError(f"--{name}.epochs is {epochs}, out of range", fix="give a whole number from 1 up")
    if any(milestone < 1 for milestone in milestones) or list(milestones) != sorted(milestones):
        raise UserError(f"--{name}.milestones is {milestones}", fix="give epochs from 1 up, in rising order")
