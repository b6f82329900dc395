"""Where the images of a run came from, and where nothing may be written."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl.errors import DataError, UserError
from fastdrpl.files import read_json
from fastdrpl.fixing.judged import Judged
from fastdrpl.labels import Labels
from fastdrpl.loaders.dataset import MANIFEST, Dataset, open_dataset, read_manifest
from fastdrpl.loaders.manifest import ORIGIN
from fastdrpl.loaders.prepare_config import LISTED
from fastdrpl.loaders.printable import printable

_INSTEAD = {
    "folder": "--out-folder DIR makes a corrected copy of the image folder",
    "table": "--out-table FILE writes a corrected table",
}


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a run, and what they were prepared from."""

    data: Dataset
    files: tuple[str, ...]  # of each row of the training split, below or in the source
    source: Path
    options: dict[str, Any]  # of `prepare`, that say how the source is read


def prepared_of(run: Judged, kind: str, moved: Path | None, source: Path | None) -> Prepared:
    """Open the prepared data of a run (`moved`: where they are now) and find their source, which must be of this kind.

    Raises `UserError` or `DataError` where they are not there, or are not those that the run had.
    """
    place = moved if moved is not None else Path(read_json(run.folder.manifest)["data"])
    data = open_dataset(place)
    if data.fingerprint != run.data:
        raise DataError(
            "these are not the images that the run was trained on",
            where=str(place),
            fix="say where they are now with --data",
        )
    if data.source.kind != kind:
        raise UserError(
            f"the data of this run were prepared from kind {data.source.kind}, not from a {kind}",
            where=str(place),
            fix=_INSTEAD.get(data.source.kind, "--out labels.csv is for every kind"),
        )
    options = dict(read_manifest(place).get(ORIGIN, {}))
    said = options.pop("source", None)
    if source is None and said is None:
        raise UserError(
            f"{MANIFEST} does not say where the images came from",
            where=str(place / MANIFEST),
            fix="say it with --source",
        )
    source = Path(said) if source is None else source
    if not source.exists():
        raise UserError(
            "the source of the images is not there",
            where=printable(str(source)),
            fix="say where it is now with --source",
        )
    return Prepared(data, data.ids("train") or (), source, options)


def final_classes(prepared: Prepared, labels: Labels, dropped: Sequence[int]) -> dict[str, str | None]:
    """File -> name of the class that it has from now on, None where it is left out.

    `labels` are the corrected ones, `dropped` the rows that this run or those before it have left out.
    """
    names, files = labels.class_names, prepared.files
    pairs = zip(labels.source_row.tolist(), labels.given.tolist(), strict=True)
    final: dict[str, str | None] = {files[row]: names[k] for row, k in pairs}
    return final | {files[row]: None for row in dropped}


def kept_places(run: Judged, moved: Path | None, source: Path | None) -> list[tuple[Path, str]]:
    """The folders and files that stay as they are, as far as they are known, and what they are."""
    kept = [(run.folder.path, "the folder of the run")]
    data = moved if moved is not None else Path(read_json(run.folder.manifest)["data"])
    if (data / MANIFEST).exists():
        manifest = read_manifest(data)
        said, kind = manifest.get(ORIGIN, {}).get("source"), manifest["source"]["kind"]
        kept.append((data, "the prepared data"))
        if said is not None and kind in (*LISTED, "table"):
            kept.append((Path(said), "the source of the data"))
    return kept if source is None else [*kept, (source, "the source of the data")]


def refuse_inside(out: Path, place: Path, what: str) -> None:
    """Raises `UserError` where `out` lies in the folder `place`, or is that folder or file itself."""
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(place)):
        raise UserError(
            f"the output lies in {what}, which stays as it is",
            where=printable(str(out)),
            fix="choose another place",
        )
