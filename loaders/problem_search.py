"""Looks for the problems of a set that is written: `find_problems`, in one pass over the marks of its images."""

import bisect
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.loaders import identical, near
from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.dataset import Split, split_of
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.marks import MARK
from fastdrpl.loaders.problems import Image, Problem, to_entry
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.sources.source import OpenedSource
from fastdrpl.loaders.unfinished import Progressed

BLANK = 2.0  # levels of 255: the standard deviation that no colour of a blank image exceeds
TINY = 32  # pixels: a file with a shorter side than this (and than the prepared size) is tiny
COMPARED = 100_000  # pairs at most whose pixels are compared: 5 minutes of one core for photos of 256 pixels
_SHOWN = 3000  # pairs from which on it is shown how the comparison gets on
_LIKENESS_OF_SMALL = 0.99  # of images below TINY pixels: handwriting of 16 pixels is often alike up to 0.98

_READS = 16  # images that are read before their pages are given back: each may map megabytes around it


class Written:
    """All images of the written splits, numbered through; reads the few that are looked at."""

    def __init__(self, work: Path, source: OpenedSource, finished: Mapping[str, Progressed]) -> None:
        self.source, self.names = source, list(source.parts)
        parts = source.parts.values()
        self._starts = np.cumsum([0, *(len(part.labels) for part in parts)]).tolist()
        self.labels = np.concatenate([part.labels for part in parts])
        self.split = np.repeat(np.arange(len(self.names)), [len(part.labels) for part in parts])
        self.marks = np.concatenate([np.frombuffer(finished[name].marks, MARK) for name in self.names])
        self.valid = np.ones(len(self.labels), bool)
        self._files: list[tuple[Split, np.ndarray]] = []
        self._reads = 0
        for start, name in zip(self._starts, self.names, strict=False):
            bad = [row for row, _ in finished[name].bad]
            self.valid[start : start + len(source.parts[name].labels)][bad] = False
            path = work / f"{name}.beton"
            tables = read_tables(path)
            split = split_of(name, path, tables, np.ones(len(tables.label), bool))
            self._files.append((split, map_file(split)))

    def place(self, row: int) -> tuple[int, int]:
        """The number of its split and the row in it."""
        number = bisect.bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def stored(self, row: int) -> bytes:
        """The bytes of an image as they are stored."""
        split, file, row = self._file_of(row)
        start = int(split.offset[row])
        return file[start : start + int(split.nbytes[row])].tobytes()

    def pixels(self, row: int) -> np.ndarray:
        """(height, width, 3) uint8."""
        return decode_row(*self._file_of(row))

    def _file_of(self, row: int) -> tuple[Split, np.ndarray, int]:
        """The split of an image, its mapped file, and the row in it.

        Now and then the pages that have been read are given back: they would count as memory of this process.
        """
        self._reads += 1
        if self._reads % _READS == 0:
            for _, file in self._files:
                if isinstance(file, np.memmap):
                    file._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        number, row = self.place(row)
        return *self._files[number], row

    def image(self, row: int) -> Image:
        """What is said of an image."""
        number, row_of_split = self.place(row)
        name = self.names[number]
        ids = self.source.parts[name].ids
        file = ids[row_of_split] if ids else f"{name}/{row_of_split}"
        return Image(name, row_of_split, file, self.source.class_names[int(self.labels[row])])


def find_problems(
    work: Path, source: OpenedSource, finished: Mapping[str, Progressed], *, quiet: bool
) -> tuple[list[Problem], dict[str, Any], dict[str, Any]]:
    """-> (all problems, the most interesting of each kind first; the entries of dataset.json on problems, and on
    identical images). Rows in quarantine do not count."""
    written = Written(work, source, finished)
    sound = np.flatnonzero(written.valid)
    groups = identical.group_identical(sound, written.marks["look"][sound], written.stored)
    copies = [(rows[0], row) for rows in groups for row in rows[1:]]
    blank = _find_blank(written, sound)
    again = np.zeros(len(written.labels), bool)
    again[[row for _, row in copies] + blank] = True
    alike, searched = _find_near(written, sound[~again[sound]], quiet)
    known = bool((written.marks["width"] > 0).any())
    problems = [
        *(_problem("duplicates", written, pair) for pair in _interesting_first(written, copies)),
        *(_problem("near", written, pair, similarity=round(s, 3)) for pair, s in alike),
        *(_problem("blank", written, (row,)) for row in blank),
        *_find_tiny(written, sound),
    ]
    entry = to_entry(
        problems,
        {
            "duplicates": {},
            "near": searched,
            "blank": {"deviation": BLANK},
            "tiny": {"side": min(TINY, source.height)} if known else None,
        },
    )

    def name(row: int) -> dict[str, Any]:
        image = written.image(row)
        return {"split": image.split, "row": image.row, "id": image.id}

    return problems, entry, identical.count_identical(groups, written.labels, written.split, name)


