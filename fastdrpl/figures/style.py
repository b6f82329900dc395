"""How every figure looks: colours, text and the two files it is kept as."""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

from fastdrpl.console import warn
from fastdrpl.report.table import printable

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#6e6e6e",
)
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "#000000", GREY)
DOTS = 150  # an inch
ACROSS = 4  # panels in a row, at most

_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "svg.hashsalt": "fastdrpl",  # names that do not depend on chance: the same figure is the same file
}
# Beside matplotlib's own font, whichever of these a machine has.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)


def render(name: str, size: tuple[float, float], paint: Callable[[Any], None]) -> dict[str, bytes]:
    """`name`.png and `name`.svg of a figure that `paint` draws on an empty one; no display is needed.

    `size`: width and height in inches. The same drawing gives the same bytes, whatever a matplotlibrc says.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    plain: Any = {key: matplotlib.rcParamsDefault[key] for key in matplotlib.rcParams if "backend" not in key}
    files = {}
    plain |= {**_STYLE, "font.family": list(_fonts())}
    with matplotlib.rc_context(plain):
        figure: Any = Figure(figsize=size, dpi=DOTS, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")  # arranged once, not for each file again
        # Through the canvas: `savefig` would walk over everything once more for each file.
        for kind, write in (
            ("png", lambda file: FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})),
            ("svg", lambda file: FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})),
        ):
            file = io.BytesIO()
            write(file)
            files[f"{name}.{kind}"] = file.getvalue()
    return files


def arrange(lengths: Sequence[int]) -> tuple[int, int, list[tuple[int, int]]]:
    """Rows and columns for groups of so many panels each, and the (row, column) of every panel, group after group.

    A group has a row of its own; groups of one panel stand side by side.
    """
    if max(lengths) > 1:
        places = [(row, column) for row, length in enumerate(lengths) for column in range(length)]
        return len(lengths), max(lengths), places
    across = min(ACROSS, len(lengths))
    return -(-len(lengths) // across), across, [divmod(k, across) for k in range(len(lengths))]


def legible(text: str, most: int = 0) -> str:
    """A name as a figure can show it: no formula, one line, cut behind `most` characters (0: never).

    What no font here has is written as its escape, and said once.
    """
    shown, missing = [], []
    for character in _cut(printable(text), most):
        if character.isprintable() and _has_glyph(character):
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
            missing += [character] if character.isprintable() else []
    if missing:
        _say_missing(printable(text))
    return "".join(shown).replace("$", r"\$")


def in_legend(text: str) -> str:
    """The same for a legend, where matplotlib leaves out what begins with an underscore."""
    return f" {legible(text)}"


def _cut(text: str, most: int) -> str:
    return text if not most or len(text) <= most else f"{text[: most - 1]}…"


@functools.cache
def _say_missing(text: str) -> None:
    warn(
        f"no font here has every character of {text!r}: the figure shows escapes (the fonts fonts-noto-cjk "
        "and fonts-noto-core have most)"
    )


@functools.cache
def _fonts() -> tuple[str, ...]:
    """The families of `_FONTS` that are installed; matplotlib brings the first."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return tuple(name for name in _FONTS if name in installed)


@functools.cache
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return any(get_font(findfont(name)).get_char_index(ord(character)) for name in _fonts())
