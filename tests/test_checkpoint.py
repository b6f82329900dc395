"""Checkpoints: the same bits back, killed anywhere, damaged anywhere, on disks that refuse."""

import errno
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import IDENTITY, bits_of, content_of, newest_of, write_sound
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastdrpl import checkpoint as module
from fastdrpl.checkpoint import (
    checkpoint_name,
    list_checkpoints,
    newest_checkpoint,
    next_sequence,
    prune,
    read_checkpoint,
    remove_leftovers,
    verify_checkpoint,
    write_checkpoint,
)
from fastdrpl.loaders.errors import UserError

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_comes_back_with_its_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    size = torch.empty(0, dtype=dtype).element_size()
    tensors = {}
    for shape in [(), (1,), (0,), (3, 0, 2), (7,), (5, 3, 2)]:
        count = size * int(torch.tensor(shape).prod())
        high = 2 if dtype == torch.bool else 256  # random bytes: nan with payloads, subnormals, -0.0
        raw = torch.randint(0, high, (count,), dtype=torch.uint8, generator=generator)
        tensors[str(shape)] = raw.view(dtype).reshape(shape)
    write_checkpoint(tmp_path, checkpoint_name(0), tensors, {}, identity={})
    found = read_checkpoint(tmp_path / checkpoint_name(0)).tensors
    assert {key: bits_of(value) for key, value in found.items()} == {
        key: bits_of(value) for key, value in tensors.items()
    }


def test_shared_strided_and_tied_tensors_are_stored_one_by_one(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    layer = nn.Linear(3, 3)
    tensors = {
        "base": base, "transposed": base.t(), "rows": base[1:3], "column": base[:, 2],
        "flipped": base.flip(0),
        "expanded": base[:1].expand(5, 6), "weight": layer.weight, "tied": layer.weight,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
    write_checkpoint(tmp_path, checkpoint_name(0), tensors, {}, identity={})
    found = read_checkpoint(tmp_path / checkpoint_name(0)).tensors
    assert {key: bits_of(value) for key, value in found.items()} == {
        key: bits_of(value.detach()) for key, value in tensors.items()
    }
    found["base"].zero_()
    assert torch.equal(found["transposed"], base.t()), "tensors read back must not share memory"


def test_a_checkpoint_is_a_snapshot_that_outlives_its_files(tmp_path: Path) -> None:
    write_sound(tmp_path, 0)
    found = read_checkpoint(tmp_path / checkpoint_name(0))
    for path in found.path.iterdir():
        path.write_bytes(b"")
    assert torch.equal(found.tensors["weight"], content_of(0)[0]["weight"])


def test_many_tensors_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 100)
    tensors = {
        f"t{i}": torch.full((size,), i, dtype=torch.uint8) for i, size in enumerate([60, 40, 1, 500, 0, 99])
    }
    path = write_checkpoint(tmp_path, checkpoint_name(0), tensors, {}, identity={})
    assert len(list(path.glob("tensors-*.safetensors"))) == 4  # 60+40 | 1 | 500+0 | 99
    found = read_checkpoint(path).tensors
    assert {key: bits_of(value) for key, value in found.items()} == {
        key: bits_of(value) for key, value in tensors.items()
    }


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(state=st.dictionaries(st.text(), _VALUES, max_size=4))
def test_any_json_state_comes_back_the_same(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), checkpoint_name(0), {}, state, identity={})
        found = read_checkpoint(path).state
    assert found == state and repr(found) == repr(state)  # repr: 1 is not 1.0, -0.0 is not 0.0


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, "state.a.b[1] is nan"),
        ({"a": float("-inf")}, "state.a is -inf"),
        ({"a": {1: 2}}, "state.a has the key 1"),
        ({"a": b"x"}, "state.a is a bytes"),
        ({"a": torch.tensor(1)}, "state.a is a Tensor"),
    ],
)
def test_what_json_would_change_is_refused(tmp_path: Path, state: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=place.replace("[", r"\[").replace("]", r"\]")):
        write_checkpoint(tmp_path, checkpoint_name(0), {}, state, identity={})
    assert list(tmp_path.iterdir()) == []


def test_sparse_tensors_and_strange_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensor 't' is"):
        write_checkpoint(tmp_path, checkpoint_name(0), {"t": torch.eye(2).to_sparse()}, {}, identity={})
    for name in ["", "1", "../00000001", "00000001-other", "00000001-stage-a/b", ".tmp-1-00000001"]:
        with pytest.raises(ValueError, match="not a checkpoint name"):
            write_checkpoint(tmp_path, name, {}, {}, identity={})
    with pytest.raises(ValueError, match="got -1"):
        checkpoint_name(-1)
    with pytest.raises(ValueError, match="'a/b'"):
        checkpoint_name(1, "a/b")
    write_sound(tmp_path, 1)
    with pytest.raises(ValueError, match="never written over"):
        write_sound(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_the_newest_is_told_by_number_not_by_clock(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", identity=IDENTITY, on_skip=pytest.fail) is None
    assert next_sequence(tmp_path / "none") == 0
    for sequence, stage in [(2, None), (100_000_000, None), (9, "relabel"), (10, None)]:
        path = write_sound(tmp_path, sequence, stage)
        os.utime(path, (time.time() - sequence, time.time() - sequence))  # the clock jumps back
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "00000002", "00000009-stage-relabel", "00000010", "100000000",
    ]  # fmt: skip
    assert next_sequence(tmp_path) == 100_000_001
    found = newest_checkpoint(tmp_path, identity=IDENTITY, on_skip=pytest.fail)
    assert found is not None and found.path.name == "100000000"


def test_prune_keeps_the_newest_two_and_the_ends_of_stages(tmp_path: Path) -> None:
    for sequence in range(8):
        write_sound(tmp_path, sequence, "relabel" if sequence == 2 else None)
        prune(tmp_path, protected={"00000001"})
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["00000001", "00000002-stage-relabel", "00000006", "00000007"]
    assert prune(tmp_path, keep=1) == ["00000001", "00000006"]
    with pytest.raises(ValueError, match="got 0"):
        prune(tmp_path, keep=0)


def test_prune_counts_only_what_verifies(tmp_path: Path) -> None:
    for sequence in range(5):
        path = write_sound(tmp_path, sequence)
        if sequence != 1:
            (path / "tensors-000.safetensors").write_bytes(b"")
    assert prune(tmp_path, keep=2) == []  # only one is sound: nothing may go
    assert len(list_checkpoints(tmp_path)) == 5
    write_sound(tmp_path, 5)
    assert prune(tmp_path, keep=2) == ["00000000", "00000002", "00000003", "00000004"]
    assert newest_of(tmp_path) == 5


def test_a_half_removed_checkpoint_does_not_look_like_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sequence in range(3):
        write_sound(tmp_path, sequence)

    def remove_one_file_and_fail(folder: Path) -> None:
        (folder / "state.json").unlink()
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", remove_one_file_and_fail)
        with pytest.raises(UserError, match="broken disk"):
            prune(tmp_path, keep=1)
    for path in list_checkpoints(tmp_path):
        verify_checkpoint(path)
    assert len(remove_leftovers(tmp_path)) == 1
    assert prune(tmp_path, keep=1) == ["00000001"]
