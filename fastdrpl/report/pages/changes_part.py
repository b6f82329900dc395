"""What a run that was trained on corrected labels has changed."""

from fastdrpl.fixing.changes import Changes, TruthChanges
from fastdrpl.report.pages.class_parts import bar
from fastdrpl.report.pages.markup import Markup, element, join, name_of
from fastdrpl.report.words import percent

PAIRS = 12


def changes_part(found: Changes | None, without: str) -> Markup:
    """Before and after; or why nothing can be said."""
    if found is None:
        return element("p", f"There is no comparison with the run before: {without}.")
    rows = [
        ("samples", f"{found.samples_before:,}", f"{found.samples_after:,}"),
        ("labels that look wrong", f"{found.suspects.before:,}", f"{found.suspects.after:,}"),
        ("test accuracy, last", percent(found.last_before), percent(found.last_after)),
        ("test accuracy, best", percent(found.best_before), percent(found.best_after)),
    ]
    if found.truth is not None:
        rows.insert(
            2, ("labels that are wrong", f"{found.truth.wrong_before:,}", f"{found.truth.wrong_after:,}")
        )
    head = [element("td"), *(element("th", name, scope="col", class_="n") for name in ("before", "after"))]
    body = [
        element(
            "tr", element("th", what, scope="row"), *(element("td", value, class_="n") for value in values)
        )
        for what, *values in rows
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return join(
        element("p", "Trained on labels that were corrected after the run ", name_of(found.before), "."),
        element("ul", *(element("li", sentence) for sentence in _sentences(found))),
        element("div", table, _pairs(found), class_="beside"),
    )


def _sentences(found: Changes) -> list[str]:
    suspects = found.suspects
    said = [
        f"{found.relabelled:,} labels were changed, {found.dropped:,} samples dropped"
        + (f", {found.added:,} added." if found.added else "."),
        f"Of {suspects.before:,} suspects {suspects.resolved:,} no longer look wrong, {suspects.dropped:,} were "
        f"dropped, {suspects.stayed:,} still do; {suspects.new:,} are new.",
    ]
    return said if found.truth is None else [*said, _truth(found.truth)]


def _truth(truth: TruthChanges) -> str:
    return (
        f"The right labels are known: {truth.corrected:,} wrong labels were put right, {truth.still_wrong:,} changed "
        f"into another wrong one, {truth.spoiled:,} right ones spoiled; {truth.dropped_wrong:,} wrong and "
        f"{truth.dropped_right:,} right ones were dropped."
    )


def _pairs(found: Changes) -> Markup | None:
    if not found.pairs:
        return None
    top = found.pairs[0].samples
    rows = [
        element(
            "tr",
            element("td", name_of(pair.before), " → ", name_of(pair.after)),
            element("td", bar(pair.samples / top, f"{pair.samples:,}"), class_="bar"),
        )
        for pair in found.pairs[:PAIRS]
    ]
    return element(
        "table", element("caption", "most frequent changes"), element("tbody", *rows), class_="pairs"
    )
