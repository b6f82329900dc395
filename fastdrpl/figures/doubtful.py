"""The most doubtful images of some classes (Fig. 6): each class in a row that begins with a clean image of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdrpl.errors import UserError
from fastdrpl.figures.command import DoubtfulFigure
from fastdrpl.figures.output import to_csv
from fastdrpl.figures.pictures import Pixels, pixels_of, show_picture
from fastdrpl.figures.style import BLUE, VERMILLION, legible, render
from fastdrpl.opening import open_run
from fastdrpl.report.facts import read_facts
from fastdrpl.report.table import read_table

_CLASSES = 4  # shown where none is asked for
_NAME = 16  # characters of a class
_COLUMNS = ("index", "row", "file", "given_name", "suggested_name", "p_suggested", "p_noisy", "rank")


@dataclass(frozen=True)
class ClassRow:
    """Records of the table: a clean image of a class (None where no label of it was kept) and its suspects."""

    name: str
    clean: dict[str, Any] | None
    doubtful: tuple[dict[str, Any], ...]


def make_doubtful_figure(command: DoubtfulFigure) -> dict[str, bytes]:
    """`doubtful.png`, `.svg` and `.csv`. Raises UserError for an unknown class or a run without suspects."""
    run = open_run(command.run, data=command.data)
    facts = read_facts(command.run, suspects=0)
    wanted = command.names(run.labels.class_names) or [
        each.name for each in facts.per_class[:_CLASSES] if each.suspects
    ]
    if not wanted:
        raise UserError("no label of this run looks wrong", where=str(command.run), fix="give --classes A,B")
    table = read_table(run.folder.labels)
    rows = [_choose(table, name, command.count) for name in wanted]
    shown = [record for row in rows for record in (row.clean, *row.doubtful) if record is not None]
    places = np.array([record["row"] for record in shown], np.int64)
    batches = list(pixels_of(run.data.split("train"), places))
    pixels = {k: image for k, image in zip(places.tolist(), (i for b in batches for i in b), strict=True)}
    return _draw(rows, pixels, command.count) | {"doubtful.csv": _numbers(rows)}


def _choose(table: Any, name: str, count: int) -> ClassRow:
    """The kept label of the class that is doubted least, and its suspects by rank."""
    given = np.asarray(table["given_name"]).astype(str) == name
    rank, kept = table["rank"].to_numpy(), table["labelled"].to_numpy()
    own, suspects = np.flatnonzero(given & kept), np.flatnonzero(given & ~kept)
    clean = None if not len(own) else table.take([own[np.argmax(rank[own])]]).to_pylist()[0]
    first = suspects[np.argsort(rank[suspects])][:count]
    return ClassRow(name, clean, tuple(table.take(first).to_pylist()))


def _draw(rows: Sequence[ClassRow], pixels: dict[int, Pixels], count: int) -> dict[str, bytes]:
    def paint(figure: Any) -> None:
        grid = figure.subplots(len(rows), 1 + count, squeeze=False)
        for places, row in zip(grid, rows, strict=True):
            for place in places:
                place.set_axis_off()
            for place, record in zip(places, (row.clean, *row.doubtful), strict=False):
                if record is not None:
                    place.set_axis_on()
                    show_picture(place, pixels[record["row"]])
                    clean = place is places[0]
                    _frame(place, BLUE if clean else VERMILLION)
                    place.set_title(_title(record, clean=clean), fontsize=7.5, pad=3)
            if row.clean is None:
                places[0].text(
                    0.5, 0.5, f"{legible(row.name, _NAME)}:\nno label kept", ha="center", va="center"
                )
            if not row.doubtful:
                places[1].text(0.5, 0.5, "no suspect", ha="center", va="center")

    return render("doubtful", (1.45 * (1 + count) + 0.2, 1.85 * len(rows) + 0.1), paint)


def _title(record: dict[str, Any], *, clean: bool) -> str:
    given, suggested = (legible(record[name], _NAME) for name in ("given_name", "suggested_name"))
    truth = record.get("truth_name")
    known = f"\ntrue: {legible(truth, _NAME)}" if truth is not None else ""
    known = "\noutside all classes" if truth is None and record.get("is_noisy") else known
    if clean:
        return f"{given}: kept{known}"
    apart = "\n" if len(given) + len(suggested) > _NAME else " "
    return f"{given}{apart}→ {suggested}{known}"


def _frame(place: Any, colour: str) -> None:
    for side in place.spines.values():
        side.set(visible=True, color=colour, linewidth=1.6)


def _numbers(rows: Sequence[ClassRow]) -> bytes:
    truth = ("truth_name", "is_noisy")
    lines = [
        (row.name, kind, *(record.get(column) for column in (*_COLUMNS, *truth)))
        for row in rows
        for kind, records in (("clean", [row.clean] if row.clean else []), ("doubtful", row.doubtful))
        for record in records
    ]
    return to_csv(("class", "kind", *_COLUMNS, *truth), lines)
