"""Tar shards read by DALI's own reader, along a `ShardOrder`.

The steps are read in stretches, each by a pipeline of its own over just the shards it needs. A shard that it needs
as a whole is read by its stored index; of one that it needs in part (a subset, the end of a rank's piece, a later
start) a temporary index lists just the wanted samples, so that no other byte is read or decoded. The next stretch
is opened while this one is read.
"""

import contextlib
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastdrpl.loaders.dali_pipeline import (
    PREFETCH,
    RunningPipeline,
    as_tensor,
    cause,
    decode_jpeg,
    find_damaged,
)
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.shard_order import ShardOrder
from fastdrpl.loaders.shards import BEFORE_PIXELS, Shard, lay_out, pixel_extension, pixel_head, tar_bytes

STRETCH = 1 << 15  # samples: many enough that opening files costs nothing, few enough that it takes no time
FILES = 64  # that a stretch may open: a process may often have 1024
GET_AGAIN = "put the shard back as it was, or remove the folder and run `fastdrpl prepare` again"


def read_shards(
    split: Split,
    source_row: np.ndarray,
    order: ShardOrder,
    start_step: int,
    device: torch.device,
    threads: int,
) -> Generator[torch.Tensor, None, None]:
    """(B, H, W, 3) uint8 of each step of an order from a step on; JPEG is decoded on the device.

    Raises DataError for a shard that is missing, cut, holds other rows than it should or does not decode.
    """
    coming = _plan(split, source_row, order, start_step, device, threads)
    with contextlib.ExitStack() as opened:
        now = next(coming, None)
        while now is not None:
            opened.callback(now.close)
            after = next(coming, None)
            if after is not None:
                opened.callback(after.close)
            yield from now.read()
            now.close()
            now = after


