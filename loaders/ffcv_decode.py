"""Compiled loops that read the images of a mapped file; the JPEG decoder is the one of the ffcv library.

The library's own loops are compiled anew by each of its loaders in each process (seconds), and drop what its JPEG
decoder says of a damaged image. These are compiled once and kept on disk, and say it.
"""

import ctypes
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from fastdrpl.kernels.cpu.jit import jit

GOOD, DAMAGED = 0, 1  # status of an image

_WORD, _ADDRESS = numba.types.uint32, numba.types.uintp
# int imdecode(source, bytes, height, width, target, crop height, crop width, crop y, x, scale, crop?, flip?)
_decode_jpeg = numba.types.ExternalFunction(
    "fastdrpl_ffcv_imdecode",
    numba.types.int32(_ADDRESS, numba.types.uint64, _WORD, _WORD, _ADDRESS, *[_WORD] * 8),
)


def bind_decoder(library: ctypes.CDLL) -> None:
    """Tell compiled code where the JPEG decoder of the ffcv library is. Before any JPEG is read; again does no harm."""
    address = ctypes.cast(library.imdecode, ctypes.c_void_p).value
    llvmlite.binding.add_symbol("fastdrpl_ffcv_imdecode", address)


@jit(nogil=True)
def copy_image(file: np.ndarray, start: np.uint64, out: np.ndarray) -> None:
    """The bytes of one image, from `file[start]` on, to (bytes,) uint8."""
    for k in range(np.uint64(len(out))):
        out[k] = file[start + k]


@jit(nogil=True)
def has_size(file: np.ndarray, start: np.int64, stop: np.int64, height: np.int64, width: np.int64) -> bool:
    """Whether the frame header of a JPEG says this size. An image of another one the decoder would scale, silently."""
    at = start + 2
    while at + 9 <= stop and file[at] == 0xFF:
        marker = file[at + 1]
        if marker == 0xFF:  # padding between segments
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            high = np.int64(file[at + 5]) * 256 + np.int64(file[at + 6])
            wide = np.int64(file[at + 7]) * 256 + np.int64(file[at + 8])
            return high == height and wide == width
        at += 2 + np.int64(file[at + 2]) * 256 + np.int64(file[at + 3])
    return False


@jit(nogil=True)
def decode_image(file: np.ndarray, start: np.int64, nbytes: np.int64, out: np.ndarray) -> int:
    """One JPEG to (H, W, 3) uint8; returns its status."""
    height, width = out.shape[0], out.shape[1]
    if not has_size(file, start, start + nbytes, height, width):
        return DAMAGED
    source = file[start : start + nbytes].ctypes.data
    result = _decode_jpeg(
        source, nbytes, height, width, out.ctypes.data, height, width, 0, 0, 1, 1, 0, 0
    )  # fmt: skip
    return GOOD if result == 0 else DAMAGED


# Serial and parallel twice over: one function compiled both ways would share a single entry of numba's cache.


@jit(nogil=True)
def read_raw_serial(file: np.ndarray, start: np.ndarray, out: np.ndarray) -> None:
    """Raw images, from (B,) uint64 bytes on, to (B, bytes) uint8."""
    for i in range(len(start)):
        copy_image(file, start[i], out[i])


@jit(nogil=True, parallel=True)
def read_raw_parallel(file: np.ndarray, start: np.ndarray, out: np.ndarray) -> None:
    """`read_raw_serial`, on numba's threads."""
    for i in numba.prange(len(start)):
        copy_image(file, start[i], out[i])


@jit(nogil=True)
def read_jpeg_serial(
    file: np.ndarray, start: np.ndarray, nbytes: np.ndarray, out: np.ndarray, status: np.ndarray
) -> None:
    """JPEGs of (B,) uint64 bytes to (B, H, W, 3) uint8; `status`: (B,) int64, see `decode_image`."""
    for i in range(len(start)):
        status[i] = decode_image(file, np.int64(start[i]), np.int64(nbytes[i]), out[i])


@jit(nogil=True, parallel=True)
def read_jpeg_parallel(
    file: np.ndarray, start: np.ndarray, nbytes: np.ndarray, out: np.ndarray, status: np.ndarray
) -> None:
    """`read_jpeg_serial`, on numba's threads."""
    for i in numba.prange(len(start)):
        status[i] = decode_image(file, np.int64(start[i]), np.int64(nbytes[i]), out[i])


READ: dict[tuple[str, bool], Any] = {  # (store, whether on several threads) -> the loop
    ("raw", False): read_raw_serial,
    ("raw", True): read_raw_parallel,
    ("jpeg", False): read_jpeg_serial,
    ("jpeg", True): read_jpeg_parallel,
}
