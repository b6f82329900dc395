"""What the ways out are made of: a finished run, of which everything is read once, when it is asked for."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow

from fastdrpl.folder import RunFolder
from fastdrpl.report.facts import RunFacts, facts_of
from fastdrpl.report.table import read_table

if TYPE_CHECKING:
    from fastdrpl.opening import OpenRun


@dataclass(frozen=True)
class Finished:
    """A finished run to be handed on. Its properties raise `UserError` or `DataError` for what is not as it was."""

    folder: RunFolder
    moved: Path | None  # where the data are now

    @functools.cached_property
    def table(self) -> pyarrow.Table:
        """labels.parquet."""
        return read_table(self.folder.labels)

    @functools.cached_property
    def facts(self) -> RunFacts:
        return facts_of(self.folder, self.table, suspects=0)

    @functools.cached_property
    def opened(self) -> "OpenRun":
        """The network, and the data as they are asked for; a table needs no torch."""
        from fastdrpl.opening import open_run

        return open_run(self.folder.path, data=self.moved)
