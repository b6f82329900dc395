"""Images that are in a prepared set more than once: under two labels, or in the training set and the test set.

Compared are the images as they are stored. A few bytes of each are looked at first; only where these agree is the whole
image read.
"""

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.loaders.beton_tables import read_tables
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.source import Part
from fastdrpl.loaders.unfinished import Progressed

FIELD = "identical_images"  # of dataset.json
PAIRS = 10  # that dataset.json lists of each kind
_SPOTS, _BYTES = 8, 8  # places of an image that are looked at first, and how many bytes there


def find_identical(
    work: Path, parts: Mapping[str, Part], finished: Mapping[str, Progressed]
) -> dict[str, Any]:
    """What dataset.json says of identical images: how many groups of them, and the first pairs.

    `two_labels`: groups whose images have different labels. `train_and_test`: groups with images in both splits.
    `repeated`: how many images could be left out because the same image is there before. Quarantined rows do not count.
    """
    starts = np.cumsum([0, *(len(part.labels) for part in parts.values())]).tolist()

    def place(row: int) -> tuple[str, int]:
        number = bisect.bisect_right(starts, row) - 1
        return list(parts)[number], row - starts[number]

    labels = np.concatenate([part.labels for part in parts.values()])
    sound, keys, digests = _look_at(work, parts, finished)
    groups = _group(sound, keys, digests)
    two_labels, both, repeated = [], [], 0
    for rows in groups:
        repeated += len(rows) - 1
        other = next((row for row in rows if labels[row] != labels[rows[0]]), None)
        if other is not None:
            two_labels.append((rows[0], other))
        other = next((row for row in rows if place(row)[0] != place(rows[0])[0]), None)
        if other is not None:
            both.append((rows[0], other))

    def listed(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        shown = [[_name(place(row), parts) for row in pair] for pair in pairs[:PAIRS]]
        return {"groups": len(pairs), "pairs": shown}

    return {"repeated": repeated, "two_labels": listed(two_labels), "train_and_test": listed(both)}


def describe_identical(found: object) -> list[str]:
    """Lines for the user on what `find_identical` found; none for a set that was prepared before it was looked for."""
    if not isinstance(found, dict):
        return []
    lines = []
    for key, what in (
        ("two_labels", "stand under two labels"),
        ("train_and_test", "are in the training set and in the test set"),
    ):
        entry = found.get(key, {})
        if entry.get("groups"):
            first = " and ".join(printable(str(image["id"])) for image in entry["pairs"][0])
            lines.append(
                f"warning: {entry['groups']:,} identical images {what}, {first} for one (dataset.json lists the first)"
            )
    if found.get("repeated") and not lines:
        lines.append(f"{found['repeated']:,} images are there more than once, each time with the same label.")
    return lines


def _name(place: tuple[str, int], parts: Mapping[str, Part]) -> dict[str, Any]:
    split, row = place
    ids = parts[split].ids
    return {"split": split, "row": row, "id": ids[row] if ids else f"{split}/{row}"}


def _look_at(
    work: Path, parts: Mapping[str, Part], finished: Mapping[str, Progressed]
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Of all rows: whether they hold an image (N,) bool, some bytes of each (N, ...) uint8; and per split its file."""
    sound, keys = [], []
    files: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for name, part in parts.items():
        tables = read_tables(work / f"{name}.beton")
        data = np.memmap(work / f"{name}.beton", np.uint8, mode="r")
        good = np.ones(len(part.labels), bool)
        good[[row for row, _ in finished[name].bad]] = False
        key = np.zeros((len(part.labels), 8 + _SPOTS * _BYTES), np.uint8)
        key[:, :8] = tables.nbytes.astype("<i8").view(np.uint8).reshape(-1, 8)
        room = np.maximum(tables.nbytes - _BYTES, 0)
        for spot in range(_SPOTS):
            start = tables.offset + room * (2 * spot + 1) // (2 * _SPOTS)
            for byte in range(_BYTES):
                at = np.minimum(start + byte, tables.offset + np.maximum(tables.nbytes - 1, 0))
                key[:, 8 + spot * _BYTES + byte] = data[np.minimum(at, len(data) - 1)]
        sound.append(good)
        keys.append(key)
        files.append((data, tables.offset, tables.nbytes))
    return np.concatenate(sound), np.concatenate(keys), files


def _group(
    sound: np.ndarray, keys: np.ndarray, files: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> list[list[int]]:
    """Groups of two or more rows with one and the same image, by their first row; rows are ascending."""
    rows = np.flatnonzero(sound)
    if not len(rows):
        return []
    whole = np.ascontiguousarray(keys[rows]).view(np.dtype((np.void, keys.shape[1]))).ravel()
    _, group, counts = np.unique(whole, return_inverse=True, return_counts=True)
    starts = np.cumsum([0, *(len(offset) for _, offset, _ in files)])
    by_digest: dict[bytes, list[int]] = {}
    for row in rows[counts[group] > 1].tolist():
        number = int(np.searchsorted(starts, row, side="right")) - 1
        data, offset, nbytes = files[number]
        first, size = int(offset[row - starts[number]]), int(nbytes[row - starts[number]])
        by_digest.setdefault(hashlib.sha256(data[first : first + size].tobytes()).digest(), []).append(row)
    return [found for found in by_digest.values() if len(found) > 1]
