"""A finished run, opened for use: its network, data and labels, without what it takes to train."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fastdrpl.calibration import Calibration, calibration_from
from fastdrpl.errors import DataError, UserError
from fastdrpl.export import read_export
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.kernels.crop import Crop
from fastdrpl.labels import Labels, load_labels
from fastdrpl.loaders.dataset import Dataset, open_dataset


@dataclass(frozen=True)
class OpenRun:
    """The network in evaluation mode, and what model.json says of it; data and labels are read when asked for."""

    folder: RunFolder
    network: nn.Module
    description: dict[str, Any]
    moved: Path | None = None  # where the data lie now

    @property
    def crop(self) -> Crop:
        """How a stored image becomes the network's input: the centre, normalised."""
        said = self.description
        return Crop(size=said["input_size"], mean=tuple(said["mean"]), std=tuple(said["std"]))

    @property
    def calibration(self) -> Calibration | None:
        """The temperature of its probabilities; None for a run of a version that fitted none."""
        return calibration_from(self.description, self.folder.export / "model.json")

    @functools.cached_property
    def labels(self) -> Labels:
        """What the run was told, with the truth where it is known."""
        return load_labels(self.folder.noise)

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """Of the prepared data that the run had, wherever they lie now."""
        return str(read_json(self.folder.manifest)["identity"]["data"])

    @functools.cached_property
    def data(self) -> Dataset:
        """See `open_data_of`."""
        return open_data_of(self.folder, self.moved)


def open_data_of(folder: RunFolder, moved: Path | None = None) -> Dataset:
    """The prepared data set of a run, at `moved` or where it was; an embedded one goes with its folder.

    Raises `UserError` or `DataError` where it is not there, is damaged, or is not the one that the run had.
    """
    manifest = read_json(folder.manifest)
    place = moved if moved is not None else Path(manifest["data"])
    if moved is None and not place.exists() and folder.prepared.exists():
        place = folder.prepared
    data = open_dataset(place)
    if data.fingerprint != manifest["identity"]["data"]:
        raise DataError(
            "these are not the images that the run was trained on",
            where=str(place),
            fix="say where they are now with --data",
        )
    return data


def open_run(path: Path, *, data: Path | None = None) -> OpenRun:
    """A finished run. Raises `UserError` if it is not finished, `DataError` for a damaged export."""
    folder = RunFolder(path)
    if not folder.result.exists():
        raise UserError(
            "the run is not finished: there is no network yet", where=str(path), fix="fastdrpl status RUN"
        )
    network, description = read_export(folder.export)
    return OpenRun(folder, network, description, data)
