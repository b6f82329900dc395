"""From the bytes of a prepared split to pixels, one row at a time. Needs numpy and pillow only."""

import io
import os

import numpy as np

from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import DataError, UserError


def check_source_rows(split: Split, source_row: np.ndarray) -> None:
    """Raise UserError unless `source_row` is (N,) int64 with every value a row of the split."""
    if source_row.dtype != np.int64 or source_row.ndim != 1:
        raise UserError(f"source rows: got {source_row.dtype} {source_row.shape}, want int64 (N,)")
    if len(source_row) and not (source_row.min() >= 0 and source_row.max() < len(split)):
        raise UserError(
            f"source rows: got {source_row.min()}..{source_row.max()}, want 0..{len(split) - 1}",
            where=str(split.path),
            fix="use the labels with the prepared dataset they were made for",
        )


def map_file(split: Split) -> np.ndarray:
    """The bytes of the file, read-only and mapped: (size,) uint8. DataError if an image ends beyond it."""
    if not split.path.is_file():
        raise DataError(
            "the compiled file is missing", where=str(split.path), fix="prepare the dataset again"
        )
    size = split.path.stat().st_size
    stop = split.offset + split.nbytes
    bad = np.flatnonzero((split.offset < 0) | (split.nbytes < 0) | (stop > size))
    if len(bad):
        raise DataError(
            f"the image of row {bad[0]} ends at byte {stop[bad[0]]} of a file of {size} bytes",
            where=str(split.path),
            fix="the file is cut short or damaged: prepare the dataset again",
        )
    if size == 0:  # which cannot be mapped
        return np.empty(0, np.uint8)
    return np.memmap(split.path, np.uint8, mode="r")


def check_length(split: Split, file: np.ndarray) -> None:
    """Raise DataError if the mapped file has become shorter: reading beyond its end would end the process."""
    try:
        size = os.stat(split.path).st_size
    except FileNotFoundError:  # what is mapped stays
        return
    if size < len(file):
        raise DataError(
            f"the file was cut to {size} bytes while it was read, of {len(file)}",
            where=str(split.path),
            fix="prepare the dataset again, and leave its files alone while a run reads them",
        )


def decode_row(split: Split, file: np.ndarray, row: int) -> np.ndarray:
    """The pixels of one row: (H, W, 3) uint8; zeros for a quarantined row.

    `file`: the bytes from `map_file`. Raises DataError, with file and row, for one that does not decode.
    """
    shape = (split.height, split.width, 3)
    start, nbytes = int(split.offset[row]), int(split.nbytes[row])
    if not split.valid[row]:
        return np.zeros(shape, np.uint8)
    if split.store == "raw":
        if nbytes != split.height * split.width * 3:
            raise _damaged(split, row, f"{nbytes} bytes")
        return np.asarray(file[start : start + nbytes]).reshape(shape)
    from PIL import Image  # which raw pixels do not need

    try:
        with Image.open(io.BytesIO(file[start : start + nbytes].tobytes()), formats=["JPEG"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(split, row, str(error)) from error
    if pixels.shape != shape:
        raise _damaged(split, row, f"an image of {pixels.shape[0]} x {pixels.shape[1]}")
    return pixels


def _damaged(split: Split, row: int, seen: str) -> DataError:
    return DataError(
        f"row {row} is no {split.store} image of {split.height} x {split.width}: {seen}",
        where=f"{split.path}, row {row}, byte {split.offset[row]}",
        fix="the file is damaged: prepare the dataset again",
    )
