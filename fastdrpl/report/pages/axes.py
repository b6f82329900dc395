"""A frame with two axes, as inline SVG; charts draw into it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastdrpl.report.pages.markup import Markup, element, join

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 18, 34


@dataclass(frozen=True)
class Axis:
    """From numbers to places: `scale` is applied to values and both ends."""

    low: float
    high: float
    start: float  # place of `low`
    stop: float  # place of `high`
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """Where a value lies, cut at the ends."""
        low, high = self.scale(self.low), self.scale(self.high)
        share = (self.scale(min(max(value, self.low), self.high)) - low) / ((high - low) or 1.0)
        return round(self.start + share * (self.stop - self.start), 1)


def across(low: float, high: float) -> Axis:
    """The horizontal axis."""
    return Axis(low, high, LEFT, WIDTH - RIGHT)


def upward(low: float, high: float, scale: Callable[[float], float] = float) -> Axis:
    """The vertical axis."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP, scale)


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within the ends, about so many."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def square_ticks(high: float) -> list[float]:
    """Round numbers from 0 up, for an axis of square roots."""
    ticks = [factor * 10.0**power for power in range(9) for factor in (1, 5)]
    wanted = [tick for tick in ticks if high / 60 <= tick <= high]
    return [0.0, *wanted[-5:]]


def power_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the ends; also twice and five times such powers where there are few."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks


def short(value: float) -> str:
    """A number for an axis."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.6g}" if abs(value) >= 1000 else f"{value:.4g}"


def frame(
    x: Axis,
    y: Axis,
    *parts: object,
    title: str,
    description: str,
    ticks: tuple[Sequence[float], Sequence[float]],
    names: tuple[str, str],
    write_y: Callable[[float], str] = short,
) -> Markup:
    """An SVG with grid lines, ticks and the names of both axes; `parts` lie over the grid."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    grid = [
        join(
            element("line", x1=LEFT, x2=right, y1=y.place(tick), y2=y.place(tick), class_="grid"),
            element("text", write_y(tick), x=LEFT - 6, y=y.place(tick) + 3.5, class_="tick end"),
        )
        for tick in ticks[1]
    ]
    marks = [
        element("text", short(tick), x=x.place(tick), y=bottom + 14, class_="tick middle")
        for tick in ticks[0]
    ]
    axis = element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")
    named = join(
        element("text", names[0], x=right, y=HEIGHT - 4, class_="tick end"),
        element("text", names[1], x=2, y=9, class_="tick"),
    )
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *grid,
        *marks,
        *parts,
        axis,
        named,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
        aria_label=f"{title}. {description}",
    )


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """A line through places, as SVG writes it."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
