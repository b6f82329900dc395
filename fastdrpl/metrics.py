"""What a run measures, epoch by epoch: the journal, metrics.csv beside it, and the trackers, all in step."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastdrpl.files import write_atomic
from fastdrpl.folder import RunFolder
from fastdrpl.journal import Journal, read_journal
from fastdrpl.tracking import Trackers

_FIRST = ("step", "stage", "epoch", "lr", "loss", "agreement", "test_accuracy", "seconds")


class Metrics:
    """The journal of a run, and what follows it. Used as `Journal` is; only rank 0 has one.

    metrics.csv is replaced as a whole after each epoch, so that a reader never sees half a row, or a row under the
    header of another stage. `step` counts the epochs of the whole run from 1.
    """

    def __init__(self, folder: RunFolder, trackers: Trackers):
        self._journal, self._csv, self._trackers = Journal(folder.metrics), folder.metrics_csv, trackers
        self._records = read_journal(folder.metrics)

    def append(self, record: dict[str, Any]) -> None:
        """Write an epoch down. Raises the errors of `Journal.append`; a tracker that fails is named once, no more."""
        self._journal.append(record)
        self._records = read_journal(self._journal.path)
        write_csv(self._csv, self._records)
        self._trackers.log(self._records[-1], len(self._records))

    def truncate(self, length: int) -> None:
        """Cut everything back to a length that `sync` returned, and begin or go on with the trackers from there."""
        self._journal.truncate(length)
        self._records = read_journal(self._journal.path)
        write_csv(self._csv, self._records)
        self._trackers.start(len(self._records) + 1)

    def sync(self) -> int:
        """As `Journal.sync`."""
        return self._journal.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._trackers.finish()
        finally:
            self._journal.close()


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """The records of a journal as a table: one header, columns of later stages behind those of all, null as nothing."""
    columns = dict.fromkeys(_FIRST)
    for record in records:
        columns |= dict.fromkeys(record)
    text = io.StringIO()
    rows = csv.DictWriter(text, list(columns), lineterminator="\n")
    rows.writeheader()
    rows.writerows({"step": step, **record} for step, record in enumerate(records, start=1))
    write_atomic(path, text.getvalue().encode())
