"""What `fastdrpl fix` prints: what was decided, which labels changed, and what the next run made of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fastdrpl.console import say
from fastdrpl.errors import UserError
from fastdrpl.fixing.changes import Changes, PairChanges, TruthChanges, changes, earlier_run
from fastdrpl.fixing.decisions import ACCEPT, BY, DROP, KEEP, RELABEL, UNDECIDED, Decisions, corrected
from fastdrpl.fixing.judged import Judged

_PAIRS = 8


def print_decisions(run: Judged, decisions: Decisions, lines: list[str]) -> None:
    """Print to standard output: counts by decision, the most frequent changes, the noise where it is known, `lines`."""
    table = _table("", "samples", *BY)
    for name, decision in (("accepted", ACCEPT), ("relabelled", RELABEL), ("kept", KEEP), ("dropped", DROP)):
        counts = [decisions.count(decision), *(decisions.count(decision, by) for by in range(len(BY)))]
        table.add_row(name, *(f"{count:,}" if count else "-" for count in counts))
    given, label = run.labels.given, decisions.label
    changed = (label != given) & (decisions.decision != DROP)
    left = int((run.suspect & (decisions.decision == UNDECIDED)).sum())
    parts: list[Any] = [
        table,
        Text(
            f"\n{changed.sum():,} of {len(run):,} labels change, {decisions.count(DROP):,} samples are dropped; "
            f"{left:,} of {run.suspect.sum():,} suspects stay undecided",
            style="bold",
        ),
    ]
    names = run.class_names
    pairs = Counter(zip(given[changed].tolist(), label[changed].tolist(), strict=True))
    if pairs:
        parts += _pairs([(names[a], names[b], n) for (a, b), n in pairs.most_common(_PAIRS)], len(pairs))
    noise = _noise(run, decisions)
    parts += [Text(line) for line in ["", *([noise] if noise else []), *lines]]
    Console(highlight=False).print(Panel(Group(*parts), title="fastdrpl · fix"))


def print_progress(run: Path) -> None:
    """Print what changed since the run that the labels of this one come from, if there is such a run."""
    found = earlier_run(run)
    if found is not None and found.folder is None:
        say(f"no comparison with the run before: {found.missing}")
    elif found is not None and found.folder is not None:
        try:
            print_changes(changes(found.folder, run))
        except UserError as error:  # of the earlier run: this one is finished
            say(f"no comparison with the run before: {error.what} ({error.where})")


def print_changes(found: Changes) -> None:
    """Print to standard output what changed between two runs."""
    table = _table("", "before", "after")
    table.add_row("samples", f"{found.samples_before:,}", f"{found.samples_after:,}")
    table.add_row("suspects", f"{found.suspects.before:,}", f"{found.suspects.after:,}")
    if found.truth is not None:
        table.add_row("wrong labels", f"{found.truth.wrong_before:,}", f"{found.truth.wrong_after:,}")
    table.add_row("accuracy, last", _percent(found.last_before), _percent(found.last_after))
    table.add_row("accuracy, best", _percent(found.best_before), _percent(found.best_after))
    suspects = found.suspects
    parts: list[Any] = [
        table,
        Text(
            f"\n{found.relabelled:,} labels changed, {found.dropped:,} samples dropped"
            + (f", {found.added:,} added" if found.added else "")
        ),
        Text(
            f"of {suspects.before:,} suspects {suspects.resolved:,} no longer look wrong, {suspects.dropped:,} were "
            f"dropped, {suspects.stayed:,} still do; {suspects.new:,} are new"
        ),
    ]
    if found.truth is not None:
        parts.append(Text(_say_truth(found.truth)))
    if found.pairs:
        shown: list[PairChanges] = list(found.pairs[:_PAIRS])
        parts += _pairs([(pair.before, pair.after, pair.samples) for pair in shown], len(found.pairs))
    title = f"fastdrpl · {found.before} -> {found.after}"
    Console(highlight=False).print(Panel(Group(*parts), title=Text(title)))


def _say_truth(truth: TruthChanges) -> str:
    line = f"of the changed labels {truth.corrected:,} were wrong and are right now, "
    line += f"{truth.still_wrong:,} are wrong in another way, {truth.spoiled:,} were right and are wrong now"
    if truth.dropped_wrong or truth.dropped_right:
        line += f"; {truth.dropped_wrong:,} of the dropped ones were wrong, {truth.dropped_right:,} right"
    return line


def _noise(run: Judged, decisions: Decisions) -> str:
    """A line on how many labels are wrong before and after, where that is known."""
    before, after = run.labels.is_noisy, corrected(run, decisions).is_noisy
    if not before.known.any() or not after.known.any():
        return ""
    was, now = (np.sum(each.noisy) / np.sum(each.known) for each in (before, after))
    return f"wrong labels, by the truth that is known: {was:.2%} before, {now:.2%} after"


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    return table


def _pairs(pairs: list[tuple[str, str, int]], total: int) -> list[Any]:
    table = _table("from", "to", "samples")
    table.columns[1].justify = "left"
    for old, new, count in pairs:
        table.add_row(Text(old), Text(new), f"{count:,}")
    more = f" (the first {len(pairs)} of {total:,} pairs)" if total > len(pairs) else ""
    return [Text(f"\nChanged labels{more}", style="bold"), table]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
