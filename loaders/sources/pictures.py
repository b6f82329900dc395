"""Any image file that Pillow reads -> RGB pixels of one size. Runs in the worker processes of `prepare`."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import IO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastdrpl.loaders.marks import mark_images
from fastdrpl.loaders.sources.formats import EXTENSIONS, FORMATS, readable_formats, why_unknown

__all__ = [
    "DAMAGE",
    "EXTENSIONS",
    "FORMATS",
    "Unreadable",
    "decode_pictures",
    "read_picture",
    "read_pictures",
]

DAMAGE = (  # what Pillow's many decoders raise on damaged files
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

LARGEST = 256 << 20  # bytes of one encoded image; more is no photo

Resample = Literal["bilinear", "box"]


class Span(NamedTuple):
    """An image that lies inside a larger file, uncompressed."""

    path: str
    offset: int
    nbytes: int


class Refused(NamedTuple):
    """An image that is not to be read at all."""

    reason: str


Place = str | bytes | Span | Refused  # where an encoded image is: a file, memory, or a stretch of a file


class Unreadable(Exception):
    """An image that cannot be used; the text is the reason."""


class Target(NamedTuple):
    """What every image is made into."""

    size: int  # pixels, height and width
    store: Literal["raw", "jpeg"]
    quality: int  # of JPEG, 1..100
    resample: Resample = "bilinear"  # the filter; widened when an image shrinks


def read_pictures(
    places: Sequence[Place], target: Target
) -> tuple[bytes | list[bytes], list[tuple[int, str]], bytes]:
    """Decode images; returns (pixels of all in one string, or a JPEG each; [(position, reason)] of the bad; marks).

    A bad image is black.
    """
    out = np.empty((len(places), target.size, target.size, 3), np.uint8)
    bad, marks = decode_pictures(places, target, out)
    if target.store == "jpeg":
        return [encode_jpeg(image, target.quality) for image in out], bad, marks
    return out.tobytes(), bad, marks


def decode_pictures(
    places: Sequence[Place], target: Target, out: np.ndarray
) -> tuple[list[tuple[int, str]], bytes]:
    """Decode images into `out`: (n, size, size, 3) uint8; -> [(position, reason)] of the bad (black), marks."""
    bad = []
    sizes = [(0, 0)] * len(places)
    for position, place in enumerate(places):
        try:
            out[position], sizes[position] = _read(place, target.size, target.resample)
        except Unreadable as error:
            out[position] = 0
            bad.append((position, str(error)))
    return bad, mark_images(out, sizes).tobytes()


def read_picture(place: Place, size: int, resample: Resample = "bilinear") -> np.ndarray:
    """One image as (size, size, 3) uint8: upright, RGB, first frame. Raises Unreadable."""
    return _read(place, size, resample)[0]


def _read(place: Place, size: int, resample: Resample) -> tuple[np.ndarray, tuple[int, int]]:
    """One image, and width and height of the original in pixels. Raises Unreadable."""
    try:
        with _open(place) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of single files would flood the terminal
            return _decode(file, size, resample)
    except FileNotFoundError:
        gone = isinstance(place, str) and os.path.islink(place)
        raise Unreadable("broken link" if gone else "no such file") from None
    except IsADirectoryError:
        raise Unreadable("not a regular file") from None
    except PermissionError:
        raise Unreadable("no permission to read") from None
    except UnidentifiedImageError:
        with _open(place) as file:
            why = why_unknown(file.read(64))
        raise Unreadable(why) from None
    except Image.DecompressionBombError:
        raise Unreadable("too many pixels") from None
    except DAMAGE as error:
        if "truncated" in str(error).lower():
            raise Unreadable("truncated") from None
        raise Unreadable(f"damaged ({type(error).__name__})") from None


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """One (height, width, 3) uint8 image as a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return out.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey is scaled, transparent pixels lie on white. Raises Unreadable."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        wide = np.asarray(image).astype(np.float64)
        grey = np.clip(np.floor(wide / 257 + 0.5), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise Unreadable(f"32-bit pixels (mode {image.mode}) have no known range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def watch_parent() -> None:
    """End this worker when the process that started it is gone (it cannot say goodbye after a kill)."""

    def wait_and_end() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


@contextmanager
def _open(place: Place) -> Iterator[IO[bytes]]:
    """The bytes of one image as a file. Raises OSError or Unreadable."""
    if isinstance(place, Refused):
        raise Unreadable(place.reason)
    if isinstance(place, str):
        with open(place, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if status.st_size == 0:
                raise Unreadable("empty file")
            yield file
        return
    data = place if isinstance(place, bytes) else _read_span(place)
    if not data:
        raise Unreadable("empty file")
    if len(data) > LARGEST:
        raise Unreadable(f"more than {LARGEST >> 20} MB")
    yield io.BytesIO(data)


def _read_span(span: Span) -> bytes:
    wanted = min(span.nbytes, LARGEST + 1)
    with open(span.path, "rb") as file:
        file.seek(span.offset)
        data = file.read(wanted)
    if len(data) < wanted:
        raise Unreadable("truncated")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe in the folder would wait for ever


def _decode(file: IO[bytes], size: int, resample: Resample) -> tuple[np.ndarray, tuple[int, int]]:
    with Image.open(file, formats=readable_formats()) as image:
        original = image.size
        if image.format in ("JPEG", "MPO") and resample == "bilinear":
            image.draft(None, (2 * size, 2 * size))  # decode large photos at 1/2, 1/4, 1/8: never below 2x
        image.load()
        upright = ImageOps.exif_transpose(image) if _is_turned(image) else image
        upright.format = image.format
        rgb = to_rgb(upright)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling[resample.upper()])  # antialiased
    return np.asarray(rgb), original


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(0x0112, 1) != 1
    except DAMAGE:  # damaged notes on a sound image: taken as upright, as every viewer does
        return False