def _problem(kind: Any, written: Written, rows: Iterable[int], **more: Any) -> Problem:
    return Problem(kind, tuple(written.image(row) for row in rows), **more)


def _interesting_first(written: Written, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(pairs, key=lambda pair: -_interest(written, np.array([pair]))[0])


def _interest(written: Written, pairs: np.ndarray) -> np.ndarray:
    """(m, 2) rows -> 0 for nothing, 1 for training and test set, 2 for two labels, 3 for both."""
    first, second = pairs.T
    two_labels = written.labels[first] != written.labels[second]
    return 2 * two_labels + (written.split[first] != written.split[second])


def _find_blank(written: Written, rows: np.ndarray) -> list[int]:
    plain = rows[written.marks["contrast"][rows] <= BLANK + 0.6]  # the grid of a mark is rounded
    return [row for row in plain.tolist() if written.pixels(row).std((0, 1)).max() < BLANK]


def _find_tiny(written: Written, rows: np.ndarray) -> list[Problem]:
    side = np.minimum(written.marks["width"], written.marks["height"])[rows]
    tiny = rows[(side > 0) & (side < min(TINY, written.source.height))]
    tiny = tiny[np.argsort(side[np.searchsorted(rows, tiny)], kind="stable")]
    marks = written.marks
    return [
        _problem("tiny", written, (row,), size=(int(marks["width"][row]), int(marks["height"][row])))
        for row in tiny.tolist()
    ]


def _find_near(
    written: Written, rows: np.ndarray, quiet: bool
) -> tuple[list[tuple[tuple[int, int], float]], dict[str, Any] | None]:
    """Pairs that join all that look the same, each with its similarity; and what was looked for."""
    if written.source.height < near.SMALLEST or len(rows) < 2:
        return [], None
    most = near.BITS_OF_FEW if len(rows) <= near.FEW else near.BITS_OF_MANY
    looks = written.marks["look"][rows]
    unique, first, group = np.unique(looks, return_index=True, return_inverse=True)
    close = near.close_pairs(unique, most, max(10_000, len(rows)))
    same = np.flatnonzero(first[group] != np.arange(len(rows)))
    pairs = np.concatenate(
        [
            np.stack([rows[first[group[same]]], rows[same]], 1),
            np.stack([rows[first[close.first]], rows[first[close.second]]], 1),
        ]
    )
    candidates = len(pairs)
    pairs = _choose(written, pairs, np.concatenate([np.zeros(len(same), np.int64), close.bits]))
    with Progress("looking for copies", len(pairs), unit="pairs", quiet=quiet or len(pairs) <= _SHOWN) as bar:
        alike = near.similarities(pairs, written.pixels, bar.advance)
    wanted = np.where(_is_small(written, pairs), _LIKENESS_OF_SMALL, near.SIMILARITY)
    pairs, alike = np.sort(pairs[alike >= wanted], axis=1), alike[alike >= wanted]
    order = np.lexsort((pairs[:, 0], -alike, -_interest(written, pairs)))
    joined = [(tuple(pairs[k].tolist()), float(alike[k])) for k in order[_forest(pairs[order])].tolist()]
    searched = {
        "differing_bits": close.most,
        "similarity": near.SIMILARITY,
        "cut": close.cut,
        "candidates": candidates,
        "compared": len(pairs),
    }
    return joined, searched


def _choose(written: Written, pairs: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The pairs that are compared: the most interesting, and of those the closest. In the order of their rows."""
    chosen = pairs[np.lexsort((bits, -_interest(written, pairs)))[:COMPARED]]
    return chosen[np.lexsort((chosen[:, 1], chosen[:, 0]))]


def _is_small(written: Written, pairs: np.ndarray) -> np.ndarray:
    """Whether an image of a pair has, or had, too few pixels to be told from others with certainty."""
    side = np.minimum(written.marks["width"], written.marks["height"]).astype(np.int64)
    side = np.where(side > 0, np.minimum(side, written.source.height), written.source.height)
    return np.asarray(side[pairs].min(1) < TINY)


def _forest(pairs: np.ndarray) -> list[int]:
    """Positions of the pairs, in their order, that join what was not joined before."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parent.get(row, row)) != row:
            parent[row] = parent.get(above, above)
            row = above
        return row

    kept = []
    for number, (first, second) in enumerate(pairs.tolist()):
        one, other = root(first), root(second)
        if one != other:
            parent[one] = other
            kept.append(number)
    return kept
