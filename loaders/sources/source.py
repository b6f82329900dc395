"""What every kind of input gives: class names, labels and an iterator over the images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Piece(NamedTuple):
    """Some images in row order."""

    images: np.ndarray | list[bytes]  # (n, height, width, 3) uint8, or n JPEG files
    bad: list[tuple[int, str]]  # (position in the piece, reason) of images that could not be read
    marks: np.ndarray | None = None  # (n,) MARK, where they were made with the images


@dataclass(frozen=True)
class Part:
    """One split of an input. `read(row)` walks over the images from a row on.

    The images of a piece hold until the next one is asked for.
    """

    labels: np.ndarray  # (rows,) int64
    ids: tuple[str, ...] | None  # file name of each row, where rows are files
    read: Callable[[int], Iterator[Piece]]


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """An input that was found, checked and is ready to be walked over."""

    kind: str
    name: str
    fingerprint: str  # sha256 over what identifies the files
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]  # of RGB pixels in 0..1
    std: tuple[float, float, float]
    flip: bool
    pad: int
    height: int
    width: int
    parts: dict[str, Part]  # "train" and perhaps "test"
    superclass: tuple[int, ...] | None = None
    superclass_names: tuple[str, ...] | None = None
    test_may_be_wrong: bool = False
    labels_checked: bool = (
        True  # False: nobody vouches for the labels, so a run does not take them for the truth
    )
    journal: bool = False  # whether reading is slow enough to be continued after a kill
    decoded_by_pillow: bool = False  # another version of it may give other pixels
    may_lack_classes: bool = False  # whether a class may have no image at all: a part of a known set
    notes: tuple[str, ...] = ()  # lines for the user
