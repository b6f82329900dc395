"""Files of tensors in the safetensors format, written and read without a second copy of them in memory."""

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastdrpl.files import write_pieces
from fastdrpl.store import pieces

PIECE = 16 << 20  # bytes that are on their way at a time
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a new file of dense tensors on any device, wait until it is on the disk: -> its size and sha256.

    The sha256 is of the bytes meant, so that a disk that lies is found out. Raises OSError, and ValueError for a type
    that the format does not have.
    """
    # The widest type first: all begin at a multiple of their size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    digest, size = hashlib.sha256(), 0

    def content() -> Iterator[memoryview]:
        nonlocal size
        for piece in _content({name: tensors[name].detach() for name in order}):
            digest.update(piece)
            size += len(piece)
            yield piece

    write_pieces(path, content())
    return {"size": size, "sha256": digest.hexdigest()}


def _content(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    entries: dict[str, Any] = {}
    start = 0
    for name, values in tensors.items():
        if values.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r} is {values.dtype}: the format has no such type")
        stop = start + values.nbytes
        entries[name] = {
            "dtype": _NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for values in tensors.values():
        rows = values if values.ndim else values[None]
        for part in pieces(rows, PIECE):
            flat = rows[part].contiguous().cpu().view(-1).view(torch.uint8)
            yield flat.numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, in memory of their own."""
    return safetensors.torch.load(path.read_bytes())


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, read when they are looked at; a file that is removed stays until they are gone.

    What is written to them goes nowhere else.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            dtype = _TYPES[entry["dtype"]]
            values = torch.empty(0, dtype=dtype)
            if stop > start:
                values = torch.frombuffer(
                    mapped, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=8 + length + start
                )
            tensors[name] = values.view(entry["shape"])
    return tensors
