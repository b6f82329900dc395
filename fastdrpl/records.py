"""What a run remembers of itself beside its tensors: where it stands, and what result.json says of each stage."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """The next thing to do: step `step` (from 0) of epoch `epoch` (from 1) of stage `stage` (from 0).

    An epoch beyond the stage's last: its training is done and its detection is not.
    """

    stage: int = 0
    epoch: int = 1
    step: int = 0


@dataclass
class StageRecord:
    """What result.json says of a stage; `seconds` and `images` add up over interruptions."""

    name: str
    epochs: int
    seconds: float = 0.0
    images: int = 0
    best: float | None = None
    last: float | None = None
    detection: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
