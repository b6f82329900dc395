"""Which files below a folder are images: one way to walk, for `prepare` and for `predict`.

Links are followed, loops of links are not. Hidden files and what systems leave behind (network storage, macOS, Windows,
version control) are no images at any depth. Whatever is not taken is counted, so that nothing goes in silence.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.photos import stamp
from fastdrpl.loaders.sources.pictures import EXTENSIONS
from fastdrpl.loaders.sources.system_names import is_system


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


def list_images(folder: str, *, deep: bool = True) -> Found:
    """All images below a folder (or only directly in it), sorted by path. Raises DataError for one that is closed."""
    paths: list[str] = []
    left = Left()
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while waiting:
        here, above = waiting.pop()
        try:
            status = os.stat(here)
            entries = list(os.scandir(here))
        except FileNotFoundError:
            continue  # the test set may miss a class
        except OSError as error:
            raise DataError(f"cannot list a folder: {error.strerror}", where=printable(here)) from None
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            left.loops += 1
            continue
        for entry in entries:
            if entry.name.startswith("."):
                left.hidden += 1
            elif is_system(entry.name):
                left.system += 1
            elif is_folder(entry):
                if deep:
                    waiting.append((entry.path, (*above, identity)))
            elif (extension := extension_of(entry.name)) in EXTENSIONS:
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
    """Lines for the user on what was not taken beside `taken` images below `root`."""
    lines = []
    if left.total:
        parts = [count_by_extension(left.extensions)] if left.extensions else []
        parts += [f"{left.hidden:,} hidden"] if left.hidden else []
        parts += [f"{left.system:,} of the system"] if left.system else []
        parts += [f"{left.loops:,} links in a circle"] if left.loops else []
        parts += [f"{len(left.lost):,} links that lead nowhere"] if left.lost else []
        many = left.extensions.total() * 10 > taken
        lines.append(
            f"{'warning: ' if many else ''}{left.total:,} other files were ignored: {', '.join(parts)}."
        )
    return lines + describe_lost(left, root)


def describe_lost(left: Left, root: str) -> list[str]:
    """A line on links that lead nowhere, if there are any."""
    if not left.lost:
        return []
    shown = ", ".join(printable(os.path.relpath(path, root)) for path in sorted(left.lost)[:3])
    more = f" and {len(left.lost) - 3:,} more" if len(left.lost) > 3 else ""
    return [f"warning: links that lead nowhere: {shown}{more}"]
