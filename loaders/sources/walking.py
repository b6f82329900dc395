"""Which files below a folder are images: one way to walk, for `prepare` and for `predict`.

Links are followed, loops of links are not. Hidden files and what systems leave behind (network storage, macOS, Windows,
version control) are no images at any depth. Whatever is not taken is counted, so that nothing goes in silence.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.formats import FIX, OTHER_IMAGES, format_of, kind_of, readable_extensions
from fastdrpl.loaders.sources.photos import stamp
from fastdrpl.loaders.sources.system_names import is_system

WARNING = "warning: "  # how a line begins that should not be overlooked


@dataclass
class Left:
    """What was met and not taken. Two of them can be added."""

    extensions: Counter[str] = field(default_factory=Counter)  # in small letters; "" for names without one
    hidden: int = 0
    system: int = 0
    loops: int = 0  # links to a folder that they lie in
    lost: list[str] = field(default_factory=list)  # links that lead nowhere

    def __add__(self, other: "Left") -> "Left":
        return Left(
            self.extensions + other.extensions,
            self.hidden + other.hidden,
            self.system + other.system,
            self.loops + other.loops,
            self.lost + other.lost,
        )

    @property
    def total(self) -> int:
        """How many things were not taken."""
        return self.extensions.total() + self.hidden + self.system + self.loops + len(self.lost)


class Found(NamedTuple):
    """The images below a folder, sorted by path, and what else lies there."""

    paths: list[str]
    stamps: list[tuple[int, int]]  # (bytes, time of change) of each: tells a changed file
    left: Left

    @property
    def ignored(self) -> int:
        """How many things were not taken."""
        return self.left.total


def extension_of(name: str) -> str:
    """The extension in small letters, with its dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def subfolders(folder: str) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones and those of systems."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not is_system(entry.name))


def list_images(folder: str, *, deep: bool = True, above: Sequence[str] = ()) -> Found:
    """All images below a folder (or only directly in it), sorted by path.

    A link to a folder it lies in, or to one of `above`, is not followed. Raises DataError for a folder that is closed.
    """
    paths: list[str] = []
    left, extensions = Left(), readable_extensions()
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [
        (folder, tuple((status.st_dev, status.st_ino) for status in map(os.stat, above)))
    ]
    while waiting:
        here, trail = waiting.pop()
        try:
            status = os.stat(here)
            entries = list(os.scandir(here))
        except FileNotFoundError:
            continue  # the test set may miss a class
        except OSError as error:
            raise DataError(f"cannot list a folder: {error.strerror}", where=printable(here)) from None
        identity = (status.st_dev, status.st_ino)
        if identity in trail:
            left.loops += 1
            continue
        for entry in entries:
            if entry.name.startswith("."):
                left.hidden += 1
            elif is_system(entry.name):
                left.system += 1
            elif is_folder(entry):
                if deep:
                    waiting.append((entry.path, (*trail, identity)))
            elif (extension := extension_of(entry.name)) in extensions:
                paths.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left.lost.append(entry.path)
            else:
                left.extensions[extension] += 1
    paths.sort()
    return Found(paths, [stamp(path) for path in paths], left)


def count_by_extension(extensions: Counter[str] | Iterable[tuple[str, int]], most: int = 8) -> str:
    """`18 .heic, 3 .txt, 2 without an extension`."""
    listed = extensions.most_common() if isinstance(extensions, Counter) else list(extensions)
    shown = [
        f"{count:,} {printable(extension) or 'without an extension'}" for extension, count in listed[:most]
    ]
    rest = sum(count for _, count in listed[most:])
    return ", ".join([*shown, *([f"{rest:,} others"] if rest else [])])


def describe_left(left: Left, taken: int, root: str) -> list[str]:
    """Lines for the user on what was not taken beside `taken` images below `root`; warnings where it is much."""
    lines = [f"{WARNING}{line}" for line in describe_unread(left.extensions, taken)]
    rest = Counter({end: n for end, n in left.extensions.items() if not _is_named(end)})
    parts = [count_by_extension(rest)] if rest else []
    parts += [f"{left.hidden:,} hidden"] if left.hidden else []
    parts += [f"{left.system:,} of the system"] if left.system else []
    parts += [f"{left.loops:,} links in a circle"] if left.loops else []
    if parts:
        count = rest.total() + left.hidden + left.system + left.loops
        many = rest.total() * 10 > taken
        lines.append(f"{WARNING if many else ''}{count:,} other files were ignored: {', '.join(parts)}.")
    return lines + describe_lost(left, root)


def describe_unread(extensions: Counter[str], taken: int = 0) -> list[str]:
    """Lines on files that are images by their names, but are not read: how many, and what would read them."""
    lines, all_files = [], taken + extensions.total()
    for name, fix in FIX.items():
        files = Counter({end: n for end, n in extensions.items() if format_of(end) == name})
        if files:
            lines.append(
                f"{files.total():,} of {all_files:,} files are not read ({count_by_extension(files)}): "
                f"{name} needs `{fix}`"
            )
    others = Counter({end: n for end, n in extensions.items() if end in OTHER_IMAGES})
    if others:
        lines.append(
            f"{others.total():,} of {all_files:,} files are not read ({count_by_extension(others)}): "
            "convert them to PNG or JPEG"
        )
    return lines


def _is_named(extension: str) -> bool:
    """Whether `describe_unread` has a line for files of this extension."""
    return extension in OTHER_IMAGES or format_of(extension) in FIX


def why_no_image(folder: str, found: Found) -> tuple[str, str]:
    """What lies in a folder in which no image was found, after a semicolon, and what to do."""
    if not found.left.extensions:
        return "", "add images, or remove the folder"
    unread = describe_unread(found.left.extensions)
    if unread:
        return f"; {unread[0]}", unread[0].rpartition(": ")[2]
    kinds = Counter(_kinds_without_extension(folder)) if found.left.extensions[""] else Counter()
    if kinds:
        shown = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common(3))
        return f"; files without an extension are images by their content ({shown})", (
            "give their names an extension, or list them in a table (kind table)"
        )
    return f"; there are other files: {count_by_extension(found.left.extensions)}", (
        "add images, or remove the folder"
    )


def _kinds_without_extension(folder: str) -> list[str]:
    """The formats of some files of a folder that have no extension."""
    kinds = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not extension_of(entry.name) and not is_system(entry.name) and entry.is_file():
                with open(entry.path, "rb") as file:
                    kind = kind_of(file.read(16))
                kinds += [kind] if kind else []
    return kinds


def describe_lost(left: Left, root: str) -> list[str]:
    """A line on links that lead nowhere, if there are any."""
    if not left.lost:
        return []
    shown = ", ".join(printable(os.path.relpath(path, root)) for path in sorted(left.lost)[:3])
    more = f" and {len(left.lost) - 3:,} more" if len(left.lost) > 3 else ""
    return [f"{WARNING}links that lead nowhere: {shown}{more}"]
