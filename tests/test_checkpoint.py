"""Checkpoints: the same bits back, killed anywhere, damaged anywhere, on disks that refuse."""

import errno
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastdrpl import checkpoint as module
from fastdrpl import checkpoint_manifest, files
from fastdrpl.checkpoint import (
    FAULT_POINTS,
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
from fastdrpl.checkpoint_manifest import CheckpointError, CheckpointMismatch
from fastdrpl.loaders.errors import DataError, UserError

IDENTITY = {"config": "c0ffee", "dataset": "d1615"}
FIXTURES = Path(__file__).parent / "fixtures"
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


def _bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _content(sequence: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the checkpoint of this number holds: no two are alike, so a mixture of two cannot go unseen."""
    generator = torch.Generator().manual_seed(sequence)
    tensors = {"weight": torch.randn(40, 3, generator=generator), "step": torch.tensor(sequence)}
    return tensors, {"sequence": sequence, "loss": 1 / (sequence + 1)}


def _write(folder: Path, sequence: int, stage: str | None = None) -> Path:
    tensors, state = _content(sequence)
    return write_checkpoint(folder, checkpoint_name(sequence, stage), tensors, state, identity=IDENTITY)


def _newest(folder: Path, skipped: list[CheckpointError] | None = None) -> int | None:
    """The number of the newest sound checkpoint, with its content checked."""
    on_skip: Callable[[CheckpointError], None] = pytest.fail if skipped is None else skipped.append
    found = newest_checkpoint(folder, identity=IDENTITY, on_skip=on_skip)
    if found is None:
        return None
    tensors, state = _content(int(found.path.name[:8]))
    assert found.state == state
    assert {key: _bits(value) for key, value in found.tensors.items()} == {
        key: _bits(value) for key, value in tensors.items()
    }
    return int(found.path.name[:8])


def _in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process and returns how that ended (as `subprocess` tells it)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
    assert {key: _bits(value) for key, value in found.items()} == {
        key: _bits(value) for key, value in tensors.items()
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
    assert {key: _bits(value) for key, value in found.items()} == {
        key: _bits(value.detach()) for key, value in tensors.items()
    }
    found["base"].zero_()
    assert torch.equal(found["transposed"], base.t()), "tensors read back must not share memory"


def test_a_checkpoint_is_a_snapshot_that_outlives_its_files(tmp_path: Path) -> None:
    _write(tmp_path, 0)
    found = read_checkpoint(tmp_path / checkpoint_name(0))
    for path in found.path.iterdir():
        path.write_bytes(b"")
    assert torch.equal(found.tensors["weight"], _content(0)[0]["weight"])


def test_many_tensors_spread_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 100)
    tensors = {
        f"t{i}": torch.full((size,), i, dtype=torch.uint8) for i, size in enumerate([60, 40, 1, 500, 0, 99])
    }
    path = write_checkpoint(tmp_path, checkpoint_name(0), tensors, {}, identity={})
    assert len(list(path.glob("tensors-*.safetensors"))) == 4  # 60+40 | 1 | 500+0 | 99
    found = read_checkpoint(path).tensors
    assert {key: _bits(value) for key, value in found.items()} == {
        key: _bits(value) for key, value in tensors.items()
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
    _write(tmp_path, 1)
    with pytest.raises(ValueError, match="never written over"):
        _write(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_the_newest_is_told_by_number_not_by_clock(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", identity=IDENTITY, on_skip=pytest.fail) is None
    assert next_sequence(tmp_path / "none") == 0
    for sequence, stage in [(2, None), (100_000_000, None), (9, "relabel"), (10, None)]:
        path = _write(tmp_path, sequence, stage)
        os.utime(path, (time.time() - sequence, time.time() - sequence))  # the clock jumps back
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "00000002", "00000009-stage-relabel", "00000010", "100000000",
    ]  # fmt: skip
    assert next_sequence(tmp_path) == 100_000_001
    found = newest_checkpoint(tmp_path, identity=IDENTITY, on_skip=pytest.fail)
    assert found is not None and found.path.name == "100000000"


def _run_until_killed(folder: Path, done: Path) -> None:
    for _ in range(100_000):
        sequence = next_sequence(folder)
        _write(folder, sequence)
        done.write_text(str(sequence))
        prune(folder, keep=2)


@pytest.mark.parametrize("arrival", [1, 2, 3, 5])
@pytest.mark.parametrize("point", FAULT_POINTS)
def test_killed_at_any_point_a_verified_checkpoint_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, arrival: int
) -> None:
    folder, done = tmp_path / "checkpoints", tmp_path / "done"
    monkeypatch.setenv("FASTDRPL_FAULT", f"{point}:{arrival}")
    assert _in_child(lambda: _run_until_killed(folder, done)) == 9, "the fault point was never reached"
    monkeypatch.delenv("FASTDRPL_FAULT")
    finished = int(done.read_text()) if done.exists() else None
    newest = _newest(folder)  # fails if anything had to be skipped: a kill leaves no damaged checkpoint
    renamed = 0 if finished is None else finished + 1
    assert newest in (finished, renamed if point == "checkpoint.after-rename" else finished)
    remove_leftovers(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    following = 0 if newest is None else newest + 1
    assert _write(folder, next_sequence(folder)).name == checkpoint_name(following)
    prune(folder)
    assert _newest(folder) == following


def test_killed_at_random_moments_a_verified_checkpoint_is_found(tmp_path: Path) -> None:
    folder, done = tmp_path / "checkpoints", tmp_path / "done"
    chance = random.Random(3)
    for _ in range(25):
        before = _newest(folder)
        done.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                _run_until_killed(folder, done)
            finally:
                os._exit(0)
        while not done.exists():  # at least one is written, however busy the machine is
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        remove_leftovers(folder)
        after = _newest(folder)
        assert after is not None and (before is None or after > before)
    prune(folder)
    assert len(list_checkpoints(folder)) == 2


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("damaged")
    _write(folder, 0)
    _write(folder, 1)
    yield folder
    assert _newest(folder) == 1  # every example put back what it damaged


@pytest.mark.parametrize("name", ["tensors-000.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["flip", "cut", "zero", "append", "replace", "remove", "folder"])
def test_any_damage_is_found_named_and_passed_over(two_checkpoints: Path, name: str, kind: str) -> None:
    path = two_checkpoints / checkpoint_name(1) / name
    sound = path.read_bytes()
    chance = random.Random(f"{name} {kind}")
    for _ in range(20):
        place, extent = chance.randrange(len(sound)), chance.randint(1, 255)
        cut = sound[place : place + extent]
        damaged = {
            "flip": sound[:place] + bytes([sound[place] ^ extent]) + sound[place + 1 :],
            "cut": sound[:place],
            "zero": sound[:place] + bytes(len(cut)) + sound[place + extent :],
            "append": sound + bytes([extent]),
            "replace": sound[:place] + chance.randbytes(len(cut)) + sound[place + extent :],
        }.get(kind)
        if damaged == sound:
            continue  # zeros replaced by zeros
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif damaged is not None:
            path.write_bytes(damaged)
        try:
            skipped: list[CheckpointError] = []
            assert _newest(two_checkpoints, skipped) == 0
            assert len(skipped) == 1 and skipped[0].exit_code == 3
            assert "00000001" in str(skipped[0]) and name in str(skipped[0])
            with pytest.raises(CheckpointError, match=name):
                read_checkpoint(path.parent)
        finally:
            path.rmdir() if kind == "folder" else path.unlink(missing_ok=True)
            path.write_bytes(sound)


def test_every_bit_of_the_manifest_counts(two_checkpoints: Path) -> None:
    path = two_checkpoints / checkpoint_name(1) / "manifest.json"
    sound = path.read_bytes()
    try:
        for bit in range(8 * len(sound)):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"manifest\.json"):
                verify_checkpoint(path.parent)
    finally:
        path.write_bytes(sound)


def test_when_all_are_damaged_none_is_returned_and_all_are_named(tmp_path: Path) -> None:
    for sequence in range(3):
        (_write(tmp_path, sequence) / "state.json").unlink()
    skipped: list[CheckpointError] = []
    assert _newest(tmp_path, skipped) is None
    assert [error.where for error in skipped] == [
        str(tmp_path / f"0000000{i}" / "state.json") for i in (2, 1, 0)
    ]
    assert next_sequence(tmp_path) == 3


def test_a_manifest_that_lists_other_files_is_damaged(tmp_path: Path) -> None:
    path = _write(tmp_path, 0)
    whole = verify_checkpoint(path)["files"]
    one = whole["state.json"]
    for listed in [
        {}, {"state.json": one}, {**whole, "../state.json": one}, {**whole, "tensors-002.safetensors": one},
        {**whole, "state.json": {"size": 1}}, {**whole, "state.json": None},
    ]:  # fmt: skip
        (path / "manifest.json").write_bytes(checkpoint_manifest.seal_manifest(IDENTITY, listed))
        with pytest.raises(CheckpointError, match=r"manifest\.json does not"):
            read_checkpoint(path)


def test_a_checkpoint_of_another_run_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    _write(tmp_path, 0)
    for identity in ({**IDENTITY, "dataset": "x"}, {"config": "c0ffee"}, {**IDENTITY, "more": "x"}):
        with pytest.raises(CheckpointMismatch, match=r"dataset|more") as caught:
            newest_checkpoint(tmp_path, identity=identity, on_skip=pytest.fail)
        assert caught.value.exit_code == 2 and "config" not in caught.value.what


def test_a_newer_format_names_the_version_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_manifest, "SCHEMA", 2)
    monkeypatch.setattr(checkpoint_manifest, "__version__", "7.8.9")
    _write(tmp_path, 0)
    monkeypatch.undo()
    with pytest.raises(CheckpointMismatch, match=r"format 2(.|\n)*fastdrpl 7\.8\.9"):
        newest_checkpoint(tmp_path, identity=IDENTITY, on_skip=pytest.fail)


def test_checkpoints_of_released_formats_still_load() -> None:
    found = read_checkpoint(FIXTURES / "checkpoint-schema-1" / "00000007-stage-relabel", identity=IDENTITY)
    assert found.state == {"epoch": 3, "loss": 0.1, "names": ["a", "b"], "best": None}
    assert found.tensors["half"].dtype == torch.bfloat16
    assert found.tensors["half"].tolist() == [[1.5, -2.0], [0.0, 4.0]]
    assert found.tensors["labelled"].tolist() == [True, False]
    assert found.tensors["step"].item() == 7


def test_prune_keeps_the_newest_two_and_the_ends_of_stages(tmp_path: Path) -> None:
    for sequence in range(8):
        _write(tmp_path, sequence, "relabel" if sequence == 2 else None)
        prune(tmp_path, protected={"00000001"})
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["00000001", "00000002-stage-relabel", "00000006", "00000007"]
    assert prune(tmp_path, keep=1) == ["00000001", "00000006"]
    with pytest.raises(ValueError, match="got 0"):
        prune(tmp_path, keep=0)


def test_prune_counts_only_what_verifies(tmp_path: Path) -> None:
    for sequence in range(5):
        path = _write(tmp_path, sequence)
        if sequence != 1:
            (path / "tensors-000.safetensors").write_bytes(b"")
    assert prune(tmp_path, keep=2) == []  # only one is sound: nothing may go
    assert len(list_checkpoints(tmp_path)) == 5
    _write(tmp_path, 5)
    assert prune(tmp_path, keep=2) == ["00000000", "00000002", "00000003", "00000004"]
    assert _newest(tmp_path) == 5


def test_a_half_removed_checkpoint_does_not_look_like_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sequence in range(3):
        _write(tmp_path, sequence)

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


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    _write(tmp_path, 0)
    (tmp_path / f".tmp-{os.getpid()}-00000001").mkdir()
    (tmp_path / ".tmp-1-00000001").mkdir()
    (tmp_path / ".tmp-1-00000001" / "state.json").write_text("{")
    (tmp_path / ".tmp-5-config.toml").write_text("x")
    _write(tmp_path, 1)  # its own temporary name is taken by a dead process of the same number
    assert remove_leftovers(tmp_path) == [".tmp-1-00000001", ".tmp-5-config.toml"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000000", "00000001"]
    assert remove_leftovers(tmp_path / "none") == []


def _assert_refused_and_intact(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        write_checkpoint(folder, "00000001", {"t": torch.zeros(1 << 16)}, {}, identity=IDENTITY)
    assert caught.value.exit_code == 2 and not isinstance(caught.value, DataError)
    assert caught.value.where == str(folder / "00000001") and caught.value.fix
    assert [path.name for path in folder.iterdir()] == ["00000000"], "something was left behind"
    assert _newest(folder) == 0
    return caught.value


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    _write(tmp_path, 0)

    def write_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        assert "ulimit" in str(_assert_refused_and_intact(tmp_path))

    assert _in_child(write_with_little_room) == 0
    assert _newest(tmp_path) == 0
    assert _write(tmp_path, 1).name == "00000001"  # and with room again it goes on


@pytest.mark.parametrize("call", ["fsync", "rename", "open", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE])
def test_any_refusal_of_the_file_system_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    _write(tmp_path, 0)
    with monkeypatch.context() as patched:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        target: Any = files if call == "open" else os
        patched.setattr(target, call, refuse, raising=False)
        with pytest.raises(UserError) as caught:
            write_checkpoint(tmp_path, "00000001", {"t": torch.zeros(8)}, {}, identity=IDENTITY)
    assert os.strerror(number) in caught.value.what and str(tmp_path) in str(caught.value.where)
    assert [path.name for path in tmp_path.iterdir()] == ["00000000"]
    assert _newest(tmp_path) == 0
