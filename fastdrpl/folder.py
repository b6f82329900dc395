"""The run folder: its files, and the check that a folder and a configuration belong together."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl import config_file
from fastdrpl.config import Config, flatten
from fastdrpl.errors import UserError
from fastdrpl.files import TEMPORARY_PREFIX, write_atomic
from fastdrpl.lock import LOCK_FILE

# What may differ when a run goes on: where it lies, how often it is saved, how pixels reach the device.
_NOT_IDENTITY = (
    "run",
    "data",
    "checkpoint.",
    "engine.loader",
    "engine.workers",
    "engine.ranks",
    "engine.threads",
)


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run; the layout is a contract."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        return self.path / "progress.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def labels(self) -> Path:
        return self.path / "labels.parquet"

    @property
    def noise(self) -> Path:
        """The labels that the run is told, with the truth where it is known."""
        return self.path / "noise.npz"

    @property
    def noise_rates(self) -> Path:
        return self.path / "noise.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def prepared(self) -> Path:
        """Where an embedded data set is prepared."""
        return self.path / "data"

    def stage(self, name: str) -> Path:
        return self.path / "stages" / name


def identity_of(config: Config) -> dict[str, Any]:
    """The fields that decide the result, by dotted name, as JSON values."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config).items()
        if not name.startswith(_NOT_IDENTITY)
    }


def fingerprint_of(config: Config) -> str:
    """sha256 (hex) of the fields that decide the result."""
    return hashlib.sha256(json.dumps(identity_of(config), sort_keys=True).encode()).hexdigest()


def run_folder(config: Config) -> RunFolder:
    """The folder a configuration names, or runs/<recipe>-<hash8> of what decides the result and the data's path."""
    if config.run is not None:
        return RunFolder(config.run)
    data = "" if config.data is None else str(config.data.resolve())
    name = hashlib.sha256((fingerprint_of(config) + data).encode()).hexdigest()[:8]
    return RunFolder(Path("runs") / f"{config.recipe}-{name}")


def claim(folder: RunFolder, config: Config) -> None:
    """Write config.toml into a new folder, or check that the one there is the same.

    Raises `UserError` that lists the differing fields, or if the folder holds something else.
    """
    if folder.config.exists():
        before = identity_of(
            config_file.overlay(Config(), config_file.read_table(folder.config), where=str(folder.config))
        )
        now = identity_of(config)
        differing = [
            f"{name}: {before[name]!r} there, {now[name]!r} now" for name in now if before[name] != now[name]
        ]
        if differing:
            raise UserError(
                "this run folder belongs to another configuration; nothing was changed",
                where=f"{folder.path}: " + "; ".join(differing),
                fix="give another --run, or the same configuration to continue this one",
            )
        return
    foreign = sorted(
        p.name
        for p in folder.path.iterdir()
        if p.name != LOCK_FILE and not p.name.startswith(TEMPORARY_PREFIX)
    )
    if foreign:
        raise UserError(
            "the folder is not empty and is no run folder (it has no config.toml)",
            where=f"{folder.path}: {', '.join(foreign[:5])}",
            fix="give another --run",
        )
    write_atomic(folder.config, config_file.dumps(config).encode())
