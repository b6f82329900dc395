"""What preparing the data found that has nothing to do with labels: images that cannot be read, or that repeat."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl.errors import DataError
from fastdrpl.loaders.dataset import read_manifest
from fastdrpl.loaders.identical import FIELD as IDENTICAL
from fastdrpl.loaders.manifest import QUARANTINE
from fastdrpl.loaders.problems import FIELD as PROBLEMS

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


_SEARCHED = {
    "duplicates": "images that are there more than once",
    "near": "images that look the same as another",
    "blank": "blank images",
    "tiny": "images that were tiny before they were enlarged",
}
_IDENTICAL = {  # of sets from before more than identical images were looked for
    "two_labels": "the same image under two labels",
    "train_and_test": "the same image in the training set and in the test set",
}


def read_problems(data: Path) -> tuple[ProblemFacts, ...]:
    """What dataset.json and quarantine.csv of prepared data tell. Raises `DataError`, `UserError` for damaged ones."""
    manifest = read_manifest(data)
    try:
        searched = manifest.get(PROBLEMS)
        if searched is not None:
            found = [_searched(kind, searched) for kind in searched["counts"]]
        else:
            entry = manifest.get(IDENTICAL, {})
            found = [_identical(title, entry[key]) for key, title in _IDENTICAL.items() if key in entry]
        return tuple(problem for problem in (_quarantined(data), *found) if problem.count)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the list of problems is damaged ({error!r})", where=str(data)) from error


def _searched(kind: str, entry: dict[str, Any]) -> ProblemFacts:
    """A kind of the field `problems`; see `fastdrpl.loaders.problems`."""
    counts, first = entry["counts"][kind], entry["first"][kind]
    groups = tuple(tuple(_image(image) for image in problem["images"]) for problem in first)
    parts = [
        f"{counts[key]:,} {words}"
        for key, words in (
            ("two_labels", "under two labels"),
            ("train_and_test", "in training set and test set"),
        )
        if counts[key]
    ]
    title = _SEARCHED.get(kind, kind) + (f" ({', '.join(parts)})" if parts else "")
    return ProblemFacts(title, counts["count"], groups, tuple(_reason(problem) for problem in first))


def _reason(problem: dict[str, Any]) -> str:
    said = [", ".join(dict.fromkeys(image["label"] for image in problem["images"]))]
    if problem["similarity"] is not None:
        said.append(f"similarity {problem['similarity']:g}")
    if problem["size"] is not None:
        said.append("{} x {} pixels".format(*problem["size"]))
    return "; ".join(said)


def _identical(title: str, entry: dict[str, Any]) -> ProblemFacts:
    groups = tuple(tuple(_image(image) for image in pair) for pair in entry["pairs"])
    return ProblemFacts(title, entry["groups"], groups)


def _image(image: dict[str, Any]) -> ImageFacts:
    return ImageFacts(image["split"], image["row"], str(image["id"]))


def _quarantined(data: Path) -> ProblemFacts:
    first, reasons, count = [], [], 0
    try:
        with open(data / QUARANTINE, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                count += 1
                if count <= LISTED:
                    first.append((ImageFacts(line["split"], int(line["row"]), line["id"]),))
                    reasons.append(line["reason"])
    except (OSError, csv.Error) as error:
        raise DataError(f"{QUARANTINE} cannot be read: {error}", where=str(data)) from error
    return ProblemFacts("images that could not be read (quarantined)", count, tuple(first), tuple(reasons))
