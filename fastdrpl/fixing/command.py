"""`fastdrpl fix RUN`: its settings, and what it does with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from fastdrpl.errors import UserError

if TYPE_CHECKING:
    from fastdrpl.fixing.judged import Judged


@dataclass(frozen=True, kw_only=True)
class FixCommand:
    """Decide about the suspects of a finished run and write corrected labels. The source is never touched."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    fixes: Path | None = None
    """fixes.csv: what was decided in the report's page, or by hand. It goes before --accept and --drop."""
    accept: float | None = None
    """Accept the suggestion for suspects whose label is wrong with at least this probability (p_noisy) and whose
    suggestion is right with at least this probability (p_suggested)."""
    drop: float | None = None
    """Drop the suspects whose label is wrong with at least this probability (p_noisy), unless they are decided
    already."""
    out: Path | None = None
    """labels.csv to write, for `fastdrpl train ... --labels labels.csv`. Without any --out nothing is written."""
    out_folder: Path | None = None
    """Data prepared from a folder: a corrected copy of the image folder to make."""
    out_table: Path | None = None
    """Data prepared from a table: a corrected copy of the table to write, with the columns it has."""
    link: Literal["hard", "symbolic", "copy"] = "hard"
    """How --out_folder gets its images. hard takes no space, and an image that is edited later changes in both
    folders; symbolic needs the source to stay where it is; copy takes as much space again."""
    source: Path | None = None
    """Where the source of the data is now, if it has moved since it was prepared."""
    data: Path | None = None
    """Where the prepared data are now, if they have moved since the run."""
    path_column: str | None = None
    """--out_table: the column of paths, if `prepare` was told another way than by --path-column."""
    label_column: str | None = None
    """--out_table: the column of labels, likewise."""
    overwrite: bool = False
    """Replace files that are there. Folders are never replaced."""
    compare: Path | None = None
    """Only print what changed between this run and another, the one of them that was trained on the labels of the
    other being the later."""

    def __post_init__(self) -> None:
        for name, value in (("accept", self.accept), ("drop", self.drop)):
            if value is not None and not 0 <= value <= 1:  # true for nan as well
                raise UserError(f"--{name} {value} is no probability", fix="give a number from 0 to 1")
        if self.compare is None and self.fixes is None and self.accept is None and self.drop is None:
            raise UserError(
                "nothing is decided", fix="give --fixes fixes.csv, --accept 0.9 or --drop 0.9 (or several)"
            )


def fix(command: FixCommand) -> int:
    """Decide, write what is asked for, print it. Returns the exit code.

    Raises `UserError` and `DataError`; what may be refused is checked before anything is written.
    """
    from fastdrpl.fixing.decisions import decide
    from fastdrpl.fixing.fix_list import read_fixes
    from fastdrpl.fixing.judged import read_judged
    from fastdrpl.fixing.outputs import write_outputs
    from fastdrpl.fixing.summary import print_decisions

    if command.compare is not None:
        return _compare(command.run, command.compare)
    run = read_judged(command.run)
    fixes = {} if command.fixes is None else read_fixes(command.fixes, run)
    decisions = decide(run, fixes, command.accept, command.drop)
    lines = write_outputs(command, run, decisions)
    for name, by in (("accept", 1), ("drop", 2)):
        wanted = getattr(command, name)
        if wanted is not None and not (decisions.by == by).any():
            lines.append(f"--{name} {wanted:g} decided nothing: {_highest(run, name)}")
    print_decisions(run, decisions, lines)
    return 0


def _highest(run: "Judged", name: str) -> str:
    """How sure a run is at most of its suspects."""
    if not run.suspect.any():
        return "the run has no suspects"
    sure = run.p_noisy[run.suspect]
    if name == "accept":
        sure = np.minimum(sure, run.p_suggested[run.suspect])
    return f"of the suspects that are left none is as sure; the highest of all suspects is {sure.max():.4f}"


def _compare(run: Path, other: Path) -> int:
    from fastdrpl.fixing.changes import changes, in_order
    from fastdrpl.fixing.summary import print_changes

    print_changes(changes(*in_order(run, other)))
    return 0
