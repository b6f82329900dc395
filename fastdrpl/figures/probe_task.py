"""What a linear probe learns: which classes, and which images train and test it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastdrpl.errors import UserError
from fastdrpl.kernels.philox import permutation
from fastdrpl.loaders.dataset import Dataset, Split
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.opening import OpenRun

Rows = npt.NDArray[np.int64]
_FEW = 2


class Wish(Protocol):
    """The part of the command that decides the task."""

    @property
    def classes(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def seen(self) -> bool: ...
    @property
    def test_share(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one split: rows (n,) and their labels (n,), numbered as in the task."""

    split: Split
    rows: Rows
    label: Rows


@dataclass(frozen=True, eq=False)
class Task:
    """The classes by name, what trains and what tests, and what a user should know.

    `unseen`: no run was trained on a class of these names.
    """

    names: tuple[str, ...]
    unseen: bool
    train: Part
    test: Part
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Pixels a side of the centre crop: the whole image, where it is square."""
        return min(self.train.split.height, self.train.split.width)

    def misfits(self, run: OpenRun) -> list[str]:
        """What is different for a network from the images it was trained on."""
        if run.crop.size == self.size:
            return []
        return [f"it was trained on images of {run.crop.size} pixels, these have {self.size}"]


def choose_task(wish: Wish, data: Dataset, runs: Sequence[OpenRun]) -> Task:
    """Classes that no run was trained on, and their images that none was shown.

    They are tested on the test split where it has images of every class, else on a share of each class's training
    images, drawn by the seed. Raises UserError where fewer than two classes are left, or fewer than are asked for.
    """
    notes = []
    train = data.split("train")
    usable = train.valid.copy()
    for run in runs:
        if run.data_fingerprint == data.fingerprint:
            usable[run.labels.source_row] = False
    count = np.bincount(train.label[usable], minlength=len(data.class_names))
    seen = {name.casefold() for run in runs for name in run.description["class_names"]}
    known = np.array([name.casefold() in seen for name in data.class_names])
    least = 1 if _tests(data, np.flatnonzero(count)) else _FEW
    there = count >= least
    if known[there].any() and not wish.seen:
        notes.append(
            f"{int(known[there].sum())} of {int(there.sum())} classes are left out: a run was trained on classes of "
            "that name (--seen keeps them)"
        )
        there &= ~known
    classes = np.flatnonzero(there)
    wanted = wish.classes or len(classes)
    if len(classes) < max(_FEW, wanted):
        raise UserError(
            f"there are {len(classes)} classes here with images that the runs never saw; wanted {max(_FEW, wanted)}",
            where=str(data.path),
            fix="give data of other classes, a smaller --classes, or --seen",
        )
    drawn = permutation(Pass(wish.seed, 0, 0, Purpose.look).stream, len(classes))[:wanted]
    classes = classes[np.sort(drawn)]
    rows = np.flatnonzero(usable & np.isin(train.label, classes))
    number = np.full(len(data.class_names), -1, np.int64)
    number[classes] = np.arange(len(classes))
    about = tuple(data.class_names[k] for k in classes), not known[classes].any()
    if _tests(data, classes):
        test = data.split("test")
        tested = np.flatnonzero(test.valid & np.isin(test.label, classes))
        parts = Part(train, rows, number[train.label[rows]]), Part(test, tested, number[test.label[tested]])
        return Task(*about, *parts, tuple(notes))
    held = _hold_out(train, rows, classes, wish)
    notes.append(
        f"the data have no test images of these classes: {wish.test_share:.0%} of the training images of each test"
    )
    rest = rows[~np.isin(rows, held)]
    parts = Part(train, rest, number[train.label[rest]]), Part(train, held, number[train.label[held]])
    return Task(*about, *parts, tuple(notes))


def _tests(data: Dataset, classes: Rows) -> bool:
    """Whether the test split has an image of each class."""
    if not data.has("test"):
        return False
    test = data.split("test")
    return bool(np.isin(classes, test.label[test.valid]).all())


def _hold_out(split: Split, rows: Rows, classes: Rows, wish: Wish) -> Rows:
    """A share of each class, at least one image and never all of them: rows in order."""
    shuffled = rows[permutation(Pass(wish.seed, 0, 0, Purpose.split).stream, rows)]
    label = split.label[shuffled]
    held = []
    for c in classes:
        own = shuffled[label == c]
        held.append(own[: min(max(1, round(wish.test_share * len(own))), len(own) - 1)])
    return np.sort(np.concatenate(held))
