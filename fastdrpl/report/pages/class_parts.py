"""Which classes have doubtful labels, and which are mixed up."""

import numpy as np

from fastdrpl.report.pages.markup import Markup, element, join, name_of
from fastdrpl.report.run_page import Judged
from fastdrpl.report.suspects import PairFacts, suspects_per_class

FIRST_CLASSES, MOST_CLASSES = 12, 200
CELLS = 30  # classes up to which every pair has a cell
PAIRS = 10
LEVELS = 8


def classes_table(judged: Judged, names: tuple[str, ...]) -> Markup:
    """A row per class: samples, suspects, their share, what they look like; those with the largest share first."""
    suspects = suspects_per_class(judged.pairs, len(names))
    share = suspects / np.maximum(judged.given, 1)
    order = np.argsort(-share, kind="stable")[:MOST_CLASSES].tolist()
    likes: dict[int, PairFacts] = {}
    for pair in judged.pairs:  # the most frequent first
        if pair.given != pair.suggested:
            likes.setdefault(pair.given, pair)
    top = float(share.max(initial=0.0)) or 1.0
    rows = [
        element(
            "tr",
            element("th", _chosen(names[k], k), scope="row"),
            element("td", f"{judged.given[k]:,}", class_="n"),
            element("td", f"{suspects[k]:,}", class_="n"),
            element("td", bar(share[k] / top, f"{share[k]:.1%}"), class_="bar"),
            element("td", _like(likes.get(k), names)),
        )
        for k in order
    ]
    head = element(
        "tr",
        element("th", "class", scope="col"),
        element("th", "samples", scope="col", class_="n"),
        element("th", "look wrong", scope="col", class_="n"),
        element("th", "share", scope="col"),
        element("th", "mostly look like", scope="col"),
    )
    more = rows[FIRST_CLASSES:]
    rest = (
        element("details", element("summary", _rest(len(more), len(names))), _table(head, more))
        if more
        else None
    )
    return join(_table(head, rows[:FIRST_CLASSES]), rest)


def _rest(listed: int, classes: int) -> str:
    more = f"the next {listed:,} classes"
    return more if FIRST_CLASSES + listed == classes else f"{more} (of {classes:,} in all)"


def _table(head: Markup, rows: list[Markup]) -> Markup:
    table = element("table", element("thead", head), element("tbody", *rows), class_="wide")
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="table of classes")


def bar(share: float, label: str) -> Markup:
    """A bar of a share of its full length, and what it says."""
    width = round(100 * share, 1)
    bar = element("rect", width=width, height=10, rx=2)
    svg = element("svg", bar, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")
    return join(svg, element("span", label))


def _like(pair: PairFacts | None, names: tuple[str, ...]) -> Markup | str:
    if pair is None:
        return "-"
    return join(_chosen(names[pair.suggested], pair.given, pair.suggested), f" ({pair.suspects:,})")


def _chosen(label: str, given: int, suggested: int | None = None) -> Markup:
    """A button that shows the suspects of a class, or of a pair."""
    written = label if isinstance(label, Markup) else name_of(label)
    return element(
        "button", written, type="button", class_="choose", data_given=given, data_suggested=suggested
    )


def mixed_up(judged: Judged, names: tuple[str, ...]) -> Markup:
    """Given x suggested, as a heat map where there are few classes; the most frequent pairs in any case."""
    apart = [pair for pair in judged.pairs if pair.given != pair.suggested]
    if not apart:
        return element("p", "No suspect looks like another class than the one it was given.")
    present = sorted({k for pair in judged.pairs for k in (pair.given, pair.suggested)})
    heat = _heat_map(judged.pairs, present, names) if len(present) <= CELLS else None
    note = (
        None
        if heat
        else element(
            "p", f"{len(present):,} classes are too many for a map: these are the most frequent pairs."
        )
    )
    pairs = _pairs(apart[: PAIRS if heat else 2 * PAIRS], apart[0].suspects, names)
    return join(note, element("div", heat, pairs, class_="beside"))


def _pairs(pairs: list[PairFacts], top: int, names: tuple[str, ...]) -> Markup:
    rows = [
        element(
            "tr",
            element("td", _pair(pair, names)),
            element("td", bar(pair.suspects / top, f"{pair.suspects:,}"), class_="bar"),
        )
        for pair in pairs
    ]
    caption = element("caption", "most frequent pairs")
    return element("table", caption, element("tbody", *rows), class_="pairs")


def _pair(pair: PairFacts, names: tuple[str, ...]) -> Markup:
    label = join(name_of(names[pair.given]), " → ", name_of(names[pair.suggested]))
    return _chosen(label, pair.given, pair.suggested)


def _heat_map(pairs: tuple[PairFacts, ...], present: list[int], names: tuple[str, ...]) -> Markup:
    counts = {(pair.given, pair.suggested): pair.suspects for pair in pairs}
    top = max(count for (given, suggested), count in counts.items() if given != suggested)
    head = element(
        "tr",
        element("td", "given ↓ looks like →", class_="corner"),
        *(element("th", element("span", name_of(names[k])), scope="col") for k in present),
    )
    rows = [
        element(
            "tr",
            element("th", name_of(names[given]), scope="row"),
            *(_cell(counts.get((given, k), 0), top, given, k, names) for k in present),
        )
        for given in present
    ]
    table = element("table", element("thead", head), element("tbody", *rows), class_="heat")
    label = "suspects by given class (rows) and suggested class (columns)"
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _cell(count: int, top: int, given: int, suggested: int, names: tuple[str, ...]) -> Markup:
    if given == suggested:
        return element(
            "td", f"{count:,}" if count else "", class_="same", title="looks like what it was given"
        )
    if not count:
        return element("td")
    level = max(1, min(LEVELS, -(-LEVELS * count // top)))
    return element(
        "td",
        f"{count:,}",
        class_=f"q{level}",
        data_given=given,
        data_suggested=suggested,
        title=f"given {names[given]}, looks like {names[suggested]}: {count:,}",
    )
