"""The suspects as a grid to decide on: what the page's script is given, and the controls around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow

from fastdrpl.errors import DataError, UserError
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.report.pages.markup import Markup, element, island, join, safe_json
from fastdrpl.report.run_page import Judged, RunPage
from fastdrpl.report.thumbnails import choose_size, thumbnails

LEAST = 60  # bytes of a suspect without its thumbnail, at least
_BESIDE = 110  # the same, about


@dataclass(frozen=True)
class Shown:
    """The suspects that a page holds: rows for its script, and why they have no thumbnails if they have none."""

    rows: list[list[Any]]
    without_images: str


def fit_suspects(page: RunPage, judged: Judged, budget: int) -> Shown:
    """As many of the most doubtful as fit into `budget` bytes, with thumbnails as large as that allows."""
    first = judged.suspects.slice(0, max(0, budget // LEAST))
    if page.data is None:
        return Shown(_fill(first, repeat(None), budget), page.without_data)
    try:
        return Shown(_fill(first, _thumbnails(page.data, first, budget), budget), "")
    except (DataError, UserError) as error:
        return Shown(_fill(first, repeat(None), budget), f"{error.what} ({error.where})")


def _thumbnails(data: Dataset, suspects: pyarrow.Table, budget: int) -> Iterator[str]:
    split, rows = data.split("train"), suspects["row"].to_numpy().astype(np.int64)
    return thumbnails(split, rows, choose_size(split, rows, budget, _BESIDE))


def _fill(suspects: pyarrow.Table, pictures: Iterator[str | None], budget: int) -> list[list[Any]]:
    """index, file, given, suggested, p_suggested, p_noisy, score, rank, truth, picture of each, while there is room."""
    names = ("index", "file", "given", "suggested", "p_suggested", "p_noisy", "score", "rank", "truth")
    columns = [
        suspects[name].to_pylist() if name in suspects.column_names else [None] * len(suspects)
        for name in names
    ]
    rows: list[list[Any]] = []
    for values in zip(*columns, strict=True):
        row = [round(value, 4) if isinstance(value, float) else value for value in (*values, next(pictures))]
        budget -= len(safe_json(row)) + 1
        if budget < 0:
            break
        rows.append(row)
    return rows


def suspects_part(page: RunPage, judged: Judged, shown: Shown) -> Markup:
    """Controls, an empty grid, and the data that the script fills it from."""
    total = len(judged.suspects)
    if not total:
        return element("p", "No label looks wrong.")
    data = {
        "hash": judged.facts.hash,
        "classes": page.provenance.class_names,
        "total": total,
        "rows": shown.rows,
    }
    without = f" Without images: {shown.without_images}." if shown.without_images else ""
    count = f"The {len(shown.rows):,} most doubtful of {total:,} are shown: more do not fit into the size of the page"
    said = f"All {total:,} suspects are shown." if len(shown.rows) == total else f"{count} (--max_mb)."
    return join(
        element("p", f"{said} The most doubtful first.{without}", class_="note"),
        element(
            "noscript", element("p", "The grid needs JavaScript; everything else on this page does not.")
        ),
        _controls(),
        _help(),
        element("ol", id="grid", aria_label="suspects", class_="grid"),
        element("button", "Show more", type="button", id="more", class_="more", hidden=True),
        _dialog(),
        island("suspects-data", data),
    )


def _controls() -> Markup:
    def select(identifier: str, label: str, *options: tuple[str, str]) -> Markup:
        given = [element("option", text, value=value) for value, text in options]
        return element("label", element("span", label), element("select", *given, id=identifier))

    def button(identifier: str, label: str, class_: str = "") -> Markup:
        return element("button", label, type="button", id=identifier, class_=class_ or None)

    return element(
        "div",
        element(
            "div",
            select("by-class", "class", ("", "all classes")),
            select("by-pair", "pair", ("", "all pairs")),
            select("by-state", "state", ("", "all"), ("open", "undecided"), ("decided", "decided")),
            select(
                "order",
                "sort",
                ("rank", "most doubtful first"),
                ("sure", "surest suggestion first"),
                ("given", "by given class"),
                ("suggested", "by suggested class"),
                ("file", "by file"),
            ),
            element(
                "label",
                element("span", "file"),
                element("input", type="search", id="by-file", placeholder="name"),
            ),
            class_="filters",
        ),
        element(
            "div",
            element("p", id="progress", role="status", aria_live="polite"),
            button("accept-all", "Accept all listed"),
            button("undo", "Undo"),
            button("clear", "Forget all"),
            button("download", "Download fixes.csv", "main"),
            class_="actions",
        ),
        class_="controls",
        id="controls",
    )


_KEYS = (
    ("A", "accept the suggestion"),
    ("K", "keep the given label"),
    ("D", "drop the image"),
    ("O", "other class"),
    ("S", "skip"),
    ("U", "undo"),
    ("← → ↑ ↓", "move"),
)


def _help() -> Markup:
    keys = [element("li", element("kbd", key), f" {what}") for key, what in _KEYS]
    return element("ul", *keys, class_="keys", aria_label="keys")


def _dialog() -> Markup:
    """To choose another class."""
    return element(
        "dialog",
        element("h3", "Which class is it?", id="other-title"),
        element("input", type="search", id="other-search", aria_label="search a class", placeholder="search"),
        element("select", id="other-list", size=10, aria_label="classes"),
        element(
            "div",
            element("button", "Cancel", type="button", id="other-cancel"),
            element("button", "Take this class", type="button", id="other-take", class_="main"),
            class_="actions",
        ),
        id="other",
        aria_labelledby="other-title",
    )
