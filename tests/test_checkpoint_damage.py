"""Damaged, foreign and newer checkpoints: found, named, passed over."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_cases import IDENTITY, newest_of, write_sound

from fastdrpl import checkpoint_manifest
from fastdrpl.checkpoint import (
    checkpoint_name,
    newest_checkpoint,
    next_sequence,
    read_checkpoint,
    verify_checkpoint,
)
from fastdrpl.checkpoint_manifest import CheckpointError, CheckpointMismatch

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("damaged")
    write_sound(folder, 0)
    write_sound(folder, 1)
    yield folder
    assert newest_of(folder) == 1  # every example put back what it damaged


@pytest.mark.parametrize("name", ["tensors-000.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["flip", "cut", "zero", "append", "replace", "remove", "folder"])
def test_any_damage_is_found_named_and_passed_over(two_checkpoints: Path, name: str, kind: str) -> None:
    """R4."""
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
            assert newest_of(two_checkpoints, skipped) == 0
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
        (write_sound(tmp_path, sequence) / "state.json").unlink()
    skipped: list[CheckpointError] = []
    assert newest_of(tmp_path, skipped) is None
    assert [error.where for error in skipped] == [
        str(tmp_path / f"0000000{i}" / "state.json") for i in (2, 1, 0)
    ]
    assert next_sequence(tmp_path) == 3


def test_a_manifest_that_lists_other_files_is_damaged(tmp_path: Path) -> None:
    path = write_sound(tmp_path, 0)
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
    write_sound(tmp_path, 0)
    for identity in ({**IDENTITY, "dataset": "x"}, {"config": "c0ffee"}, {**IDENTITY, "more": "x"}):
        with pytest.raises(CheckpointMismatch, match=r"dataset|more") as caught:
            newest_checkpoint(tmp_path, identity=identity, on_skip=pytest.fail)
        assert caught.value.exit_code == 2 and "config" not in caught.value.what


def test_a_newer_format_names_the_version_that_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_manifest, "SCHEMA", 2)
    monkeypatch.setattr(checkpoint_manifest, "__version__", "7.8.9")
    write_sound(tmp_path, 0)
    monkeypatch.undo()
    with pytest.raises(CheckpointMismatch, match=r"format 2(.|\n)*fastdrpl 7\.8\.9"):
        newest_checkpoint(tmp_path, identity=IDENTITY, on_skip=pytest.fail)


def test_checkpoints_of_released_formats_still_load() -> None:
    """R21."""
    found = read_checkpoint(FIXTURES / "checkpoint-schema-1" / "00000007-stage-relabel", identity=IDENTITY)
    assert found.state == {"epoch": 3, "loss": 0.1, "names": ["a", "b"], "best": None}
    assert found.tensors["half"].dtype == torch.bfloat16
    assert found.tensors["half"].tolist() == [[1.5, -2.0], [0.0, 4.0]]
    assert found.tensors["labelled"].tolist() == [True, False]
    assert found.tensors["step"].item() == 7
