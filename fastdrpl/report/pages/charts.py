"""The charts of a report: lines over epochs, and losses in heaps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastdrpl.report.losses import Heap, LossFacts
from fastdrpl.report.pages.axes import (
    BOTTOM,
    HEIGHT,
    TOP,
    Axis,
    across,
    frame,
    path_of,
    power_ticks,
    round_ticks,
    short,
    square_ticks,
    upward,
)
from fastdrpl.report.pages.markup import Markup, element, join


@dataclass(frozen=True)
class Line:
    """A line: its name, its CSS class and its points; a value of None is a gap."""

    name: str
    class_: str
    points: tuple[tuple[float, float | None], ...]


def draw_lines(
    title: str,
    lines: Sequence[Line],
    *,
    borders: Sequence[tuple[float, str]] = (),
    write: Callable[[float], str] = short,
    logarithmic: bool = False,
    floor: float | None = None,
) -> Markup | None:
    """Lines over epochs, with a border and a name where each stage begins; None where there is nothing to draw."""
    values = [y for line in lines for _, y in line.points if y is not None]
    if logarithmic:
        values = [value for value in values if value > 0]
    if not values:
        return None
    low, high = min(values), max(values)
    low = low if floor is None else min(floor, low)
    if logarithmic:
        low, high = low / 1.5, high * 1.5
    elif low == high:
        low, high = low - abs(low or 1.0) / 2, high + abs(high or 1.0) / 2
    y = upward(low, high, math.log10 if logarithmic else float)
    ends = [x for line in lines for x, _ in line.points]
    x = across(min(ends), max(max(ends), min(ends) + 1))
    ticks = power_ticks(low, high) if logarithmic else round_ticks(low, high)
    return frame(
        x,
        y,
        *(_border(x, at, name) for at, name in borders),
        *(_draw(line, x, y) for line in lines),
        title=title,
        description="; ".join(_tell(line, write) for line in lines),
        ticks=([tick for tick in round_ticks(x.low, x.high) if tick == int(tick)], ticks),
        names=("epoch", ""),
        write_y=write,
    )


def _border(x: Axis, at: float, name: str) -> Markup:
    place = x.place(at)
    return join(
        element("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="border"),
        element("text", name, x=place + 4, y=TOP + 8, class_="tick"),
    )


def _draw(line: Line, x: Axis, y: Axis) -> Markup:
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, value in line.points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x.place(at), y.place(value)))
    drawn = [_piece(piece, line.class_) for piece in pieces if piece]
    return element("g", element("title", line.name), *drawn)


def _piece(points: list[tuple[float, float]], class_: str) -> Markup:
    if len(points) == 1:
        return element("circle", cx=points[0][0], cy=points[0][1], r=2.5, class_=f"dot {class_}")
    return element("path", d=path_of(points), class_=f"line {class_}")


def _tell(line: Line, write: Callable[[float], str]) -> str:
    values = [value for _, value in line.points if value is not None]
    if not values:
        return f"{line.name}: nothing measured"
    return (
        f"{line.name}: {write(values[0])} at first, {write(values[-1])} at last, "
        f"lowest {write(min(values))}, highest {write(max(values))}"
    )


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names beside a swatch of their class."""
    return element(
        "ul",
        *(element("li", element("i", class_=f"swatch {class_}"), name) for name, class_ in entries),
        class_="legend",
    )


# --- losses ---

HEAPS = {"right": "right label", "wrong": "wrong label", "unknown": "sample"}


def draw_losses(facts: LossFacts) -> Markup:
    """Heaps of samples over their loss, on an axis of square roots, with what was fitted to them."""
    top = max([int(heap.counts.max()) for heap in facts.heaps] + [1])
    x = across(float(facts.edges[0]), float(facts.edges[-1]))
    y = upward(0, top, math.sqrt)
    parts = [
        *(_heap(heap, facts.edges, x, y) for heap in facts.heaps),
        *(
            element("path", d=_curve(curve.x, curve.density, x, y), class_=f"line fit f{number % 2}")
            for number, curve in enumerate(facts.curves)
        ),
    ]
    told = ", ".join(f"{heap.total:,} with {HEAPS[heap.name]}" for heap in facts.heaps)
    if facts.cut is not None:
        place = x.place(facts.cut)
        parts.append(element("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="cut"))
        told += f"; labels up to {short(facts.cut)} were kept"
    return frame(
        x,
        y,
        *parts,
        title=f"{facts.stage}: samples by {facts.measure}",
        description=told,
        ticks=(round_ticks(x.low, x.high), square_ticks(top)),
        names=(facts.measure, "samples (square-root scale)"),
    )


def losses_legend(facts: LossFacts) -> Markup:
    """What is what in `draw_losses`."""
    both = len(facts.heaps) > 1
    names = {**HEAPS, "unknown": "right label not known"} if both else HEAPS
    entries = [(f"{names[heap.name]} ({heap.total:,})", heap.name) for heap in facts.heaps]
    entries += [(curve.name, f"fit f{number % 2}") for number, curve in enumerate(facts.curves)]
    return legend(entries + ([("kept up to here", "cut")] if facts.cut is not None else []))


def _heap(heap: Heap, edges: np.ndarray, x: Axis, y: Axis) -> Markup:
    points = [(x.place(edges[0]), y.place(0))]
    for left, right, count in zip(edges[:-1], edges[1:], heap.counts.tolist(), strict=True):
        points += [(x.place(left), y.place(count)), (x.place(right), y.place(count))]
    points.append((x.place(edges[-1]), y.place(0)))
    return element("path", d=path_of(points) + "Z", class_=f"heap {heap.name}")


def _curve(across_: np.ndarray, counts: np.ndarray, x: Axis, y: Axis) -> str:
    points = zip(across_[::4].tolist(), counts[::4].tolist(), strict=True)
    return path_of([(x.place(at), y.place(count)) for at, count in points if math.isfinite(count)])
