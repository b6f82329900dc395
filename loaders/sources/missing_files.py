"""Files that a table lists and that are not there: how many, where the first was looked for, and the likely cause."""

import itertools
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.class_names import look
from fastdrpl.loaders.sources.formats import readable_extensions
from fastdrpl.loaders.sources.walking import extension_of, subfolders

ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)
_DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)
_BASE = "--images DIR says which folder the paths begin in"
_MOST_FOLDERS = 2000  # that are looked into for a cause
_LAST = 3  # folders above the table that are tried as the beginning of the paths


class Missing(NamedTuple):
    """One line on the files that are not there, and what to do."""

    what: str
    fix: str


def places_of(folder: str, paths: Sequence[str]) -> list[str]:
    """`place_of` for each of many paths, of which nearly all are plain."""
    return [
        folder + path if path.isascii() and path[0] > "/" and path[-1] > " " else place_of(folder, path)
        for path in paths
    ]


def place_of(folder: str, path: str) -> str:
    """Where a listed path lies: absolute, or below `folder`.

    As it is written, or, where nothing lies there, with its letters spelled as macOS or everybody else spells them,
    or without spaces at its ends. The system's encoding of names is not asked: a table is UTF-8.
    """
    place = _native(path if path[:1] == "/" else folder + path)
    if (path.isascii() and path == path.strip()) or os.path.lexists(place):
        return place
    for other in (unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path), path.strip()):
        tried = _native(other if other[:1] == "/" else folder + other)
        if other and os.path.lexists(tried):
            return tried
    return place


def explain_missing(folder: str, paths: Sequence[str], files: Sequence[str], lost: Sequence[int]) -> Missing:
    """Of listed `paths` that were looked for at `files`, those of the rows `lost` are not there: why, perhaps."""
    first = lost[0]
    cause, fix = _cause(folder, paths[first])
    return Missing(
        f"{len(lost):,} of {len(paths):,} images are not there; the first was looked for at "
        f"{printable(files[first])!r}{cause}",
        fix,
    )


def _cause(folder: str, path: str) -> tuple[str, str]:
    if ADDRESS.match(path):
        return "; the paths are addresses (URLs), and nothing is fetched", (
            "download the images, and list where they lie"
        )
    if "\\" in path:
        other = path.replace("\\", "/")
        there = os.path.lexists(place_of(folder, other)) or _found_below(folder, other)
        kind = "a path of Windows" if _DRIVE.match(path) or there else "a path with backslashes"
        return f"; that is {kind}", "write paths with / and relative to the table, or to --images DIR"
    place = place_of(folder, path)
    if extension_of(path) not in readable_extensions():
        for extension in sorted(readable_extensions()):
            for written in (extension, extension.upper()):
                if os.path.lexists(place + written):
                    return f"; with {written} at its end it would be there", (
                        "write the extension into the column of paths"
                    )
    beside = _nearly(place)
    if beside:
        return (
            f"; there is {printable(beside)!r}, spelled a little differently",
            "correct the column of paths",
        )
    return _found_elsewhere(folder, path)


def _found_elsewhere(folder: str, path: str) -> tuple[str, str]:
    """Whether the paths begin in another folder."""
    base = folder
    for _ in range(_LAST):
        base = os.path.join(os.path.dirname(base.rstrip("/")), "")
        if path[:1] != "/" and os.path.lexists(_native(base + path)):
            return f"; the paths begin in {printable(base)!r}", f"--images {printable(base)}"
    found = _found_below(folder, path)
    if found is None:
        return "; is it the right folder?", _BASE
    start, rest = found
    if rest == path:
        return f"; the paths begin in {printable(start)!r}", f"--images {printable(start)}"
    return f"; {printable(rest)!r} lies in {printable(start)!r}", f"correct the column of paths, or {_BASE}"


def _found_below(folder: str, path: str) -> tuple[str, str] | None:
    """A folder below, and the longest end of a path that lies in it; None where there is none."""
    parts = [part for part in path.split("/") if part]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    for end in [path, *ends] if path[:1] != "/" else ends:
        for start in itertools.islice(_folders(folder), _MOST_FOLDERS):
            if os.path.lexists(_native(os.path.join(start, end))):
                return start, end
    return None


def _folders(folder: str) -> Iterator[str]:
    """A folder and those below it, nearest first; links are not followed."""
    waiting = [folder]
    while waiting:
        here = waiting.pop(0)
        yield here
        try:
            names = subfolders(here)
        except OSError:  # closed: the cause is looked for elsewhere
            continue
        waiting += [path for name in names if not os.path.islink(path := os.path.join(here, name))]


def _nearly(place: str) -> str | None:
    """A file beside `place` whose name differs in case, spaces or hyphens only."""
    folder, name = os.path.split(place)
    try:
        there = os.listdir(folder)
    except (OSError, ValueError):
        return None
    return next((other for other in sorted(there) if look(other) == look(name)), None)


def _native(path: str) -> str:
    """A path from a UTF-8 text as this system's functions take it, also where its encoding of names is another."""
    if path.isascii() or sys.getfilesystemencoding() == "utf-8":
        return path
    return os.fsdecode(path.encode("utf-8", "surrogatepass"))
