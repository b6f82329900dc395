"""FFCV's file format (version 2), written row by row in bounded memory; an interrupted file can be continued.

What is in such a file, and reading it: `fastdrpl.loaders.beton_tables`.
"""

import errno
import fcntl
import hashlib
import math
import mmap
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

SMALL_PAGE = 1 << 23  # bytes; of larger pages fewer are held
LARGE_FILE = 1 << 28  # bytes of pixels; such files pass by the system's cache, which costs more than the disk

__all__ = ["BetonWriter", "choose_page_size", "place_raw", "read_tables"]


class BetonWriter:
    """Writes one file row by row with a few pages of memory (and the tables, 56 bytes a row).

    Pages are written by one thread and hashed by another while the next ones are filled.

    Use: `write_raw` or `write_jpeg` until all rows are there, then `finish`; `close` in any case.
    `direct` writes pages past the system's cache where the disk can do that; default: raw files of 256 MiB or more.
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
        direct: bool | None = None,
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
        large = store == "raw" and self.rows * image_bytes >= LARGE_FILE
        self._direct_pages, self._direct = large if direct is None else direct, False
        self._buffers = [_aligned(page) for _ in range(4 if page <= SMALL_PAGE else 2)]
        self._busy: list[list[Future[None]]] = [[] for _ in self._buffers]
        self._hash = hashlib.sha256()
        self._hashing, self._writing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._broken = False
        rows_done, sizes = resume
        self._file = open(path, "r+b" if rows_done else "wb", buffering=0)  # noqa: SIM115 - closed by close()
        if rows_done:
            self._skip(rows_done, sizes)
        else:
            self._busy[-1] = self._append(memoryview(self._head()), 0)

    def write_raw(self, images: np.ndarray) -> None:
        """Append images: (n, height, width, 3) uint8, in any memory order (a view of colour planes is fast)."""
        if self.store != "raw" or images.dtype != np.uint8 or math.prod(images.shape[1:]) != self.image_bytes:
            raise ValueError(
                f"wanted uint8 images of {self.image_bytes} bytes, got {images.dtype} {images.shape}"
            )
        self._check_room(len(images))
        while len(images):
            if self.page_size - self.used < self.image_bytes:
                self._flush()
            n = min(len(images), (self.page_size - self.used) // self.image_bytes)
            stop = self.used + n * self.image_bytes
            _copy(images[:n], self._page[self.used : stop])
            self.used, self.done, images = stop, self.done + n, images[n:]

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
        """Force complete pages to the disk; returns the rows in them: what `resume` may be given.

        Another thread may call it while rows are written.
        """
        self._writing.submit(int).result()  # one thread: all before it are done
        rows = self.done_in_pages
        os.fsync(self._file.fileno())
        return rows

    def finish(self) -> tuple[int, str]:
        """Write what is left and sync; returns the file's size in bytes and its sha256."""
        if self.done != self.rows:
            raise ValueError(f"{self.done} of {self.rows} rows were written")
        if self.used:
            self._flush()
        table = np.zeros(self.rows, PLACE)
        table["row"], table["offset"] = self.records["index"], self.records["image"]["offset"]
        table["nbytes"] = self.nbytes
        self._wait()
        for future in self._append(memoryview(table.tobytes()), self.done):
            future.result()
        size = self._file.tell()
        if self.store == "jpeg":  # the records were not known when the file began
            self._file.seek(0)
            _write_all(self._file.fileno(), memoryview(self._head()))
        os.fsync(self._file.fileno())
        self.close()
        return size, (self._hash.hexdigest() if self.store == "raw" else hash_file(self.path))

    def close(self) -> None:
        """Release file and threads; harmless when already closed."""
        self._hashing.shutdown(wait=True)
        self._writing.shutdown(wait=True)
        self._file.close()

    @property
    def _page(self) -> np.ndarray:
        return self._buffers[self.pages % len(self._buffers)]

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
        """Hand the page to both threads, and go on in the next buffer."""
        self._page[self.used :] = 0
        self._busy[self.pages % len(self._busy)] = self._append(
            self._page.data, self.done, direct=self._direct_pages
        )
        self.pages, self.used = self.pages + 1, 0
        for future in self._busy[self.pages % len(self._busy)]:  # what the next buffer still held
            future.result()

    def _append(self, data: memoryview, rows: int, *, direct: bool = False) -> list[Future[None]]:
        futures = [self._writing.submit(self._write, data, rows, direct)]
        if self.store == "raw":
            futures.append(self._hashing.submit(self._hash.update, data))
        return futures

    def _write(self, data: memoryview, rows: int, direct: bool) -> None:
        """Append to the file; `rows` are in it then. After an error nothing more is written."""
        if self._broken:
            return
        self._broken = True
        direct, begin = direct and self._direct_pages, self._file.tell()
        try:
            self._switch(direct)
            _write_all(self._file.fileno(), data)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self._direct_pages = False  # this disk knows only the usual way: the bytes are the same
            self._switch(False)
            self._file.seek(begin)
            _write_all(self._file.fileno(), data)
        self._broken, self.done_in_pages = False, rows

    def _switch(self, direct: bool) -> None:
        """Turn the cache off or on for what is written next. Raises OSError (EINVAL) where it cannot be."""
        if direct != self._direct:
            flag = getattr(os, "O_DIRECT", 0)
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | flag if direct else flags & ~flag)
            self._direct = direct

    def _wait(self) -> None:
        for number in range(len(self._busy)):  # the oldest first: its error is the cause
            for future in self._busy[(self.pages + number) % len(self._busy)]:
                future.result()

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


def _aligned(nbytes: int) -> np.ndarray:
    """Zeros that begin at a page of the memory, as direct writing wants it."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def _copy(images: np.ndarray, out: np.ndarray) -> None:
    """(n, ...) images into n * image bytes. Colour by colour is the fast way where the colours lie in planes."""
    rows = out.reshape(images.shape)
    if images.ndim == 4 and not images.flags.c_contiguous:
        for colour in range(images.shape[3]):
            rows[..., colour] = images[..., colour]
    else:
        rows[...] = images


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
