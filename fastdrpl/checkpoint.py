"""Checkpoints that survive a pulled plug: folders that are complete and verified, or do not count.

A checkpoint is the folder `<sequence>[-stage-<name>]` with `tensors-*.safetensors`, `state.json` and,
written last, `manifest.json` with the size and sha256 of each file. It is written under a temporary name,
synced and renamed. Which is the newest is told by the sequence number, never by a clock. Nothing in it can
run code when read.

The module itself does not import torch: listing and verifying need none.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdrpl.checkpoint_manifest import (
    MANIFEST,
    STATE,
    CheckpointError,
    check_identity,
    seal_manifest,
    tensor_file,
    verify_checkpoint,
)
from fastdrpl.files import (
    TEMPORARY_PREFIX,
    dump_json,
    explain_write_error,
    fault,
    fsync_folder,
    write_synced,
)

if TYPE_CHECKING:
    from torch import Tensor

FILE_LIMIT = 1 << 30  # bytes of tensors per file: bounds the memory that reading needs
FAULT_POINTS = (
    "checkpoint.folder-made",
    "file.half-written",
    "checkpoint.tensors-written",
    "checkpoint.state-written",
    "checkpoint.manifest-written",
    "checkpoint.before-rename",
    "checkpoint.after-rename",
    "prune.verified",
    "prune.set-aside",
    "prune.removed",
)
_NAME = re.compile(r"(\d{8,})(?:-stage-([\w.-]+))?")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `write_checkpoint` was given: tensors on the CPU, with their dtypes and shapes, and the state."""

    path: Path
    tensors: dict[str, "Tensor"]
    state: dict[str, Any]


def checkpoint_name(sequence: int, stage: str | None = None) -> str:
    """`00000042`, or `00000042-stage-relabel` for the end of a stage, which `prune` keeps."""
    name = f"{sequence:08d}" if stage is None else f"{sequence:08d}-stage-{stage}"
    if sequence < 0 or not _NAME.fullmatch(name):
        raise ValueError(f"wanted a sequence >= 0 and a plain stage name, got {sequence} and {stage!r}")
    return name


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a folder, verified or not, oldest first; empty if there is no folder."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (sequence_of(path), path.name))


def next_sequence(folder: Path) -> int:
    """One more than the highest sequence there is, damaged checkpoints included; 0 in an empty folder."""
    paths = list_checkpoints(folder)
    return sequence_of(paths[-1]) + 1 if paths else 0


def write_checkpoint(
    folder: Path,
    name: str,
    tensors: Mapping[str, "Tensor"],
    state: Mapping[str, Any],
    *,
    identity: Mapping[str, str],
) -> Path:
    """Writes one checkpoint and returns its folder; on the disk for good when it returns.

    `name` is from `checkpoint_name`, with a sequence higher than any before (`next_sequence`). `tensors`:
    any dense tensors on any device, shared and non-contiguous ones too. `state`: JSON values; numbers come
    back as the same bits, tuples as lists. `identity`: what a run must have in common to go on from here,
    such as the hash of its configuration.

    Raises ValueError for an unfit name, tensor or state; UserError if it cannot be written: then nothing is
    left of it and earlier checkpoints are untouched.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a checkpoint name: use checkpoint_name")
    from fastdrpl.tensor_files import write_tensors

    _check_json(dict(state), "state")
    path, temporary = folder / name, folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{name}"
    if path.exists():
        raise ValueError(f"{path} exists: a checkpoint is never written over, use next_sequence")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # of a dead process that had our number
        temporary.mkdir()
        fault("checkpoint.folder-made")
        files: dict[str, dict[str, Any]] = {}
        for number, group in enumerate(_groups(tensors)):
            files[tensor_file(number)] = write_tensors(temporary / tensor_file(number), group)
            fault("checkpoint.tensors-written")
        files[STATE] = _write(temporary / STATE, dump_json(dict(state)))
        fault("checkpoint.state-written")
        write_synced(temporary / MANIFEST, seal_manifest(identity, files))
        fault("checkpoint.manifest-written")
        fsync_folder(temporary)
        fault("checkpoint.before-rename")
        os.rename(temporary, path)
        fault("checkpoint.after-rename")
        fsync_folder(folder)
    except OSError as error:
        raise explain_write_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a rename there is nothing under this name
    return path


def read_checkpoint(path: Path, *, identity: Mapping[str, str] | None = None) -> Checkpoint:
    """Verifies a checkpoint and reads it; files of more than FILE_LIMIT bytes are mapped.

    Raises CheckpointError naming the damaged or missing file; CheckpointMismatch if it is not of `identity`
    (where given).
    """
    from fastdrpl.tensor_files import map_tensors, read_tensors

    manifest = verify_checkpoint(path)
    if identity is not None:
        check_identity(path, manifest, identity)
    tensors: dict[str, Tensor] = {}
    for name, entry in manifest["files"].items():
        if name != STATE:
            read = map_tensors if entry["size"] > FILE_LIMIT else read_tensors
            tensors.update(read(path / name))
    return Checkpoint(path=path, tensors=tensors, state=json.loads((path / STATE).read_bytes()))


def newest_checkpoint(
    folder: Path, *, identity: Mapping[str, str], on_skip: Callable[[CheckpointError], None]
) -> Checkpoint | None:
    """The newest checkpoint that verifies; None if there is none.

    Each newer one that is damaged goes to `on_skip`, whose text names it: tell the user. A sound one of
    another identity or version raises CheckpointMismatch, because going on without it would throw away a
    good run in silence.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path, identity=identity)
        except CheckpointError as error:
            on_skip(error)
    return None


