"""What a run was made of and with, and the command that makes it again."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastdrpl.config_file import read_table
from fastdrpl.errors import DataError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder


@dataclass(frozen=True)
class ProvenanceFacts:
    """A run's configuration, machine, versions and hashes; empty where the run did not come so far as to write them."""

    recipe: str
    method: str
    seed: int | None
    config: str  # the text of config.toml
    data: str
    class_names: tuple[str, ...]
    samples: int
    identity: Mapping[str, str]  # hashes of what decides the result
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    changed: tuple[Mapping[str, Any], ...]  # settings that were changed on the way, after a collapse
    again: str  # the command
    settings: Mapping[str, str]  # configuration, versions and hashes in one, by dotted names


def read_provenance(folder: RunFolder) -> ProvenanceFacts:
    """Raises `UserError` if the folder has no configuration, `DataError` for damaged files."""
    table = read_table(folder.config)
    begun = folder.manifest.exists() or folder.result.exists()
    manifest = read_json(folder.manifest) if begun else {}
    if not isinstance(manifest, dict):
        raise DataError("manifest.json is damaged", where=str(folder.manifest))
    config, again = str(folder.config), f"{folder.path}-again"
    identity, versions = manifest.get("identity", {}), manifest.get("versions", {})
    return ProvenanceFacts(
        recipe=str(table.get("recipe")),
        method=str(table.get("method")),
        seed=table.get("seed"),
        config=folder.config.read_text(encoding="utf-8"),
        data=str(manifest.get("data", "")),
        class_names=tuple(manifest.get("classes", ())),
        samples=int(manifest.get("samples", 0)),
        identity=identity,
        machine=manifest.get("machine", {}),
        versions=versions,
        changed=tuple(manifest.get("changed", ())),
        again=f"fastdrpl train --config {shlex.quote(config)} --run {shlex.quote(again)}",
        settings=dict(_flat({**table, "versions": versions, "sha256": identity})),
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested table by dotted names; where the run lies is none of its settings."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" != "run":
            yield f"{prefix}{key}", str(value)
