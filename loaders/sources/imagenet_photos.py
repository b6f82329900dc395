"""Where full-size ImageNet photos lie in what is downloaded, and whether they are sorted into class folders."""

import os
import re
from pathlib import Path

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.printable import printable

WNID = re.compile(r"n\d{8}")
PLACES = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")  # of train/ and val/, as archives hold them
FLAT = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
SORT = (
    "tail -n +2 LOC_val_solution.csv | tr ',' ' ' | while read -r image wnid rest; "
    'do mkdir -p "val/$wnid" && mv "val/$image.JPEG" "val/$wnid/"; done'
)


def find_photos(source: Path) -> Path | None:
    """The folder whose `train` has a folder for each class. Raises UserError where there are two."""
    found = [source / place for place in PLACES if _has_classes(source / place / "train")]
    if len(found) > 1:
        raise UserError(
            "photos are here in two places",
            where=" and ".join(printable(str(folder / "train")) for folder in found),
            fix="give --source a folder that holds them once",
        )
    return found[0] if found else None


def check_validation(photos: Path) -> None:
    """Raises UserError unless the validation images lie in class folders, all of them."""
    folder = photos / "val"
    flat = [name for name in os.listdir(folder) if FLAT.fullmatch(name)] if folder.is_dir() else []
    if flat:
        raise UserError(
            f"{len(flat):,} validation images lie in no class folder, the first of them {min(flat)}",
            where=printable(str(folder)),
            fix="move each into val/<WordNet id>/. LOC_val_solution.csv, which is published with them, says which. "
            f"In the folder above val/, with that list there: {SORT}",
        )
    if not _has_classes(folder):
        raise UserError(
            "there are no validation images", where=printable(str(folder)), fix="add val/<WordNet id>/*"
        )


def _has_classes(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(WNID.fullmatch(entry.name) for entry in entries)