def prune(folder: Path, keep: int = 2, protected: AbstractSet[str] = frozenset()) -> list[str]:
    """Removes old checkpoints and returns their names.

    The newest `keep` that verify stay, and the ends of stages, and the names in `protected`. Nothing is
    removed before that many were verified here and now, so it is safe to call at any time. Raises UserError
    if one cannot be removed.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    verified, surplus = 0, []
    for path in reversed(list_checkpoints(folder)):
        if verified < keep:
            try:
                verify_checkpoint(path)
                verified += 1
                continue
            except CheckpointError:
                pass  # it does not count as kept; once enough sound ones are found, it is surplus
        if path.name not in protected and not _is_stage_end(path):
            surplus.append(path)
    if verified < keep:
        return []
    fault("prune.verified")
    for path in reversed(surplus):
        # Set aside first: half-removed, it must not look like a damaged checkpoint.
        aside = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-pruned-{path.name}"
        try:
            os.rename(path, aside)
            fault("prune.set-aside")
            shutil.rmtree(aside)
        except OSError as error:
            raise explain_write_error(error, path) from error
        fault("prune.removed")
    return [path.name for path in reversed(surplus)]


def remove_leftovers(folder: Path) -> list[str]:
    """Removes what interrupted writes left under temporary names, and returns those names.

    Call it at the start of a run, with the lock of the run folder held: then every such name is a dead
    process's, whatever its number and the machine it ran on.
    """
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX))
    for name in names:
        path = folder / name
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise explain_write_error(error, path) from error
    return names


def sequence_of(path: Path) -> int:
    """The number in the name of a checkpoint: a later one has a higher number."""
    return int(path.name.partition("-")[0])


def _is_stage_end(path: Path) -> bool:
    return "-stage-" in path.name


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Writes a file; its manifest entry is of the bytes meant, so that a disk that lies is found out."""
    write_synced(path, data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _groups(tensors: Mapping[str, "Tensor"]) -> Iterator[dict[str, "Tensor"]]:
    """The tensors of each file: of FILE_LIMIT bytes, or one tensor."""
    import torch

    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ValueError(f"tensor {name!r} is {tensor.layout}: only dense tensors can be stored")
        if group and size + tensor.nbytes > FILE_LIMIT:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += tensor.nbytes
    yield group


def _check_json(value: Any, where: str) -> None:
    """Raises ValueError, with the place, for what would not come back from JSON as it was."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: keys must be text")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_json(item, f"{where}[{position}]")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{where} is {value}: numbers must be finite, write None for an unknown one")
    elif value is not None and not isinstance(value, str | int):
        raise ValueError(f"{where} is a {type(value).__name__}: only JSON values can be stored")
