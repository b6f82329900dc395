"""Names that others chose, made fit for files and for a terminal."""

import re

LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # halves of a pair, which no encoding has
HIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)  # they end lines, move or turn what is shown


def storable(name: str) -> str:
    """A name as text that every file can hold: bytes that are not UTF-8 become \\xNN. Two may become the same."""
    if name.isascii():
        return name
    return LONE.sub(_escape, name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """A name for messages and tables: as `storable`, and control characters become escapes."""
    if name.isascii() and name.isprintable():
        return name  # as nearly all are
    return HIDDEN.sub(_escape, storable(name))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
