"""Which columns of a table are the paths, the labels and the splits, by the names that tools give them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.pictures import EXTENSIONS
from fastdrpl.loaders.sources.walking import extension_of

PATHS = (
    *("path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "image_file"),
    *("image_name", "image", "img_path", "img", "image_id", "name"),
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "class_label", "given_label", "tag")
_SHOWN = 12  # columns that a message lists
_FIX = "name the columns path, label and, if there is one, split; or say which they are: --path-column NAME, "
_FIX += "--label-column NAME, --split-column NAME"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The columns that the user named; None where they are to be found."""

    path: str | None = None
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The columns that are read, as the table spells them. `label` is None where labels are one-hot columns."""

    path: str
    label: str | None
    split: str | None

    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.path, self.label, self.split) if name is not None]


def choose_columns(names: Sequence[str], wanted: Wanted, where: str) -> Chosen:
    """The columns of paths, labels and splits: exact names first, then without case and spaces, then other words.

    Raises UserError where one is missing (a missing label may be one-hot columns: it is None) or there twice.
    """
    path = _find(names, wanted.path, PATHS, where)
    if path is None:
        raise missing_column(names, "path", where)
    label = _find(names, wanted.label, LABELS, where)
    return Chosen(path=path, label=label, split=_find(names, wanted.split, ("split",), where))


def missing_column(names: Sequence[str], what: str, where: str) -> UserError:
    """The error for a table without a column of paths or labels; it names what the table looks like."""
    shown = ", ".join(repr(printable(name)) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    if any(extension_of(name.strip()) in EXTENSIONS for name in names):
        return UserError(
            f"no column {what!r} in the table; its first line looks like data, not like names of columns ({shown})",
            where=where,
            fix="write a first line such as path,label; or call it .txt, if its lines are `path label`",
        )
    return UserError(
        f"no column {what!r} in the table; its columns are {shown}{more}{_looks_like(names)}",
        where=where,
        fix=_FIX,
    )


def _find(names: Sequence[str], given: str | None, known: Sequence[str], where: str) -> str | None:
    if given is not None:
        found = [name for name in names if name == given] or [
            name for name in names if _plain(name) == _plain(given)
        ]
        if not found:
            shown = ", ".join(repr(printable(name)) for name in names[:_SHOWN])
            raise UserError(f"no column {given!r} in the table; its columns are {shown}", where=where)
        return _only(found, where)
    exact = [name for name in names if name == known[0]]
    if exact:
        return _only(exact, where)
    for word in known:
        found = [name for name in names if _plain(name) == word]
        if found:
            return _only(found, where)
    return None


def _only(found: Sequence[str], where: str) -> str:
    if len(found) > 1:
        spelled = " and ".join(repr(printable(name)) for name in found)
        twice = f"the column {found[0]!r} is there twice" + ("" if len(set(found)) == 1 else f": {spelled}")
        raise UserError(twice, where=where)
    return found[0]


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _looks_like(names: Sequence[str]) -> str:
    plain = {_plain(name) for name in names}
    for marks, what in (
        ({"xmin", "ymin"}, "boxes for detection"),
        ({"x_min", "y_min"}, "boxes for detection"),
        ({"bbox"}, "boxes for detection"),
        ({"caption"}, "captions"),
        ({"text"}, "captions"),
        ({"rle"}, "masks for segmentation"),
        ({"encodedpixels"}, "masks for segmentation"),
    ):
        if marks <= plain:
            return f"; it looks like a table of {what}"
    return ""
