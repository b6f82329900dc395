"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8, enlarged to 16x16.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test part).
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from fastdrpl.loaders.sources.source import OpenedSource, Part, Piece
from fastdrpl.loaders.sources.stratify import choose_test_rows

TEST_FRACTION = 0.2


def open_digits(seed: int) -> OpenedSource:
    """All digits, four fifths for training and one fifth for testing: class by class, keyed by `seed`."""
    from sklearn.datasets import load_digits  # a slow import, needed by this kind only

    bunch = load_digits()
    grey = np.asarray(bunch.images, dtype=np.float64)  # (1797, 8, 8), 0..16
    labels = np.asarray(bunch.target, dtype=np.int64)
    images = np.repeat(enlarge(grey * (255 / 16))[..., None], 3, axis=3)
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[choose_test_rows(labels, TEST_FRACTION, seed)] = True
    scaled = images[~in_test] / 255
    # rounded, so that another order of summation gives the same fingerprint
    mean, std = round(float(scaled.mean()), 6), round(float(scaled.std()), 6)
    return OpenedSource(
        kind="digits",
        name="digits",
        fingerprint=hashlib.sha256(grey.tobytes() + labels.tobytes()).hexdigest(),
        class_names=tuple("0123456789"),
        mean=(mean, mean, mean),
        std=(std, std, std),
        flip=False,  # a mirrored digit is another sign
        pad=2,
        height=16,
        width=16,
        parts={
            "train": _part(images[~in_test], labels[~in_test]),
            "test": _part(images[in_test], labels[in_test]),
        },
    )


def enlarge(grey: np.ndarray) -> np.ndarray:
    """Twice the height and width, bilinear with half-pixel centres: (n, h, w) in 0..255 -> (n, 2h, 2w) uint8.

    Every new pixel is 3/4 of the nearer and 1/4 of the farther old one along each axis; borders repeat.
    """
    for axis in (1, 2):
        first, last = np.take(grey, [0], axis), np.take(grey, [-1], axis)
        before = np.concatenate([first, np.delete(grey, -1, axis)], axis)
        after = np.concatenate([np.delete(grey, 0, axis), last], axis)
        pair = np.stack([0.75 * grey + 0.25 * before, 0.75 * grey + 0.25 * after], axis + 1)
        shape = list(grey.shape)
        shape[axis] *= 2
        grey = pair.reshape(shape)
    return np.floor(grey + 0.5).astype(np.uint8)


def _part(images: np.ndarray, labels: np.ndarray) -> Part:
    def read(start: int) -> Iterator[Piece]:
        yield Piece(images[start:], [])

    return Part(labels, None, read)
