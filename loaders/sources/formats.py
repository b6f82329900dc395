"""Which formats of images are read here, what a file is that is not read, and what would read it."""

import functools
import importlib

from PIL import Image, features

from fastdrpl.loaders.extras import INSTALL

# Formats we let Pillow read, and their file names. Its own list is longer: it would run Ghostscript for .eps.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),  # by the extra pillow-heif
    "TGA": (".tga",),
    "ICO": (".ico",),
}
EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
FIX = {  # format -> what lets Pillow read it
    "HEIF": INSTALL["pillow_heif"],
    "AVIF": "pip install 'pillow>=11.3'",
}
# Photos and drawings that are not read here: whoever has them should know.
_CAMERA = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")
OTHER_IMAGES = frozenset((*_CAMERA, ".psd", ".svg", ".eps", ".jxl", ".exr", ".hdr", ".dcm"))
_BRANDS = {  # of a file that begins with a box `ftyp`
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_STARTS = (  # what else lies under the name of an image
    (b"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull`"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML file"),
    (b"<svg", "a drawing in SVG"),
)
_IMAGES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that Pillow can open on this machine."""
    Image.init()
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:  # not installed: what is not read for want of it is named where it is met
        Image.OPEN.pop("HEIF", None)
    works = set(FORMATS) & set(Image.OPEN)
    if "AVIF" in works and not features.check("avif"):
        works.remove("AVIF")
    return tuple(name for name in FORMATS if name in works)


@functools.cache
def readable_extensions() -> frozenset[str]:
    """The extensions of the formats that can be read on this machine."""
    return frozenset(extension for name in readable_formats() for extension in FORMATS[name])


def format_of(extension: str) -> str | None:
    """The format of `FORMATS` that files of this extension have."""
    return next((name for name, extensions in FORMATS.items() if extension in extensions), None)


def kind_of(head: bytes) -> str | None:
    """The format that a file has by its first bytes, of those that are met without an extension."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _IMAGES if head.startswith(start)), None)


def why_unknown(head: bytes) -> str:
    """Why a file that begins like this is not taken for an image."""
    name = _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    if name is not None and name not in readable_formats():
        return f"{name} is not read here: {FIX[name]}"
    low = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((what for start, what in _STARTS if low.startswith(start)), None)
    return f"not an image ({what})" if what else "not an image"
