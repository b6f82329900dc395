"""The paper's 100 classes of ImageNet, and the 900 whose images are outside (arXiv 1912.08741, section IV-A)."""

import numpy as np

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.sources.imagenet_small import class_order

CLASSES = 1000
INSIDE = 100
_SPLIT_SEED = 42


def class_split() -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the 100 classes to learn and of the 900 outside, as ImageNet32 and ImageNet64 number them (from 0).

    The position in the first array is the label that the network learns. It is the published permutation, of
    NumPy's old generator, whose draws are the same in every version.
    """
    order = np.random.RandomState(_SPLIT_SEED).permutation(CLASSES)
    return order[:INSIDE], order[INSIDE:]


def split_classes(class_names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`class_split` as positions in the class names of a data set, (100,) and (900,).

    The classes are found by WordNet id, so a data set that has them in another order (sorted ids, as torchvision
    does) gets the same classes with the same new labels. Raises UserError for a data set of other classes.
    """
    place = {name: k for k, name in enumerate(class_names)}
    wordnet = class_order()
    missing = [name for name in wordnet if name not in place]
    if missing or len(class_names) != CLASSES:
        seen = f", {missing[0]} for one is missing" if missing else ""
        raise UserError(
            f"the paper's classes are chosen out of ImageNet's {CLASSES}, named by WordNet id; "
            f"these data have {len(class_names)} classes{seen}",
            where="classes",
            fix="use a data set made by `fastdrpl prepare imagenet32` or imagenet64, or --classes all",
        )
    inside, outside = (np.array([place[wordnet[k]] for k in half], np.int64) for half in class_split())
    return inside, outside
