"""The manifest of a checkpoint: proves that its files are whole and tells whose they are; without torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdrpl import __version__
from fastdrpl.files import dump_json, sha256_file
from fastdrpl.loaders.errors import DataError, UserError

SCHEMA = 1
MANIFEST, STATE = "manifest.json", "state.json"


class CheckpointError(DataError):
    """A checkpoint is damaged: the text names the file and what is wrong with it."""


class CheckpointMismatch(UserError):
    """A checkpoint is sound, but belongs to another configuration, dataset or version of fastdrpl."""


def tensor_file(number: int) -> str:
    """The name of the n-th file of tensors, from 0."""
    return f"tensors-{number:03d}.safetensors"


def seal_manifest(identity: Mapping[str, str], files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The content of `manifest.json`; `files` tells size and sha256 of each file."""
    return _close(
        {"schema": SCHEMA, "fastdrpl": __version__, "identity": dict(identity), "files": dict(files)}
    )


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Checks size and sha256 of every file of a checkpoint and returns its manifest.

    Raises CheckpointError naming the damaged file, CheckpointMismatch if another version of the format
    wrote it.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        try:
            size, digest = (path / name).stat().st_size, sha256_file(path / name)
        except OSError as error:
            raise _damaged(path / name, f"cannot be read: {error.strerror}") from error
        if size != expected["size"]:
            raise _damaged(path / name, f"has {size} bytes, the manifest says {expected['size']}")
        if digest != expected["sha256"]:
            raise _damaged(path / name, "has changed since it was written (sha256 differs)")
    return manifest


def check_identity(path: Path, manifest: dict[str, Any], identity: Mapping[str, str]) -> None:
    """Raises CheckpointMismatch, listing the keys, unless a checkpoint was written with this identity."""
    stored = manifest.get("identity") or {}
    differing = [key for key in sorted({*stored, *identity}) if stored.get(key) != identity.get(key)]
    if differing:
        raise CheckpointMismatch(
            f"checkpoint {path.name} belongs to another run; what differs: {', '.join(differing)}",
            where=str(path),
            fix="use the configuration and the dataset this run was started with, or another --run folder",
        )


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"damaged checkpoint {path.parent.name}: {path.name} {what}",
        where=str(path),
        fix="start the run again: it goes on from the newest sound checkpoint",
    )


def _close(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes, closed by the sha256 of everything before: damage to itself is found too."""
    return dump_json({**manifest, "seal": hashlib.sha256(dump_json(manifest)).hexdigest()})


def _read_manifest(path: Path) -> dict[str, Any]:
    place = path / MANIFEST
    try:
        data = place.read_bytes()
        manifest = json.loads(data)
        sealed = isinstance(manifest, dict) and manifest.pop("seal", None) and _close(manifest) == data
    except OSError as error:
        raise _damaged(place, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or JSON that we would never write, such as NaN
        raise _damaged(place, f"is not a manifest: {error}") from error
    if not sealed:
        raise _damaged(place, "has changed since it was written (its seal differs)")
    if manifest.get("schema") != SCHEMA:
        raise CheckpointMismatch(
            f"checkpoint {path.name} is of format {manifest.get('schema')}; this version reads {SCHEMA}",
            where=str(place),
            fix=f"it was written by fastdrpl {manifest.get('fastdrpl')}: use that version for this run",
        )
    _check_files(place, manifest.get("files"))
    return manifest


def _check_files(place: Path, files: Any) -> None:
    """Raises CheckpointError unless exactly the files of a checkpoint are listed with size and sha256."""
    if (
        not isinstance(files, dict)
        or set(files) != {STATE, *map(tensor_file, range(len(files) - 1))}
        or len(files) < 2
    ):
        raise _damaged(place, "does not list the files of a checkpoint")
    for name, entry in files.items():
        if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
            raise _damaged(place, f"does not tell size and sha256 of {name}")
