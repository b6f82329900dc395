"""A folder that `save_to_disk` of the library `datasets` wrote. Nothing is fetched, and no script is run."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.extras import require
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.photos import (
    MAY_BE_WRONG,
    Listing,
    divide,
    number_labels,
    open_photos,
    refuse_fraction,
    stamp,
)
from fastdrpl.loaders.sources.pictures import Place, Refused, Target
from fastdrpl.loaders.sources.source import OpenedSource
from fastdrpl.loaders.sources.split_names import TEST, TRAIN, VAL, by_split

MARKS = ("dataset_dict.json", "state.json")  # of a DatasetDict and of a Dataset
IMAGE_NAMES = ("image",)
LABEL_NAMES = ("label", "labels", "fine_label")
AT_ONCE = 64  # images read from the disk at a time
SHOWN = 3  # rows that a message names
OUTSIDE = "the image lies outside the saved folder, which is not followed (save_to_disk packs images into it)"


def open_huggingface(
    source: Path, *, target: Target, test_fraction: float, classes: Path | None, workers: int, seed: int
) -> OpenedSource:
    """Open the dataset and read its labels. Raises UserError (not installed, columns) or DataError (damaged)."""
    datasets = require("datasets")
    splits, notes = _load(datasets, source)
    features = splits["train"].features
    kinds = (datasets.Image, datasets.ClassLabel)
    image = _choose(features, IMAGE_NAMES, kinds[0], "image", source)
    label = _choose(features, LABEL_NAMES, kinds[1], "label", source)
    if not isinstance(features[image], datasets.Image):
        raise UserError(
            f"the column {image!r} is no Image column; {_columns(features)}", where=printable(str(source))
        )
    texts, names = {}, {}
    for split, dataset in splits.items():
        if image not in dataset.features or label not in dataset.features:
            raise DataError(
                f"{split} has other columns than train: {_columns(dataset.features)}",
                where=printable(str(source)),
            )
        texts[split], names[split] = _labels(datasets, dataset, label, source)
    used, more = _choose_test(texts)
    files = [path for path in sorted(source.rglob("*")) if not path.name.startswith("cache-")]
    notes += [f"columns: {image!r} and {label!r}", *more]
    if "test" in used:
        refuse_fraction(test_fraction, where=printable(str(source)))
    present = list(dict.fromkeys(name for split in used.values() for name in names[split])) or None
    known = [text for split in used.values() for text in _known(texts[split], split, source)]
    labels, class_names = number_labels(known, classes, present)
    count = len(texts["train"])
    if "test" in used:
        rows = {"train": np.arange(count), "test": np.arange(count, len(labels))}
    else:
        rows = divide(labels, test_fraction, seed, where=printable(str(source)))
        notes += [MAY_BE_WRONG] if "test" in rows else []
    return open_photos(
        Listing(
            labels=labels,
            ids=[f"{split}/{row}" for split in used.values() for row in range(len(texts[split]))],
            fetch=_fetcher([splits[split] for split in used.values()], image, source),
            stamps=[(str(path.relative_to(source)), stamp(str(path))) for path in files],
        ),
        rows,
        kind="huggingface",
        name=printable(source.resolve().name) or "huggingface",
        where=printable(str(source)),
        class_names=class_names,
        target=target,
        workers=workers,
        test_may_be_wrong="test" in rows and "test" not in used,
        notes=notes,
    )


def _load(datasets: Any, source: Path) -> tuple[dict[str, Any], list[str]]:
    """The splits that may be used, "train" among them, and what to tell the user."""
    path = os.path.abspath(source)
    if not any((source / mark).is_file() for mark in MARKS) or "::" in path:  # which it takes for an address
        raise UserError(
            "no dataset that `save_to_disk` wrote is here",
            where=printable(str(source)),
            fix="in Python: load_dataset(...).save_to_disk(FOLDER); then give --source FOLDER",
        )
    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = str(error).strip().split("\n")[0][:200]
        raise DataError(
            f"the dataset cannot be read: {said or type(error).__name__}", where=printable(path)
        ) from None
    if isinstance(loaded, datasets.Dataset):
        return {"train": loaded}, []
    found = by_split(loaded)
    if len(found.get(TRAIN, ())) != 1:
        what = "several splits for training" if found.get(TRAIN) else "no split 'train'"
        raise UserError(f"{what} in the dataset; it has {', '.join(loaded)}", where=printable(path))
    used = [name for split in (TRAIN, TEST, VAL) for name in found.get(split, ())]
    others = [name for name in loaded if name not in used]
    notes = [f"splits that are not used: {', '.join(others)}"] if others else []
    return {("train" if name == used[0] else name): loaded[name] for name in used}, notes


def _choose(features: Any, names: Sequence[str], kind: type, what: str, source: Path) -> str:
    """The column of that name, or the only one of that kind."""
    for name in names:
        if name in features:
            return name
    of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(of_kind) == 1:
        return str(of_kind[0])
    raise UserError(
        f"which column is the {what}? {_columns(features)}",
        where=printable(str(source)),
        fix=f"name one {names[0]!r}: dataset.rename_column(...)",
    )


def _columns(features: Any) -> str:
    return "the columns are " + ", ".join(
        f"{name!r} ({getattr(feature, 'dtype', None) if type(feature).__name__ == 'Value' else type(feature).__name__})"
        for name, feature in features.items()
    )


def _labels(datasets: Any, dataset: Any, column: str, source: Path) -> tuple[list[str | None], list[str]]:
    """Labels as text, None where there is none, and the names of the classes where the column knows them."""
    feature = dataset.features[column]
    values = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        wrong = [
            row for row, value in enumerate(values) if value is not None and not -1 <= value < len(names)
        ]
        if wrong:
            raise DataError(
                f"label {values[wrong[0]]} of row {wrong[0]} is not in 0..{len(names) - 1}",
                where=printable(str(source)),
            )
        return [None if value in (None, -1) else names[value] for value in values], names
    dtype = str(getattr(feature, "dtype", ""))
    if isinstance(feature, datasets.Value) and dtype.removeprefix("large_") == "string":
        return [None if value is None else value.strip() or None for value in values], []
    if isinstance(feature, datasets.Value) and "int" in dtype:
        return [None if value is None else str(value) for value in values], []
    raise UserError(
        f"the column {column!r} is no ClassLabel, text or whole number; {_columns(dataset.features)}",
        where=printable(str(source)),
    )


def _choose_test(texts: dict[str, list[str | None]]) -> tuple[dict[str, str], list[str]]:
    """{"train": "train"[, "test": the split that tests]}, and what to tell the user."""
    notes = []
    tests = [
        split for split in texts if split != "train"
    ]  # the first of them that has labels is the test set
    for split in tests:
        if any(text is not None for text in texts[split]):
            rest = [other for other in tests if other != split]
            notes.append(f"`{split}` is the test set" + (f"; not used: {', '.join(rest)}" if rest else ""))
            return {"train": "train", "test": split}, notes
        notes.append(f"`{split}` has no labels.")
    return {"train": "train"}, notes


def _known(texts: list[str | None], split: str, source: Path) -> list[str]:
    lost = [f"{split}/{row}" for row, text in enumerate(texts) if text is None]
    if lost:
        more = f" and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else ""
        raise DataError(
            f"images without a label: {', '.join(lost[:SHOWN])}{more}", where=printable(str(source))
        )
    return [text for text in texts if text is not None]


def _fetcher(parts: list[Any], image: str, source: Path) -> Callable[[np.ndarray], Iterator[Place]]:
    """Encoded images of the datasets, one after the other; an image that is not packed is a file below the source."""
    parts = [part.select_columns([image]).with_format("arrow") for part in parts]
    ends, folder = np.cumsum([len(part) for part in parts]), os.path.abspath(source)

    def fetch(rows: np.ndarray) -> Iterator[Place]:
        for part, start, end in zip(parts, ends - [len(part) for part in parts], ends, strict=True):
            here = rows[(rows >= start) & (rows < end)] - start
            for first in range(0, len(here), AT_ONCE):
                for entry in part[here[first : first + AT_ONCE].tolist()][image].to_pylist():
                    yield _place(entry, folder)

    return fetch


def _place(entry: dict[str, Any] | None, folder: str) -> Place:
    if entry is None or (entry["bytes"] is None and not entry["path"]):
        return b""
    if entry["bytes"] is not None:
        data: bytes = entry["bytes"]
        return data
    path = os.path.normpath(os.path.join(folder, entry["path"]))
    return path if path.startswith(os.path.join(folder, "")) else Refused(OUTSIDE)
