"""FFCV's file format (version 2): what is in a file, and reading it, with numpy alone.

A file is: header, field descriptors, one record per row (image, label, index), zeros up to a page border,
the data pages, the allocation table. Images lie in row order and none crosses a page. All integers are
little-endian. The real `ffcv` library reads these files in every mode.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fastdrpl.loaders.errors import DataError

VERSION = 2
SMALLEST_PAGE = 1 << 21  # what the real library's writer demands
LARGEST_PAGE = 1 << 31  # the header holds it in 32 bits
MODES: dict[str, int] = {"jpeg": 0, "raw": 1}
PREPARE_AGAIN = "remove the folder and run `fastdrpl prepare` again"

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("rows", "<u8"), ("table", "<u8")]
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("offset", "<u8")])
RECORD = np.dtype(  # aligned as the library does: three bytes are empty after the image
    {
        "names": ["image", "label", "index"],
        "formats": [IMAGE, "<i8", "<i8"],
        "offsets": [0, 16, 24],
        "itemsize": 32,
    }
)
PLACE = np.dtype([("row", "<u8"), ("offset", "<u8"), ("nbytes", "<u8")])
FIELDS = ((2, b"image"), (1, b"label"), (1, b"index"))  # (the library's type number, name)


@dataclass(frozen=True)
class Tables:
    """What a file says of its rows; arrays are (rows,) int64."""

    height: int
    width: int
    store: Literal["raw", "jpeg"]
    page_size: int
    label: np.ndarray
    offset: np.ndarray
    nbytes: np.ndarray
    sha256: str  # of header, descriptors, records and allocation table: cheap to check, pixels apart


def choose_page_size(image_bytes: int) -> int:
    """The smallest page, a power of two, that wastes little on images of `image_bytes` bytes of pixels."""
    page = SMALLEST_PAGE
    while page < image_bytes or (page < 32 * image_bytes and page < 1 << 25):
        page *= 2
    if page > LARGEST_PAGE:
        raise ValueError(f"an image of {image_bytes} bytes does not fit in a page of {LARGEST_PAGE}")
    return page


def place_raw(rows: int, image_bytes: int, page_size: int) -> np.ndarray:
    """Offset of each row in the file when all images have `image_bytes` bytes: (rows,) int64."""
    per_page = page_size // image_bytes
    row = np.arange(rows, dtype=np.int64)
    return find_data_start(rows, page_size) + row // per_page * page_size + row % per_page * image_bytes


def find_data_start(rows: int, page_size: int) -> int:
    """First byte of the data pages: the page border behind the records."""
    end = HEADER.itemsize + len(FIELDS) * FIELD.itemsize + rows * RECORD.itemsize
    return -(-end // page_size) * page_size


def hash_into(digest: "hashlib._Hash", path: Path) -> None:
    """Feed a file to a digest, in constant memory."""
    with open(path, "rb", buffering=0) as file:
        block = bytearray(1 << 20)
        while n := file.readinto(block):
            digest.update(memoryview(block)[:n])


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    hash_into(digest, path)
    return digest.hexdigest()


def read_tables(path: Path) -> Tables:
    """Read and check everything but the pixels.

    Memory stays below twice the file's size whatever the file claims. Raises DataError for a file that is
    cut, damaged or of another kind.
    """
    try:
        with open(path, "rb") as file:
            return _read_tables(path, file.fileno())
    except OSError as error:
        raise DataError(
            f"cannot read a prepared file: {error.strerror}", where=str(path), fix=PREPARE_AGAIN
        ) from None


def _read_tables(path: Path, descriptor: int) -> Tables:
    size = os.fstat(descriptor).st_size
    digest = hashlib.sha256()

    def check(good: bool | np.bool_, what: str) -> None:
        if not good:
            raise DataError(f"a prepared file is damaged: {what}", where=str(path), fix=PREPARE_AGAIN)

    def read(kind: np.dtype, count: int, offset: int) -> np.ndarray:
        nbytes = count * kind.itemsize
        check(offset + nbytes <= size, f"it ends at byte {size}, before its tables do")
        data = os.pread(descriptor, nbytes, offset)
        while len(data) < nbytes:  # one call reads 2 GiB at most
            more = os.pread(descriptor, nbytes - len(data), offset + len(data))
            check(len(more) > 0, "it became shorter while it was read")
            data += more
        digest.update(data)
        return np.frombuffer(data, kind)

    header = read(HEADER, 1, 0)[0]
    version, page_size, rows, table = (int(header[k]) for k in ("version", "page_size", "rows", "table"))
    check(version == VERSION, f"format version {version}, wanted {VERSION}")
    check(header["fields"] == len(FIELDS), f"{header['fields']} fields, wanted {len(FIELDS)}")
    good_page = page_size & (page_size - 1) == 0 and SMALLEST_PAGE <= page_size <= LARGEST_PAGE
    check(good_page, f"page size {page_size}")
    check(0 < rows <= size // (RECORD.itemsize + PLACE.itemsize), f"{rows} rows in {size} bytes")
    start = find_data_start(rows, page_size)
    check(start < table < size and table % page_size == 0, f"allocation table at byte {table} of {size}")
    check(size - table == rows * PLACE.itemsize, f"{size - table} bytes of allocation table for {rows} rows")

    fields = read(FIELD, len(FIELDS), HEADER.itemsize)
    known = tuple((int(f["type"]), bytes(f["name"])) for f in fields) == FIELDS
    check(known and not any(bytes(f["arguments"]).strip(b"\0") for f in fields), "unknown fields")
    records = read(RECORD, rows, HEADER.itemsize + fields.nbytes)
    image = records["image"]
    mode, width, height = (int(image[0][k]) for k in ("mode", "width", "height"))
    check(mode in MODES.values() and bool((image["mode"] == mode).all()), "unknown or mixed image modes")
    check(width > 0 and bool((image["width"] == width).all()), "image widths differ")
    check(height > 0 and bool((image["height"] == height).all()), "image heights differ")
    check((records["index"] == np.arange(rows)).all(), "the index is not 0..rows-1")

    places = read(PLACE, rows, table)
    check((places["row"] == records["index"].view("<u8")).all(), "the allocation table misses rows")
    check((places["offset"] == image["offset"]).all(), "the allocation table contradicts the records")
    check(
        bool((places["offset"] < table).all() and (places["nbytes"] <= page_size).all()),
        "offsets past the end",
    )
    offset, nbytes = places["offset"].astype(np.int64), places["nbytes"].astype(np.int64)
    last = offset + nbytes
    check(
        bool((nbytes > 0).all() and offset[0] >= start and last[-1] <= table), "images outside the data pages"
    )
    check((offset[1:] >= last[:-1]).all(), "images overlap")
    check((offset // page_size == (last - 1) // page_size).all(), "an image crosses a page")
    store: Literal["raw", "jpeg"] = "raw" if mode == MODES["raw"] else "jpeg"
    check(store == "jpeg" or bool((nbytes == height * width * 3).all()), "raw images of a wrong length")
    label = records["label"].astype(np.int64)
    return Tables(height, width, store, page_size, label, offset, nbytes, digest.hexdigest())
