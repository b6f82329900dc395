"""FFCV's file format (version 2), written row by row in bounded memory; an interrupted file can be continued.

What is in such a file, and reading it: `fastdrpl.loaders.beton_tables`.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from fastdrpl.loaders.beton_tables import (
    FIELD,
    FIELDS,
    HEADER,
    LARGEST_PAGE,
    MODES,
    PLACE,
    RECORD,
    SMALLEST_PAGE,
    VERSION,
    choose_page_size,
    find_data_start,
    hash_file,
    hash_into,
    place_raw,
    read_tables,
)
from fastdrpl.loaders.errors import DataError

__all__ = ["BetonWriter", "choose_page_size", "place_raw", "read_tables"]


class BetonWriter:
    """Writes one file row by row with two pages of memory (and the tables, 56 bytes a row).

    Use: `write_raw` or `write_jpeg` until all rows are there, then `finish`; `close` in any case.
    With `resume=(rows, sizes)` it goes on behind the rows of complete pages that an earlier writer had
    synced; `sizes` are those rows' JPEG lengths (empty when raw). The bytes are those of an unbroken run.
    """

    def __init__(
        self,
        path: Path,
        labels: np.ndarray,
        *,
        height: int,
        width: int,
        store: Literal["raw", "jpeg"] = "raw",
        page_size: int | None = None,
        resume: tuple[int, Sequence[int]] = (0, ()),
    ) -> None:
        image_bytes = height * width * 3
        page = page_size or choose_page_size(image_bytes)
        if len(labels) == 0 or not (0 < height < 1 << 16 and 0 < width < 1 << 16):
            raise ValueError(f"wanted rows and sides of 1..65535, got {len(labels)} rows of {height}x{width}")
        if page & (page - 1) or not SMALLEST_PAGE <= page <= LARGEST_PAGE or page < image_bytes:
            raise ValueError(f"page size {page}: wanted a power of two, 2 MiB or more, that holds one image")
        self.path, self.store, self.page_size, self.rows = path, store, page, len(labels)
        self.image_bytes = image_bytes
        self.records = np.zeros(self.rows, RECORD)
        self.records["image"]["mode"] = MODES[store]
        self.records["image"]["height"], self.records["image"]["width"] = height, width
        self.records["label"], self.records["index"] = labels, np.arange(self.rows)
        self.nbytes = np.full(self.rows, image_bytes, dtype=np.int64)
        self.start = find_data_start(self.rows, page)
        self.done, self.done_in_pages, self.pages, self.used = 0, 0, 0, 0
        if store == "raw":
            self.records["image"]["offset"] = place_raw(self.rows, image_bytes, page)
        self._buffers = [np.zeros(page, np.uint8), np.zeros(page, np.uint8)]
        self._hashed: list[Future[None] | None] = [None, None]
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        rows_done, sizes = resume
        self._file = open(path, "r+b" if rows_done else "wb", buffering=0)  # noqa: SIM115 - closed by close()
        if rows_done:
            self._skip(rows_done, sizes)
        else:
            self._append(memoryview(self._head()))

    def write_raw(self, images: np.ndarray) -> None:
        """Append images: (n, height, width, 3) uint8."""
        flat = np.ascontiguousarray(images).reshape(len(images), math.prod(images.shape[1:]))
        if self.store != "raw" or flat.dtype != np.uint8 or flat.shape[1] != self.image_bytes:
            raise ValueError(
                f"wanted uint8 images of {self.image_bytes} bytes, got {images.dtype} {images.shape}"
            )
        self._check_room(len(flat))
        while len(flat):
            if self.page_size - self.used < self.image_bytes:
                self._flush()
            n = min(len(flat), (self.page_size - self.used) // self.image_bytes)
            stop = self.used + n * self.image_bytes
            self._page[self.used : stop] = flat[:n].reshape(-1)
            self.used, self.done, flat = stop, self.done + n, flat[n:]

    def write_jpeg(self, images: Sequence[bytes]) -> None:
        """Append images, each one JPEG file of the size given at the start."""
        if self.store != "jpeg":
            raise ValueError("this file stores raw pixels")
        self._check_room(len(images))
        for data in images:
            if not 0 < len(data) <= self.page_size:
                raise ValueError(f"a JPEG of {len(data)} bytes does not fit in a page of {self.page_size}")
            if self.page_size - self.used < len(data):
                self._flush()
            self._place_jpeg(len(data))
            self._page[self.used - len(data) : self.used] = np.frombuffer(data, np.uint8)

    def _place_jpeg(self, nbytes: int) -> None:
        self.records["image"]["offset"][self.done] = self.start + self.pages * self.page_size + self.used
        self.nbytes[self.done] = nbytes
        self.used += nbytes
        self.done += 1

    def sync(self) -> int:
        """Force complete pages to the disk; returns the rows in them: what `resume` may be given."""
        os.fsync(self._file.fileno())
        return self.done_in_pages

    def finish(self) -> tuple[int, str]:
        """Write what is left and sync; returns the file's size in bytes and its sha256."""
        if self.done != self.rows:
            raise ValueError(f"{self.done} of {self.rows} rows were written")
        if self.used:
            self._flush()
        table = np.zeros(self.rows, PLACE)
        table["row"], table["offset"] = self.records["index"], self.records["image"]["offset"]
        table["nbytes"] = self.nbytes
        self._append(memoryview(table.tobytes()))
        size = self._file.tell()
        if self.store == "jpeg":  # the records were not known when the file began
            self._file.seek(0)
            _write_all(self._file.fileno(), memoryview(self._head()))
        os.fsync(self._file.fileno())
        self._wait()
        self.close()
        return size, (self._hash.hexdigest() if self.store == "raw" else hash_file(self.path))

    def close(self) -> None:
        """Release file and thread; harmless when already closed."""
        self._thread.shutdown(wait=True)
        self._file.close()

    @property
    def _page(self) -> np.ndarray:
        return self._buffers[self.pages % 2]

    def _check_room(self, n: int) -> None:
        if self.done + n > self.rows:
            raise ValueError(f"{self.done} + {n} rows written, but the file is for {self.rows}")

    def _head(self) -> bytes:
        header = np.zeros(1, HEADER)
        header["version"], header["fields"] = VERSION, len(FIELDS)
        header["page_size"], header["rows"] = self.page_size, self.rows
        pages = -(-self.rows // (self.page_size // self.image_bytes)) if self.store == "raw" else self.pages
        header["table"] = self.start + pages * self.page_size
        fields = np.zeros(len(FIELDS), FIELD)
        fields["type"], fields["name"] = zip(*FIELDS, strict=True)
        head = header.tobytes() + fields.tobytes() + self.records.tobytes()
        return head.ljust(self.start, b"\0")

    def _flush(self) -> None:
        """Hand the page to the file and to the hashing thread, and go on in the other buffer."""
        self._page[self.used :] = 0
        now = self.pages % 2
        self._hashed[now] = self._append(self._page.data)
        self.pages, self.used, self.done_in_pages = self.pages + 1, 0, self.done
        before = self._hashed[1 - now]
        if before is not None:  # the buffer to be filled next must have been hashed
            before.result()

    def _append(self, data: memoryview) -> Future[None] | None:
        hashed = self._thread.submit(self._hash.update, data) if self.store == "raw" else None
        _write_all(self._file.fileno(), data)
        return hashed

    def _wait(self) -> None:
        self._thread.submit(int).result()  # one thread: all before it are done

    def _skip(self, rows_done: int, sizes: Sequence[int]) -> None:
        """Take over complete pages of an earlier writer."""
        if self.store == "raw":
            per_page = self.page_size // self.image_bytes
            pages, rest = divmod(rows_done, per_page)
            if rest:
                raise ValueError(f"{rows_done} rows do not fill pages of {per_page}")
            self.pages, self.done = pages, rows_done
        else:
            for size in sizes:
                if self.page_size - self.used < size:
                    self.pages, self.used = self.pages + 1, 0
                self._place_jpeg(size)
            self.pages += 1  # the page that these rows end
        self.used, self.done_in_pages = 0, self.done
        end = self.start + self.pages * self.page_size
        if os.fstat(self._file.fileno()).st_size < end:
            raise DataError("the unfinished file is shorter than its journal says", where=str(self.path))
        self._file.truncate(end)
        if self.store == "raw":
            hash_into(self._hash, self.path)
        self._file.seek(end)


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
