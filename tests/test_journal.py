"""The journal of a run: whole lines, cut back on resume."""

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdrpl.journal import Journal, read_journal
from fastdrpl.loaders.errors import DataError, UserError

RECORDS: list[dict[str, Any]] = [
    {"epoch": 0, "loss": 0.1},
    {"text": "line\nend ä\u2028"},
    {},
    {"nested": [1, {"a": None}]},
]


def _fill(path: Path, records: list[dict[str, Any]]) -> list[int]:
    """Writes records and returns the length after each."""
    lengths = []
    with Journal(path) as journal:
        for record in records:
            journal.append(record)
            assert read_journal(path)[-1] == record  # readers see it at once
            lengths.append(journal.length)
    return lengths


def test_records_come_back_and_the_length_is_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lengths = _fill(path, RECORDS)
    assert read_journal(path) == RECORDS
    assert lengths[-1] == path.stat().st_size
    assert len(path.read_bytes().split(b"\n")) == len(RECORDS) + 1
    with Journal(path) as journal:
        assert journal.length == journal.sync() == lengths[-1]
    assert read_journal(tmp_path / "none.jsonl") == []


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path) as journal:
        journal.append(
            {"a": float("nan"), "b": [float("inf"), (-float("inf"), 1.0)], "c": {"d": float("nan")}}
        )
        with pytest.raises(TypeError):
            journal.append({"a": b"bytes"})
        journal.append({"after": 1})
    assert read_journal(path) == [{"a": None, "b": [None, [None, 1.0]], "c": {"d": None}}, {"after": 1}]


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 200))
def test_a_half_written_last_line_is_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.unlink(missing_ok=True)
    lengths = _fill(path, RECORDS)
    cut = min(cut, lengths[-1])
    os.truncate(path, cut)
    whole = sum(length <= cut for length in lengths)
    assert read_journal(path) == RECORDS[:whole]
    with Journal(path) as journal:
        assert journal.length == [0, *lengths][whole]
        journal.append({"next": 1})
    assert read_journal(path) == [*RECORDS[:whole], {"next": 1}]


def test_a_long_unfinished_line_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for start, records in ((b'{"a": 1}\n', [{"a": 1}]), (b"", [])):
        path.write_bytes(start + b"x" * 200_000)
        with Journal(path) as journal:
            assert journal.length == len(start)
        assert read_journal(path) == records


def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lengths = _fill(path, RECORDS)
    with Journal(path) as journal:
        journal.truncate(lengths[1])
        assert journal.length == lengths[1]
        journal.append({"again": 2})
        assert read_journal(path) == [*RECORDS[:2], {"again": 2}]
        journal.truncate(0)
        assert read_journal(path) == []


@pytest.mark.parametrize("length", [-1, 1, 5, 10_000])
def test_a_journal_that_does_not_fit_the_checkpoint_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "metrics.jsonl"
    _fill(path, RECORDS)
    with Journal(path) as journal, pytest.raises(DataError, match=r"metrics\.jsonl does not fit") as caught:
        journal.truncate(length)
    assert caught.value.where == str(path)
    assert read_journal(path) == RECORDS


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match="line 2") as caught:
        read_journal(path)
    assert caught.value.where == f"{path}:2"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.append({"a": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(UserError) as caught:
                journal.append({"long": "x" * 5000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.where == str(path)
        assert path.read_bytes() == b'{"a": 1}\n'
        journal.append({"b": 2})
    assert read_journal(path) == [{"a": 1}, {"b": 2}]
    with pytest.raises(UserError) as caught:
        Journal(tmp_path / "none" / "metrics.jsonl")
    assert caught.value.where == str(tmp_path / "none" / "metrics.jsonl")


def test_a_killed_writer_leaves_a_journal_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    child = os.fork()
    if child == 0:
        with Journal(path) as journal:
            for number in range(10_000_000):
                journal.append({"number": number, "text": "x" * 50})
        os._exit(0)
    while not path.exists() or path.stat().st_size < 20_000:
        time.sleep(0.001)
    seen = read_journal(path)  # while it is written
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with Journal(path) as journal:
        journal.append({"number": -1})
    records = read_journal(path)
    assert records[: len(seen)] == seen and len(seen) > 100
    assert [record["number"] for record in records] == [*range(len(records) - 1), -1]
    assert all(json.loads(line) for line in path.read_text().splitlines())
