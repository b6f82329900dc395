"""Where corrected labels come from: a line at the head of their file, and an entry in the manifest of their run."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.labels import read_comments
from fastdrpl.loaders.errors import DataError

HEAD = "# fastdrpl labels: "
FIELD = "labels_from"  # of manifest.json


@dataclass(frozen=True)
class Origin:
    """The finished run whose labels were corrected."""

    run: str  # its folder, absolute
    hash: str  # its run hash
    data: str  # fingerprint of the prepared data
    dropped: tuple[
        int, ...
    ]  # rows of the prepared training split that were left out, by this run or earlier ones

    def line(self) -> str:
        """The line of a label file."""
        return HEAD + json.dumps(dataclasses.asdict(self))


def origin_of_file(path: Path) -> Origin | None:
    """What a .csv label file says at its head; None for one that `fastdrpl fix` did not write.

    Raises `DataError` for a line that is damaged.
    """
    if path.suffix != ".csv":
        return None
    head = HEAD.encode()
    found = [line for line in read_comments(path) if line.startswith(head)]
    if not found:
        return None
    try:
        return _origin(json.loads(found[0][len(head) :]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the line on where the labels come from is damaged: {error}",
            where=str(path),
            fix="make the file again with `fastdrpl fix`, or remove this line",
        ) from error


def origin_of_run(path: Path) -> Origin | None:
    """Where the labels of a run come from, by its manifest; None if they are those of its data."""
    said = read_json(RunFolder(path).manifest).get(FIELD)
    return None if said is None else _origin(said)


def _origin(said: Mapping[str, Any]) -> Origin:
    return Origin(
        run=str(said["run"]),
        hash=str(said["hash"]),
        data=str(said["data"]),
        dropped=tuple(map(int, said["dropped"])),
    )
