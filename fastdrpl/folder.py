"""The run folder: its files, and the check that a folder and a configuration belong together."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdrpl import config_file
from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.files import TEMPORARY_PREFIX, read_json, sha256_file, write_atomic, write_json
from fastdrpl.lock import LOCK_FILE
from fastdrpl.methods import load_method
from fastdrpl.settings import flatten

# What may differ when a run goes on: where it lies, how often it is saved, how pixels reach the device, how steps are
# carried out.
_NOT_IDENTITY = (
    "run",
    "data",
    "track_with",
    "judge",
    "engine.loader",
    "engine.mode",
    "engine.workers",
    "engine.ranks",
    "engine.threads",
    "engine.eval_batch",
    "engine.ring",
    "engine.memory",
)
_NOT_IDENTITY_SECTIONS = ("checkpoint.",)


COLLAPSED = ".collapsed"  # ends the name of the checkpoint that a run for want of labels ends with


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
    def metrics_csv(self) -> Path:
        """The same as a table."""
        return self.path / "metrics.csv"

    @property
    def tracking(self) -> Path:
        """What trackers write."""
        return self.path / "tracking"

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
    def labels_csv(self) -> Path:
        return self.path / "labels.csv"

    @property
    def held_out(self) -> tuple[Path, Path]:
        """With --judge all: the same two files of the held-out images."""
        return self.path / "held_out.parquet", self.path / "held_out.csv"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

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
    """The fields that decide the result, by dotted name, as JSON values: the common ones and the method's.

    Files, and a method of the user's own, are known by their content, wherever they lie.
    """
    identity = {
        name: _json_value(value)
        for name, value in flatten(config).items()
        if name not in _NOT_IDENTITY and not name.startswith(_NOT_IDENTITY_SECTIONS)
    }
    method = load_method(config.method)
    if method.digest:
        identity["method"] = f"{method.section}.py with sha256 {method.digest}"
    return identity


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return f"file with sha256 {sha256_file(value)}" if value.is_file() else str(value)
    return list(value) if isinstance(value, tuple) else value


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


def check_claim(folder: RunFolder, config: Config) -> None:
    """Check that a folder may take a run of this configuration: an empty one, one without a checkpoint, or its own.

    A run that ended because almost no label counted as right may go on with other values of the settings that decide
    that. Raises `UserError` that lists the differing fields, or if the folder holds something else. Writes nothing.
    """
    if folder.config.exists():
        differing = _differing(folder, config)
        if differing and is_bound(folder) and not differing.keys() <= _adjustable(folder):
            listed = [f"{name}: {before!r} there, {now!r} now" for name, (before, now) in differing.items()]
            raise UserError(
                "this run folder belongs to another configuration; nothing was changed",
                where=f"{folder.path}: " + "; ".join(listed),
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


def claim(folder: RunFolder, config: Config) -> None:
    """Write config.toml, where `check_claim` has allowed it; what a collapsed run changes is noted in the manifest."""
    differing = _differing(folder, config) if folder.config.exists() else {}
    if differing and is_bound(folder):
        manifest = read_json(folder.manifest)
        changes = [*manifest.get("changed", []), {name: list(pair) for name, pair in differing.items()}]
        write_json(folder.manifest, {**manifest, "changed": changes})
    if differing or not folder.config.exists() or stored_config(folder).labels != config.labels:
        write_atomic(folder.config, config_file.dumps(config).encode())


def _differing(folder: RunFolder, config: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that decide the result and are not as they were: name -> (there, now).

    Not a label file that was given before and now: what lies at its old place today says nothing, and the labels
    themselves are compared when they have been read (`beginning.refuse_others`).
    """
    before, now = identity_of(stored_config(folder)), identity_of(config)
    if is_bound(folder) and before.get("labels") and now.get("labels"):
        before["labels"] = now["labels"]
    return {
        name: (before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }


def is_bound(folder: RunFolder) -> bool:
    """Whether something was trained here: a folder without a checkpoint binds nobody."""
    return folder.result.exists() or bool(list_checkpoints(folder.checkpoints))


def stored_config(folder: RunFolder) -> Config:
    """The configuration in a run folder, also of runs from before a setting had its present name."""
    from fastdrpl.recipes import recipe_named

    table = config_file.read_table(folder.config)
    base = recipe_named(str(table.get("recipe"))).config_for(str(table.get("method")))
    return config_file.overlay_run(base, table, where=str(folder.config))


def _adjustable(folder: RunFolder) -> set[str]:
    """The settings that a run which ended for want of labels may go on with another value of, until it has gone on."""
    newest = list_checkpoints(folder.checkpoints)[-1:]
    if not newest or not newest[0].name.endswith(COLLAPSED):
        return set()
    progress = read_json(folder.progress) if folder.progress.exists() else {}
    return set(progress.get("adjustable", ()))
