"""What is wrong with a prepared set apart from its labels: copies, near copies, blank images and tiny ones.

`dataset.json` has the counts and the first of each kind under "problems", `problems.csv` has them all.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.printable import printable

FIELD = "problems"  # of dataset.json
PROBLEMS = "problems.csv"
FIRST = 10  # of each kind, that dataset.json lists
SHOWN = 20  # that a refusal lists

ProblemKind = Literal["duplicates", "near", "blank", "tiny"]
KINDS: tuple[ProblemKind, ...] = get_args(ProblemKind)


@dataclass(frozen=True)
class Image:
    """A row of a split. `id`: its file, or split/row; `label`: the name of its class."""

    split: str
    row: int
    id: str
    label: str


@dataclass(frozen=True)
class Problem:
    """One image (blank, tiny), or two that are one picture (duplicates, near)."""

    kind: ProblemKind
    images: tuple[Image, ...]
    similarity: float | None = None  # near: of edges, up to 1
    size: tuple[int, int] | None = None  # tiny: width and height of the file, in pixels

    @property
    def two_labels(self) -> bool:
        """Whether its images have different labels."""
        return len({image.label for image in self.images}) > 1

    @property
    def train_and_test(self) -> bool:
        """Whether its images are in different splits."""
        return len({image.split for image in self.images}) > 1


def to_entry(problems: Sequence[Problem], searched: Mapping[str, Any]) -> dict[str, Any]:
    """What dataset.json says: see docs/prepare.md. `searched`: kind -> what was looked for, or None."""
    counts: dict[str, dict[str, int]] = {}
    first: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        own = [problem for problem in problems if problem.kind == kind]
        counts[kind] = {
            "count": len(own),
            "two_labels": sum(problem.two_labels for problem in own),
            "train_and_test": sum(problem.train_and_test for problem in own),
        }
        first[kind] = [_listed(problem) for problem in own[:FIRST]]
    return {"file": PROBLEMS, "searched": dict(searched), "counts": counts, "first": first}


def _listed(problem: Problem) -> dict[str, Any]:
    return {
        "images": [vars(image) for image in problem.images],
        "similarity": problem.similarity,
        "size": problem.size,
    }


_COLUMNS = ("kind", "split", "row", "id", "label", "split2", "row2", "id2", "label2", "similarity", "size")


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """All problems as csv, the most interesting of each kind first."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for problem in problems:
            images = [value for image in problem.images for value in vars(image).values()]
            size = "" if problem.size is None else "{}x{}".format(*problem.size)
            rows.writerow([problem.kind, *images, *[""] * (8 - len(images)), problem.similarity, size])


def read_problems(folder: Path) -> Iterator[Problem]:
    """All problems of a prepared folder, as `problems.csv` lists them; none if it is from before they were sought."""
    path = folder / PROBLEMS
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            images = tuple(
                Image(line[f"split{n}"], int(line[f"row{n}"]), line[f"id{n}"], line[f"label{n}"])
                for n in ("", "2")
                if line[f"split{n}"]
            )
            width, _, height = line["size"].partition("x")
            yield Problem(
                line["kind"],  # type: ignore[arg-type]
                images,
                float(line["similarity"]) if line["similarity"] else None,
                (int(width), int(height)) if width else None,
            )


_WHAT: dict[str, tuple[str, str]] = {  # one, several
    "duplicates": ("image is there twice", "images are there more than once"),
    "near": ("image looks the same as another", "images look the same as another"),
    "blank": ("image is blank", "images are blank"),
    "tiny": ("image was tiny before it was enlarged", "images were tiny before they were enlarged"),
}


def describe_problems(entry: object) -> list[str]:
    """Lines for the user on the entry of dataset.json; none for a set from before problems were sought."""
    if not isinstance(entry, dict):
        return []
    lines = []
    for kind in KINDS:
        counts, first = entry["counts"][kind], entry["first"][kind]
        if not counts["count"]:
            continue
        parts = [
            f"{counts[key]:,} {words}"
            for key, words in (
                ("two_labels", "under two labels"),
                ("train_and_test", "in the training set and the test set"),
            )
            if counts[key]
        ]
        named = " and ".join(printable(image["id"]) for image in first[0]["images"])
        text = f"{counts['count']:,} {_WHAT[kind][counts['count'] > 1]}"
        text += f" ({', '.join(parts)})" if parts else ""
        lines.append(f"{'warning: ' if parts else ''}{text}, {named} for one")
    if lines:
        lines.append(
            f"{PROBLEMS} lists them all; nothing was left out for it (--refuse KIND refuses such a set)"
        )
    return lines + _describe_cut(entry["searched"]["near"] or {})


def _describe_cut(searched: Mapping[str, Any]) -> list[str]:
    compared, candidates = searched.get("compared", 0), searched.get("candidates", 0)
    if not searched.get("cut") and compared == candidates:
        return []
    number = f"more than {candidates:,}" if searched["cut"] else f"{candidates:,}"
    return [
        f"only {compared:,} of {number} pairs that may look the same were compared, up to "
        f"{searched['differing_bits']} of 64 bits apart, two labels first: there may be more copies"
    ]


def refuse_problems(entry: object, refused: Sequence[ProblemKind], where: Path | None) -> None:
    """Raises DataError with the first problems where a kind that is refused occurs. `where`: the list of all."""
    if not refused:
        return
    if not isinstance(entry, dict):
        raise UserError(
            "this set was prepared before such problems were looked for",
            where=None if where is None else str(where),
            fix="remove the folder and prepare it again, or leave --refuse out",
        )
    found = [kind for kind in refused if entry["counts"][kind]["count"]]
    if not found:
        return
    counts = ", ".join(
        f"{entry['counts'][kind]['count']:,} {_WHAT[kind][entry['counts'][kind]['count'] > 1]}"
        for kind in found
    )
    lines = [
        f"  {kind}: {' and '.join(printable(image['id']) for image in problem['images'])}"
        for kind in found
        for problem in entry["first"][kind]
    ]
    more = sum(entry["counts"][kind]["count"] for kind in found) - len(lines)
    lines += [f"  and {more:,} more"] if more > 0 else []
    raise DataError(
        "\n".join([f"refused: {counts}", *lines]),
        where=None if where is None else str(where),
        fix="repair or remove these images; without --refuse they are only listed",
    )
