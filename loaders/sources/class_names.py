"""Names of classes as people see them: one spelling of each letter, and a warning where two may be meant as one."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from fastdrpl.loaders.printable import printable

_BETWEEN = re.compile(r"[\s_\-]+")
_UNSEEN = re.compile("[\u200b-\u200f\u2060\ufeff\xad]")  # characters of no width
# What programs write where there is no label.
_NO_LABEL = frozenset(
    ("nan", "na", "n/a", "<na>", "#n/a", "none", "null", "nil", "undefined", "nat", "-", "?", ".")
)
_SHOWN = 3


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes é as two characters, everybody else as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def look(name: str) -> str:
    """What a name has in common with others that a person may mean by it: no case, spaces, hyphens, leading zeros."""
    plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", name)).casefold()
    plain = _BETWEEN.sub(" ", plain).strip()
    return plain.lstrip("0") or "0" if plain.isdecimal() else plain


def nearly(name: str, others: Iterable[str]) -> str:
    """`; there is 'Cat', which may be meant` if one of the others looks like the name, else nothing."""
    wanted = look(name)
    close = next((other for other in others if other != name and look(other) == wanted), None)
    return "" if close is None else f"; there is {printable(close)!r}, which may be meant"


def describe_names(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Warnings on class names that may be meant as one, or as no label at all. `counts`: images of each class."""
    lines = []
    by_look: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        by_look.setdefault(look(name), []).append(number)

    def shown(numbers: Sequence[int]) -> str:
        return " and ".join(f"{printable(names[k])!r} ({counts[k]:,} images)" for k in numbers)

    alike = [numbers for numbers in by_look.values() if len(numbers) > 1]
    if alike:
        more = f" and {len(alike) - _SHOWN:,} more such groups" if len(alike) > _SHOWN else ""
        lines.append(
            "warning: classes whose names differ in case, spaces or hyphens only: "
            f"{'; '.join(map(shown, alike[:_SHOWN]))}{more}. Rename them if they are one."
        )
    absent = [number for number, name in enumerate(names) if name.strip().casefold() in _NO_LABEL]
    if absent:
        more = f" and {len(absent) - _SHOWN:,} more" if len(absent) > _SHOWN else ""
        lines.append(
            "warning: classes whose names often stand for a missing label: "
            f"{shown(absent[:_SHOWN])}{more}. Leave their images out if so."
        )
    edged = [printable(name) for name in names if name != name.strip()]
    if edged:
        lines.append(
            f"warning: class names that begin or end with a space: {', '.join(map(repr, edged[:_SHOWN]))}"
        )
    return lines
