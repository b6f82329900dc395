"""What preparing the data found that has nothing to do with labels: images that cannot be read, or that repeat."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl.errors import DataError
from fastdrpl.loaders.dataset import read_manifest
from fastdrpl.loaders.manifest import QUARANTINE

LISTED = 20


@dataclass(frozen=True)
class ImageFacts:
    """An image of the prepared data."""

    split: str
    row: int
    name: str


@dataclass(frozen=True)
class ProblemFacts:
    """A kind of problem: how many images or groups have it, and the first of them, those that belong together."""

    title: str
    count: int
    first: tuple[tuple[ImageFacts, ...], ...]
    reasons: tuple[str, ...] = ()  # of each of `first`, where there are any


TITLES = {
    "two_labels": "the same image under two labels",
    "train_and_test": "the same image in the training set and in the test set",
    "repeated": "images that are there more than once",
}


def read_problems(data: Path) -> tuple[ProblemFacts, ...]:
    """What dataset.json and quarantine.csv of prepared data tell. Raises `DataError`, `UserError` for damaged ones."""
    manifest = read_manifest(data)
    found = [_quarantined(data)]
    for key, entry in manifest.items():
        if key.endswith("_images") and isinstance(entry, dict):
            found += _listed(key, entry)
    return tuple(problem for problem in found if problem.count)


def _quarantined(data: Path) -> ProblemFacts:
    first, reasons, count = [], [], 0
    try:
        with open(data / QUARANTINE, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                count += 1
                if count <= LISTED:
                    first.append((ImageFacts(line["split"], int(line["row"]), line["id"]),))
                    reasons.append(line["reason"])
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{QUARANTINE} cannot be read: {error}", where=str(data)) from error
    return ProblemFacts("images that could not be read (quarantined)", count, tuple(first), tuple(reasons))


def _listed(key: str, entry: dict[str, Any]) -> Iterator[ProblemFacts]:
    """The lists in a field such as `identical_images`: {kind: count, or {"groups": count, "pairs": [[image, ...]]}}."""
    kind = key.removesuffix("_images").replace("_", " ")
    for name, value in entry.items():
        title = TITLES.get(name, name.replace("_", " "))
        title = title if kind == "identical" else f"{kind}: {title}"
        if isinstance(value, int):
            yield ProblemFacts(title, value, ())
        elif isinstance(value, dict):
            pairs = value.get("pairs", [])[:LISTED]
            images = tuple(
                tuple(ImageFacts(i["split"], i["row"], str(i["id"])) for i in pair) for pair in pairs
            )
            yield ProblemFacts(title, int(value.get("groups", len(images))), images)
