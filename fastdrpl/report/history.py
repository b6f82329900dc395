"""How the training went, epoch by epoch."""

from dataclasses import dataclass
from typing import Any

from fastdrpl.folder import RunFolder
from fastdrpl.journal import read_journal


@dataclass(frozen=True)
class EpochFacts:
    """An epoch; accuracies are fractions, None where nothing was measured."""

    stage: str
    epoch: int  # of the stage, from 1
    lr: float | None
    loss: float | None
    agreement: float | None  # with the targets that it was trained on
    test_accuracy: float | None
    seconds: float  # since the stage began


def read_history(folder: RunFolder) -> tuple[EpochFacts, ...]:
    """The epochs that a run, finished or not, has behind it. Raises `DataError` for a damaged journal."""
    return tuple(_epoch(record) for record in read_journal(folder.metrics))


def _epoch(record: dict[str, Any]) -> EpochFacts:
    return EpochFacts(
        stage=str(record["stage"]),
        epoch=int(record["epoch"]),
        lr=record.get("lr"),
        loss=record.get("loss"),
        agreement=record.get("agreement"),
        test_accuracy=record.get("test_accuracy"),
        seconds=float(record.get("seconds") or 0.0),
    )
