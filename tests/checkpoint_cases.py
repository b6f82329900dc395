"""Small checkpoints, written and found again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdrpl.checkpoint import checkpoint_name, newest_checkpoint, write_checkpoint
from fastdrpl.checkpoint_manifest import CheckpointError

IDENTITY = {"config": "c0ffee", "dataset": "d1615"}


def bits_of(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def content_of(sequence: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the checkpoint of this number holds: no two are alike, so a mixture of two cannot go unseen."""
    generator = torch.Generator().manual_seed(sequence)
    tensors = {"weight": torch.randn(40, 3, generator=generator), "step": torch.tensor(sequence)}
    return tensors, {"sequence": sequence, "loss": 1 / (sequence + 1)}


def write_sound(folder: Path, sequence: int, stage: str | None = None) -> Path:
    tensors, state = content_of(sequence)
    return write_checkpoint(folder, checkpoint_name(sequence, stage), tensors, state, identity=IDENTITY)


def newest_of(folder: Path, skipped: list[CheckpointError] | None = None) -> int | None:
    """The number of the newest sound checkpoint, with its content checked."""
    on_skip: Callable[[CheckpointError], None] = pytest.fail if skipped is None else skipped.append
    found = newest_checkpoint(folder, identity=IDENTITY, on_skip=on_skip)
    if found is None:
        return None
    tensors, state = content_of(int(found.path.name[:8]))
    assert found.state == state
    assert {key: bits_of(value) for key, value in found.tensors.items()} == {
        key: bits_of(value) for key, value in tensors.items()
    }
    return int(found.path.name[:8])
