"""What a checkpoint of a run holds beside its tensors, and finding the one to continue from."""

import dataclasses
from typing import Any

from fastdrpl.checkpoint import Checkpoint, list_checkpoints, newest_checkpoint, read_checkpoint, sequence_of
from fastdrpl.console import warn
from fastdrpl.folder import RunFolder
from fastdrpl.machine import Machine


class NoJournal:
    """What ranks other than the first write to."""

    def append(self, record: dict[str, Any]) -> None: ...
    def truncate(self, length: int) -> None: ...
    def sync(self) -> int:
        return 0

    def __enter__(self) -> "NoJournal":
        return self

    def __exit__(self, *exception: object) -> None: ...


@dataclasses.dataclass
class Position:
    """The next thing to do: step `step` (from 0) of epoch `epoch` (from 1) of stage `stage` (from 0)."""

    stage: int = 0
    epoch: int = 1
    step: int = 0


@dataclasses.dataclass
class StageRecord:
    """What result.json says of a stage; `seconds` and `images` add up over interruptions."""

    name: str
    epochs: int
    seconds: float = 0.0
    images: int = 0
    best: float | None = None
    last: float | None = None
    detection: dict[str, Any] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


def find_checkpoint(run: RunFolder, machine: Machine, identity: dict[str, str]) -> Checkpoint | None:
    """The newest checkpoint that verifies for rank 0; the others read the same one, or fail."""
    folder, number = run.checkpoints, 0
    found = None
    if machine.main:
        found = newest_checkpoint(folder, identity=identity, on_skip=lambda error: warn(str(error)))
        number = 0 if found is None else sequence_of(found.path) + 1
    number = machine.highest(number)
    if number and found is None:
        path = next(path for path in list_checkpoints(folder) if sequence_of(path) == number - 1)
        found = read_checkpoint(path, identity=identity)
    return found
