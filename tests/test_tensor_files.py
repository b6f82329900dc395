"""Files of tensors: what the library of their format reads, without a second copy of them in memory."""

import hashlib
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
import toy

from fastdrpl import checkpoint
from fastdrpl.checkpoint import checkpoint_name, read_checkpoint, write_checkpoint
from fastdrpl.tensor_files import map_tensors, write_tensors

MIB = 1 << 20


def some_tensors():
    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    return {
        "flag": torch.tensor([True, False, True]),
        "wide": torch.randn(3, 2, dtype=torch.float64),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "count": torch.arange(7),
        "number": torch.tensor(3.5),
        "nothing": torch.empty(0, 4),
        "channels": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "turned": shared.T,
        "part": shared[1:3],
    }


def test_the_format_is_what_its_library_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdrpl.tensor_files.PIECE", 32)
    tensors, path = some_tensors(), tmp_path / "file"
    entry = write_tensors(path, tensors)
    content = path.read_bytes()
    assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for read in (safetensors.torch.load(content), map_tensors(path)):
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            assert read[name].dtype == value.dtype and torch.equal(read[name], value), name


def test_what_the_library_writes_is_mapped_as_it_is(tmp_path):
    tensors = {name: value.contiguous().clone() for name, value in some_tensors().items()}
    safetensors.torch.save_file(tensors, tmp_path / "file", metadata={"by": "another"})
    read = map_tensors(tmp_path / "file")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    before = (tmp_path / "file").read_bytes()
    read["count"].zero_()
    assert (tmp_path / "file").read_bytes() == before
    (tmp_path / "file").unlink()
    assert torch.equal(read["wide"], tensors["wide"])


def test_a_type_that_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'x' is torch\.complex128"):
        write_tensors(tmp_path / "file", {"x": torch.zeros(2, dtype=torch.complex128)})


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def _write_much(folder) -> None:
    tensor, highest, done = torch.ones(25_000_000), 0, threading.Event()  # 100 MB
    before = anonymous()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    write_checkpoint(folder, checkpoint_name(0), {"big": tensor}, {}, identity={})
    written = highest - before
    checkpoint.FILE_LIMIT = 50 * MIB
    found = read_checkpoint(folder / checkpoint_name(0)).tensors["big"]
    assert torch.equal(found, tensor)
    done.set()
    watcher.join()
    assert 0 <= written < 45 * MIB, f"writing took {written / MIB:.0f} MiB"
    assert highest - before < 45 * MIB, f"reading took {(highest - before) / MIB:.0f} MiB"


def test_neither_writing_nor_reading_a_large_checkpoint_copies_it(tmp_path):
    process = toy.FORKS.Process(target=_write_much, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
