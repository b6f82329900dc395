"""A dataset folder that the library `datasets` loads offline: parquet shards with the images inside."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from fastdrpl.exports.finished import Finished
from fastdrpl.exports.images import ImageFiles
from fastdrpl.exports.places import new_folder
from fastdrpl.files import write_atomic
from fastdrpl.loaders.progress import Progress
from fastdrpl.report.facts import RunFacts

_SHARD = 256 << 20  # bytes of pixels in a shard, and in a row group: what is in memory at a time
_GROUP = 16 << 20

_COLUMNS = {  # of the dataset, and where each stands in the table of labels
    "label": "given",
    "suggested_label": "suggested",
    "is_suspect": "labelled",  # the other way round
    "rank": "rank",
    "score": "score",
    "p_suggested": "p_suggested",
    "p_noisy": "p_noisy",
    "index": "index",
    "row": "row",
    "file": "file",
    "true_label": "truth",
    "is_noisy": "is_noisy",
}
_CLASSES = ("label", "suggested_label", "true_label")


def write_huggingface(run: Finished, out: Path) -> str:
    """A folder with data/train-*.parquet and README.md. Raises `UserError` or `DataError` where the data moved."""
    opened, facts = run.opened, run.facts
    names = opened.description["class_names"]
    images = ImageFiles(opened.data.split("train"))
    table = _columns(run.table)
    shards = max(1, -(-len(table) * images.bytes_each // _SHARD))
    bounds = np.linspace(0, len(table), shards + 1).round().astype(int)
    schema = _schema(table, names)
    with (
        new_folder(out, {"export": "huggingface", "run": facts.hash}) as folder,
        Progress("huggingface", len(table)) as bar,
    ):
        (folder / "data").mkdir()
        for number, (start, stop) in enumerate(pairwise(bounds)):
            place = folder / "data" / f"train-{number:05}-of-{shards:05}.parquet"
            with pyarrow.parquet.ParquetWriter(place, schema) as file:
                for group in _groups(table.slice(start, stop - start), images, schema):
                    file.write_table(group)
                    bar.advance(len(group))
        write_atomic(folder / "README.md", _readme(facts, table).encode())
    return f"{len(table):,} images; datasets.load_dataset({str(out)!r})"


def _columns(table: pyarrow.Table) -> pyarrow.Table:
    """The columns of the dataset beside the image, by its names; a truth outside the classes has no number."""
    columns: dict[str, Any] = {
        ours: table[theirs] for ours, theirs in _COLUMNS.items() if theirs in table.column_names
    }
    columns["is_suspect"] = pyarrow.compute.invert(columns["is_suspect"])
    if "true_label" in columns:
        inside = pyarrow.compute.greater_equal(columns["true_label"], 0)
        columns["true_label"] = pyarrow.compute.if_else(inside, columns["true_label"], None)
    return pyarrow.table(columns)


def _groups(table: pyarrow.Table, images: ImageFiles, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """The rows with their images, a bounded number of bytes at a time."""
    step = max(1, _GROUP // images.bytes_each)
    for start in range(0, len(table), step):
        part = table.slice(start, step)
        encoded = [{"bytes": images[row], "path": None} for row in part["row"].to_pylist()]
        columns = [pyarrow.array(encoded, schema.field("image").type), *part.columns]
        yield pyarrow.table(columns, names=schema.names).cast(schema)


def _schema(table: pyarrow.Table, names: list[str]) -> pyarrow.Schema:
    """With the features in the form in which `datasets` leaves them in a parquet file."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    for field in table.schema:
        kind = "float32" if field.type == pyarrow.float32() else str(field.type).replace("double", "float64")
        features[field.name] = {"dtype": kind, "_type": "Value"}
        if field.name in _CLASSES:
            features[field.name] = {"names": names, "_type": "ClassLabel"}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.schema([pyarrow.field("image", image), *table.schema], metadata=metadata)


_MEANINGS = {
    "image": "the image as the network saw it before any augmentation",
    "label": "the label that was given",
    "suggested_label": "what the network says of the image",
    "is_suspect": "whether the given label looks wrong",
    "rank": "1 = the most doubtful label",
    "score": "how doubtful the label is, in [0, 1], in the order of the rank",
    "p_suggested": "what the network gives its suggestion, not calibrated",
    "p_noisy": "probability that the given label is wrong, by the fitted mixture",
    "index": "sample of the run",
    "row": "row of the prepared training file",
    "file": "name of the image file, where there was one",
    "true_label": "the right label, where it is known",
    "is_noisy": "whether the given label is wrong, where that is known",
}


def _readme(facts: RunFacts, table: pyarrow.Table) -> str:
    rows = [f"| `{name}` | {_MEANINGS[name]} |" for name in ("image", *table.column_names)]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            "    path: data/train-*.parquet",
            "task_categories:",
            "- image-classification",
            "tags:",
            "- label-noise",
            "---",
            "# Training images with doubtful labels marked",
            "",
            f"{facts.suspects:,} of {facts.samples:,} labels look wrong to fastdrpl (method {facts.method}, run "
            f"{facts.hash}). The suggestions are a network's, not a person's: look before you correct.",
            "",
            "| column | meaning |",
            "|---|---|",
            *rows,
            "",
            "The images keep the licence of the data set that they come from.",
            "",
        ]
    )
