"""A dataset folder that FiftyOne imports: `fo.Dataset.from_dir(FOLDER, fo.types.FiftyOneDataset)`.

Written in the form without a version, which holds plain samples rather than the tables of one version's database; the
importer recognises it. FiftyOne itself is not needed to write it.
"""

import json
from pathlib import Path
from typing import Any

from fastdrpl.exports.finished import Finished
from fastdrpl.exports.images import ImageFiles
from fastdrpl.exports.places import new_folder
from fastdrpl.files import write_json
from fastdrpl.loaders.progress import Progress

_STEP = 1000


def write_fiftyone(run: Finished, out: Path) -> str:
    """A folder with metadata.json, samples.json and data/. Raises `UserError` or `DataError` where the data moved."""
    opened, facts = run.opened, run.facts
    images = ImageFiles(opened.data.split("train"))
    table = run.table
    names = list(opened.description["class_names"])
    classes = {"ground_truth": names, "prediction": names}
    about = {"run": facts.hash, "recipe": facts.recipe, "method": facts.method}
    with (
        new_folder(out, {"export": "fiftyone", "run": facts.hash}) as folder,
        Progress("fiftyone", len(table)) as bar,
        open(folder / "samples.json", "w", encoding="utf-8") as samples,
    ):
        (folder / "data").mkdir()
        write_json(
            folder / "metadata.json",
            {
                "name": f"fastdrpl-{facts.hash}",
                "media_type": "image",
                "info": {"classes": classes, "fastdrpl": about},
            },
        )
        samples.write('{"samples": [')
        for start in range(0, len(table), _STEP):
            rows = table.slice(start, _STEP).to_pylist()
            for number, row in enumerate(rows, start):
                file = f"data/{row['index']:08}{images.ending}"
                (folder / file).write_bytes(images[row["row"]])
                samples.write((",\n" if number else "\n") + json.dumps(_sample(row, file)))
            bar.advance(len(rows))
        samples.write("\n]}\n")
    return f"{len(table):,} images; fiftyone.Dataset.from_dir({str(out)!r}, fiftyone.types.FiftyOneDataset)"


def _sample(row: dict[str, Any], file: str) -> dict[str, Any]:
    """One sample; what is not known is left out, as FiftyOne has it for fields that are not set."""
    sample = {
        "filepath": file,
        "tags": ["train", *([] if row["labelled"] else ["suspect"])],
        "ground_truth": _classification(row["given_name"]),
        "prediction": _classification(row["suggested_name"], row["p_suggested"]),
        "mistakenness": row["score"],
        "p_noisy": row["p_noisy"],
        "rank": row["rank"],
        "index": row["index"],
        "row": row["row"],
        "file": row["file"],
        "is_noisy": row.get("is_noisy"),
    }
    if row.get("truth_name") is not None:
        sample["truth"] = _classification(row["truth_name"])
    return {name: value for name, value in sample.items() if value is not None}


def _classification(label: str, confidence: float | None = None) -> dict[str, Any]:
    known = {} if confidence is None else {"confidence": confidence}
    return {"_cls": "Classification", "label": label, **known}
