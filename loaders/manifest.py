"""Writes what lies beside the compiled files: `dataset.json`, `quarantine.csv` and the file names."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.loaders.beton_tables import hash_file, read_tables
from fastdrpl.loaders.dataset import MANIFEST, SCHEMA, Dataset, content_fingerprint, ids_path, read_manifest
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.prepare_config import PrepareConfig, relevant_options
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.problems import FIELD, PROBLEMS, describe_problems
from fastdrpl.loaders.shard_writer import WrittenShard
from fastdrpl.loaders.sources.source import OpenedSource, Part
from fastdrpl.loaders.unfinished import Progressed

QUARANTINE = "quarantine.csv"
ORIGIN = "origin"  # of the manifest: where the source lay; no part of the content
_LEAVE_OUT = {  # kind of source -> what to do about a class without a single sound image
    "folder": "repair its images, or remove its folder",
    "table": "repair its images, or remove its lines from the table",
    "webdataset": "repair its images, or leave its samples out of the shards",
    "huggingface": "repair its images, or leave its rows out of the data set",
}


def write_manifest(
    config: PrepareConfig,
    source: OpenedSource,
    finished: dict[str, Progressed],
    work: Path,
    shards: Mapping[str, Sequence[WrittenShard]],
    found: Mapping[str, Any],
    origin: dict[str, str],
) -> None:
    """Write quarantine, file names and `dataset.json`. Raises DataError where a class is left without images.

    `shards`: split -> its tar shards; empty for a set without them. `found`: more entries: the problems. `origin`: of
    `origin_of`.
    """
    splits: dict[str, Any] = {}
    files: dict[str, Any] = {}
    with open(work / QUARANTINE, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["row", "id", "split", "reason"])
        for name, state in finished.items():
            part = source.parts[name]
            rows.writerows(
                (row, part.ids[row] if part.ids else row, name, reason) for row, reason in state.bad
            )
    for name, state in finished.items():
        part = source.parts[name]
        quarantined = [row for row, _ in state.bad]
        if name == "train":
            _check_classes(config, source, part, state)
        splits[name] = {"rows": len(part.labels), "quarantined": quarantined}
        if name in shards:
            splits[name]["shards"] = [
                {"name": shard.name, "samples": shard.samples} for shard in shards[name]
            ]
            for shard in shards[name]:
                files |= shard.files()
        if part.ids is not None:
            lines = "".join(json.dumps(line) + "\n" for line in part.ids)
            ids_path(work, name).write_text(lines, encoding="ascii")
        if state.finished:
            size, digest = state.finished
            tables = read_tables(work / f"{name}.beton").sha256
            files[f"{name}.beton"] = {"bytes": size, "sha256": digest, "tables_sha256": tables}
    for path in (work / QUARANTINE, work / PROBLEMS, *(ids_path(work, name) for name in finished)):
        if path.exists():
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "name": source.name,
        "source": {
            "kind": source.kind,
            "fingerprint": source.fingerprint,
            "labels_checked": source.labels_checked,
        },
        ORIGIN: origin,
        "config": relevant_options(config),
        "height": source.height,
        "width": source.width,
        "class_names": source.class_names,
        "superclass": source.superclass,
        "superclass_names": source.superclass_names,
        "mean": source.mean,
        "std": source.std,
        "flip": source.flip,
        "pad": source.pad,
        "test_may_be_wrong": source.test_may_be_wrong,
        "splits": splits,
        "files": files,
    }
    manifest |= found
    manifest["fingerprint"] = content_fingerprint(manifest)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii")


def _check_classes(config: PrepareConfig, source: OpenedSource, part: Part, state: Progressed) -> None:
    good = np.bincount(part.labels, minlength=len(source.class_names))
    there = good > 0
    good -= np.bincount(part.labels[[row for row, _ in state.bad]], minlength=len(good))
    empty = np.flatnonzero((good == 0) & (there | (not source.may_lack_classes)))
    if len(empty):
        bad = [(row, reason) for row, reason in state.bad if part.labels[row] == empty[0]]
        reasons = ", ".join(sorted({reason for _, reason in bad})) or "it has none"
        first = f"; the first of {len(bad):,} is {printable(part.ids[bad[0][0]])}" if bad and part.ids else ""
        raise DataError(
            f"no image of the class {source.class_names[empty[0]]!r} can be used ({reasons}){first}",
            where=printable(str(config.source or source.name)),
            fix=_LEAVE_OUT.get(config.kind, "download its images again"),
        )


def describe(dataset: Dataset, seconds: float | None = None) -> list[str]:
    """What a prepared dataset holds, in lines for the user."""
    names = dataset.class_names
    shown = ", ".join(names if len(names) <= 12 else (*names[:6], "...", *names[-3:]))
    lines = [f"{dataset.name}: {len(names)} classes in this order: {shown}"]
    for name, split in dataset.splits.items():
        bad = int((~split.valid).sum())
        text = f"{name}: {len(split):,} images of {split.width}x{split.height}, {split.store}"
        text += f", {bad:,} of them quarantined" if bad else ""
        lines.append(text + (f"; {len(split.shards):,} tar shards" if split.shards else ""))
    if not dataset.has("test"):
        lines.append("There is no test set: accuracies will be empty.")
    elif not dataset.source.labels_checked:
        judged = (
            "leave --test-fraction out" if dataset.test_may_be_wrong else "prepare them as training images"
        )
        lines.append(
            f"The {len(dataset.split('test')):,} test images are held out: a run does not judge their labels "
            f"(to have them judged too, train with --judge all; to train on them, {judged})."
        )
    with open(dataset.path / QUARANTINE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    reasons, first = (
        Counter(row["reason"] for row in rows),
        {row["reason"]: row["id"] for row in reversed(rows)},
    )
    lines += [
        f"quarantined: {count:,} x {reason}, first {printable(first[reason])}"
        for reason, count in reasons.most_common()
    ]
    lines += describe_problems(read_manifest(dataset.path).get(FIELD))
    size = sum(path.stat().st_size for path in dataset.path.iterdir())
    took = "" if seconds is None else f" in {seconds:.1f} s"
    return [*lines, f"{size / 1e6:,.1f} MB in {dataset.path}{took}"]
