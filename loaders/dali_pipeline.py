"""A DALI pipeline that runs batch after batch: where its pixels come out, and whose fault an error is."""

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.decode import decode_row
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.extras import require

PREFETCH = 2  # batches under way beside the one in use


class RunningPipeline:
    """A pipeline for one epoch after another; `close` ends its threads, whoever still knows it.

    Making one takes milliseconds, and some more until its memory has been touched: `rewind` saves both.
    `define(dali)` gives the outputs, a tuple. On the CPU no GPU is needed.
    """

    def __init__(
        self,
        device: torch.device,
        batch_size: int,
        threads: int,
        define: Callable[[ModuleType], tuple[Any, ...]],
    ) -> None:
        dali = require("nvidia.dali")
        self._device = device
        self._pipeline = dali.Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=_number(device) if device.type == "cuda" else None,
            prefetch_queue_depth=PREFETCH,
            seed=0,  # nothing in it is random
        )
        with self._pipeline:
            self._pipeline.set_outputs(*define(dali))
        self._pipeline.build()

    def schedule(self) -> None:
        """Begin the next batch; the first time the next two. Raises RuntimeError."""
        self._pipeline.schedule_run()

    def outputs(self) -> tuple[Any, ...]:
        """The batch that was begun first; on a GPU in the order of torch's current stream. Raises RuntimeError."""
        if self._device.type == "cuda":
            return tuple(self._pipeline.outputs(torch.cuda.current_stream(self._device)))
        return tuple(self._pipeline.outputs())

    def rewind(self) -> None:
        """Begin anew, after the last batch came out and its source said that there is no more."""
        self._pipeline.reset()

    def close(self) -> None:
        """End it; what came out stays."""
        self._pipeline = None


def decode_jpeg(dali: ModuleType, files: Any, device: torch.device) -> Any:
    """The operator that makes RGB pixels (H, W, 3) of JPEG files; on a GPU most of the work is done there."""
    where = "mixed" if device.type == "cuda" else "cpu"
    return dali.fn.decoders.image(files, device=where, output_type=dali.types.RGB, adjust_orientation=False)


def as_tensor(output: Any) -> torch.Tensor | None:
    """A batch as one tensor (B, ...) that shares its memory; None where its images differ in shape."""
    if not output.is_dense_tensor():
        return None
    tensor = output.as_tensor()
    if hasattr(tensor, "device_id"):  # a GPU's: it is handed over on that device's current stream
        with torch.cuda.device(tensor.device_id()):
            return torch.from_dlpack(tensor)
    return torch.from_dlpack(
        tensor.__dlpack__()
    )  # given the object, torch takes 15 microseconds to ask about it


def find_damaged(split: Split, file: np.ndarray, rows: np.ndarray) -> DataError | None:
    """The error of the first of these rows that does not decode: DALI does not say which image it stumbled over."""
    for row in rows:
        try:
            decode_row(split, file, int(row))
        except DataError as error:
            return error
    return None


def cause(said: str) -> str:
    """The line that matters in one of DALI's messages."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    after = [line for before, line in pairwise(lines) if before == "encountered:"]
    return (after or lines or ["no reason given"])[0]


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