def _plan(
    split: Split,
    source_row: np.ndarray,
    order: ShardOrder,
    start_step: int,
    device: torch.device,
    threads: int,
) -> Iterator["_Stretch"]:
    """Cut the steps into stretches. Each one's reading begins when it is asked for."""
    shard_of = np.full(len(split), -1)
    for number, shard in enumerate(split.shards):
        shard_of[shard.rows] = number
    first, share = start_step, len(order[0]) if len(order) else 0
    while first < len(order):
        stop = min(first + max(1, STRETCH // max(1, share)), len(order))
        while True:
            rows = source_row[order.index[order.own(first).start : order.own(stop - 1).stop]]
            if stop - first == 1 or len(np.unique(shard_of[rows])) <= FILES:
                break
            stop = first + (stop - first) // 2
        pieces = np.split(rows, np.flatnonzero(np.diff(shard_of[rows])) + 1) if len(rows) else []
        parts = [(split.shards[shard_of[piece[0]]], piece) for piece in pieces]
        yield _Stretch(split, parts, [len(order[step]) for step in range(first, stop)], device, threads)
        first = stop


class _Stretch:
    """Some steps on end, read by one pipeline.

    `parts`: each shard with the (n,) int64 rows that are wanted of it; `lengths`: samples of each step.
    """

    def __init__(
        self,
        split: Split,
        parts: Sequence[tuple[Shard, np.ndarray]],
        lengths: Sequence[int],
        device: torch.device,
        threads: int,
    ) -> None:
        self.split, self.parts, self.lengths, self.device = split, parts, lengths, device
        # All steps are as long, but for the last of an epoch; a rank's share of the others may be empty.
        self._batch_size = lengths[0] or max(lengths) or 1
        self._rows = np.concatenate([rows for _, rows in parts]) if parts else np.empty(0, np.int64)
        self._out = 0  # batches that came out
        self._opened = contextlib.ExitStack()
        if parts:
            for shard, _ in parts:
                if error := _find_cut(split, shard):
                    raise error
            folder = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="fastdrpl-"))
            indexes = [
                _index_of(shard, rows, Path(folder, f"{number}.idx"))
                for number, (shard, rows) in enumerate(parts)
            ]
            self._pipeline = RunningPipeline(device, self._batch_size, threads, self._define(indexes))
            self._opened.callback(self._pipeline.close)
            self._pipeline.schedule()

    def _define(self, indexes: list[Path]) -> Any:
        def define(dali: ModuleType) -> tuple[Any, ...]:
            pixels, row = dali.fn.readers.webdataset(
                paths=[str(shard.path) for shard, _ in self.parts],
                index_paths=[str(path) for path in indexes],
                ext=[pixel_extension(self.split), "row"],
                dtypes=[dali.types.UINT8, dali.types.INT64],
                missing_component_behavior="error",
                random_shuffle=False,
                dont_use_mmap=True,  # a mapped shard that is cut would end the process by a signal, without a word
                lazy_init=True,  # in its thread, not in ours
                prefetch_queue_depth=2,
                tensor_init_bytes=int(self.split.nbytes.max()) + BEFORE_PIXELS,
            )
            return (pixels if self.split.store == "raw" else decode_jpeg(dali, pixels, self.device), row)

        return define

    def read(self) -> Iterator[torch.Tensor]:
        """(B, H, W, 3) uint8 of each step."""
        for length in self.lengths:
            batches = [self._next() for _ in range(-(-length // self._batch_size))]
            if len(batches) == 1:
                yield batches[0][:length]
            elif batches:
                yield torch.cat(batches)[:length]
            else:
                shape = (0, self.split.height, self.split.width, 3)
                yield torch.empty(shape, dtype=torch.uint8, device=self.device)

    def _next(self) -> torch.Tensor:
        first = self._out * self._batch_size
        images, row, said = None, None, "images of several sizes"
        try:
            pixels, rows = self._pipeline.outputs()
            images, row = self._as_images(pixels), as_tensor(rows)
            self._out += 1
            if (self._out + 1) * self._batch_size < len(self._rows):
                self._pipeline.schedule()
        except RuntimeError as error:  # what is raised here would hold on to it, and so to the pipeline
            said = cause(str(error))
        if images is None or row is None:
            under_way = self._rows[first : first + (PREFETCH + 1) * self._batch_size]
            raise self._explain(under_way, said)
        wanted = self._rows[first : first + self._batch_size]
        seen = row.numpy().ravel()[: len(wanted)]  # behind the last sample the reader begins again
        wrong = np.flatnonzero(seen != wanted)
        if len(wrong):
            raise DataError(
                f"the shard has row {seen[wrong[0]]} where row {wanted[wrong[0]]} belongs",
                where=" or ".join(str(shard.path) for shard, _ in self._parts_with(wanted[wrong[:1]])),
                fix=GET_AGAIN,
            )
        return images

    def _as_images(self, output: Any) -> torch.Tensor | None:
        """(B, H, W, 3), where what came out has that size. Nothing is copied."""
        height, width = self.split.height, self.split.width
        tensor = as_tensor(output)
        if tensor is None:
            return None
        if self.split.store == "jpeg":
            return tensor if tensor.shape[1:] == (height, width, 3) else None
        head = len(pixel_head(self.split))
        if tensor.shape[1:] != (head + height * width * 3,):
            return None
        return tensor[:, head:].unflatten(1, (height, width, 3))

    def _parts_with(self, rows: np.ndarray) -> list[tuple[Shard, np.ndarray]]:
        parts = [(shard, own[np.isin(own, rows)]) for shard, own in self.parts]
        return [(shard, own) for shard, own in parts if len(own)]

    def _explain(self, rows: np.ndarray, said: str) -> DataError:
        """Why these rows cannot be read: DALI names neither the shard nor the image."""
        parts = self._parts_with(rows)
        for shard, own in parts:
            if error := _find_cut(self.split, shard) or _find_damaged(self.split, shard, own):
                return error
        return DataError(
            f"DALI cannot read tar shards: {said}",
            where=", ".join(str(shard.path) for shard, _ in parts),
            fix=GET_AGAIN,
        )

    def close(self) -> None:
        """End threads, remove temporary files; harmless when already closed."""
        self._opened.close()


def _index_of(shard: Shard, rows: np.ndarray, temporary: Path) -> Path:
    """The index by which DALI reads just these rows of a shard: the stored one, or lines of it in a file of our own."""
    if len(rows) == len(shard.rows):
        return shard.index_path
    lines = _read_index(shard)
    place = np.argsort(shard.rows)
    chosen = place[np.searchsorted(shard.rows, rows, sorter=place)]
    text = b"".join([b"v1.2 %d\n" % len(rows), *(lines[line] for line in (chosen + 1).tolist())])
    temporary.write_bytes(text)
    return temporary


def _read_index(shard: Shard) -> list[bytes]:
    """The lines of a stored index, the first of which is no sample."""
    try:
        lines = shard.index_path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(
            f"cannot read the index of a shard: {error.strerror}", where=str(shard.index_path), fix=GET_AGAIN
        ) from None
    if len(lines) != len(shard.rows) + 1:
        raise DataError(
            f"the index of a shard has {len(lines)} lines, wanted {len(shard.rows) + 1}",
            where=str(shard.index_path),
            fix=GET_AGAIN,
        )
    return lines


def _find_cut(split: Split, shard: Shard) -> DataError | None:
    """The error of a shard that is missing or has another length."""
    wanted = tar_bytes(split, shard)
    try:
        size = shard.path.stat().st_size
    except OSError as error:
        return DataError(f"cannot read a shard: {error.strerror}", where=str(shard.path), fix=GET_AGAIN)
    if size == wanted:
        return None
    return DataError(f"a shard has {size} bytes, wanted {wanted}", where=str(shard.path), fix=GET_AGAIN)


def _find_damaged(split: Split, shard: Shard, rows: np.ndarray) -> DataError | None:
    """The error of the first of these rows whose image in the shard does not decode."""
    offset = np.zeros_like(split.offset)
    offset[shard.rows] = lay_out(split, shard.rows)[:-1] + BEFORE_PIXELS + len(pixel_head(split))
    inside = replace(split, path=shard.path, offset=offset)
    return find_damaged(inside, np.memmap(shard.path, np.uint8, mode="r"), rows)
