"""HTML in which every text is escaped unless it is markup already."""

import html
import json
from typing import Any

from fastdrpl.loaders.printable import printable

_VOID = frozenset({"img", "input", "meta"})  # of HTML; within SVG every element has an end


class Markup(str):
    """Text that is HTML: nothing in it is escaped again."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """A text as HTML shows it; control characters and those that turn the direction of a line are shown as escapes."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(str(text))))


def join(*parts: object) -> Markup:
    """Parts one after the other; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name ...>children</name>`: `class_` is class, `data_x` data-x, True a bare attribute, None and False none."""
    written = []
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {attribute}")
        elif value is not None and value is not False:
            written.append(f' {attribute}="{escape(value)}"')
    start = f"<{name}{''.join(written)}>"
    return Markup(start) if name in _VOID else Markup(f"{start}{join(*children)}</{name}>")


def name_of(text: object) -> Markup:
    """A name that others chose: its direction of writing stays its own."""
    return element("bdi", text)


def island(identifier: str, value: Any) -> Markup:
    """Data for a script, as JSON that no HTML parser takes for anything else."""
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{safe_json(value)}</script>')


def safe_json(value: Any) -> str:
    """JSON in ASCII without the characters that begin or end markup."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
