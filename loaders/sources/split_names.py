"""The words by which people name the splits of a data set: in folders, in columns of tables, in names of shards."""

import re
from collections.abc import Iterable

TRAIN, TEST, VAL = "train", "test", "val"
WORDS = {  # as people write them -> split
    **dict.fromkeys(("train", "training", "trainval"), TRAIN),
    **dict.fromkeys(("test", "testing"), TEST),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "eval"), VAL),
}
_FILLERS = frozenset(("set", "data", "dataset", "images", "imgs", "split"))  # test_set, train-images
_BETWEEN = re.compile(r"[\s_.\-]+")
_NUMBER = re.compile(r"\d+$")  # train2017


def split_of(name: str) -> str | None:
    """The split that a name stands for ("train", "test" or "val"), in any case, or None if it is another word."""
    words = [word for word in _BETWEEN.split(name.casefold()) if word]
    rest = [word for word in words if word not in _FILLERS and not word.isdigit()]
    if len(rest) != 1:
        return None
    word = _NUMBER.sub("", rest[0])
    return WORDS.get(word) or WORDS.get(word.removesuffix("set"))


def split_in(name: str) -> str | None:
    """The split whose word is the first such word in a longer name (birds_val-000.tar), or None."""
    found = re.findall("[a-z]+", name.lower())
    words = [word if word in WORDS else word.removesuffix("set") for word in found]
    return next((WORDS[word] for word in words if word in WORDS), None)


def by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Split -> the names that stand for it; other names are left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        split = split_of(name)
        if split is not None:
            found.setdefault(split, []).append(name)
    return found
