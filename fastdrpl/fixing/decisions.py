"""What becomes of each sample: the decisions of a person first, then what is sure enough to be decided by a number."""

from dataclasses import dataclass

import numpy as np

from fastdrpl.errors import UserError
from fastdrpl.fixing.fix_list import DECISIONS, Fix, as_arrays
from fastdrpl.fixing.judged import Judged
from fastdrpl.labels import Labels

UNDECIDED, ACCEPT, KEEP, DROP, RELABEL = -1, *range(4)  # positions in DECISIONS
BY = ("list", "--accept", "--drop")  # who decided


@dataclass(frozen=True, eq=False)
class Decisions:
    """For each of the N samples of a run."""

    decision: np.ndarray  # (N,) int64: UNDECIDED, or a position in DECISIONS
    by: np.ndarray  # (N,) int64: position in BY, -1 where undecided
    label: np.ndarray  # (N,) int64: the class that it has from now on

    @property
    def kept(self) -> np.ndarray:
        """(n,) sample indices that are not dropped, ascending."""
        return np.flatnonzero(self.decision != DROP)

    def count(self, decision: int, by: int | None = None) -> int:
        """How many samples were decided so, by anyone or by one of BY."""
        chosen = self.decision == decision
        return int((chosen if by is None else chosen & (self.by == by)).sum())


def decide(run: Judged, fixes: dict[int, Fix], accept: float | None, drop: float | None) -> Decisions:
    """The list decides first; of the suspects it says nothing about, `accept` takes what it can, then `drop`.

    `accept`: suspects whose label is wrong and whose suggestion is right, each with at least this probability;
    where the suggestion is the given label, they keep it. `drop`: suspects whose label is wrong with at least this
    probability. Raises `UserError` where the run does not know how sure its suggestions are.
    """
    if accept is not None and np.isnan(run.p_suggested).any():
        raise UserError(
            "this run is of an earlier version, which did not keep how sure the network is of its suggestions",
            where=str(run.folder.path),
            fix="decide with --fixes, or train again",
        )
    decision = np.full(len(run), UNDECIDED)
    by = np.full(len(run), -1)
    label = run.labels.given.copy()
    index, what, to = as_arrays(fixes)
    decision[index], by[index], label[index] = what, 0, to
    if accept is not None:
        sure = (run.p_noisy >= accept) & (run.p_suggested >= accept)
        chosen = run.suspect & (decision == UNDECIDED) & sure
        decision[chosen] = np.where(run.suggested[chosen] == label[chosen], KEEP, ACCEPT)
        by[chosen], label[chosen] = 1, run.suggested[chosen]
    if drop is not None:
        chosen = run.suspect & (decision == UNDECIDED) & (run.p_noisy >= drop)
        decision[chosen], by[chosen] = DROP, 2
    return Decisions(decision, by, label)


def corrected(run: Judged, decisions: Decisions) -> Labels:
    """The labels after the decisions, without the dropped samples; what is right stays as it was known."""
    kept, old = decisions.kept, run.labels
    return Labels(decisions.label[kept], old.truth[kept], old.source_row[kept], old.class_names)


def word(decision: int) -> str:
    """The decision as it is written."""
    return DECISIONS[decision]
