"""Where the rings of predictions lie: on the device, in main memory, or in a file that is mapped into it.

A ring is used once an epoch. Ten predictions for 1.28 million samples of 1,000 classes are 51 GB: a device may not
have room for that, nor may main memory.
"""

import math
import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fastdrpl.files import TEMPORARY_PREFIX, explain_write_error
from fastdrpl.store import Allocate

PLACES = ("device", "host", "file")  # in the order of preference


def ring_maker(place: str, device: torch.device, folder: Path) -> Allocate:
    """What makes rings (zeros of a shape and type) at a place; files lie in `folder`.

    Making one raises `UserError` where the disk has no room for it.
    """

    def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if place == "file":
            return map_zeros(folder, shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=device if place == "device" else "cpu")

    return make


def map_zeros(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in a mapped file of the folder that has no name: it is gone with the tensor, or with the process.

    So nothing is left to be mistaken for the ring of a run that goes on: that comes from a checkpoint. The room is
    taken at once: a hole that a full disk cannot fill would end the process without a word.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=TEMPORARY_PREFIX) as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
            mapped = mmap.mmap(file.fileno(), max(1, size))
    except OSError as error:
        raise explain_write_error(error, folder / "ring") from error
    return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape)).view(shape)
