"""Compiled loops that read the raw images of a mapped file, on one thread or on numba's."""

import math

import numba
import numpy as np

from fastdrpl.kernels.cpu.jit import PARALLEL_LOCK, jit

PARALLEL = 1 << 20  # bytes of a batch from which on several threads are faster than one


@jit(nogil=True)
def copy_image(file: np.ndarray, start: np.uint64, out: np.ndarray) -> None:
    """The bytes of one image, from `file[start]` on, to (bytes,) uint8."""
    for k in range(np.uint64(len(out))):
        out[k] = file[start + k]


# Twice over: one function compiled both ways would share a single entry of numba's cache.


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


def read_raw(file: np.ndarray, start: np.ndarray, out: np.ndarray, threads: int) -> None:
    """Raw images, from (B,) int64 bytes of `file` on, to (B, H, W, 3) uint8; on up to `threads` threads."""
    byte, images = start.astype(np.uint64), out.reshape(len(out), math.prod(out.shape[1:]))
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    if threads < 2 or out.nbytes < PARALLEL:
        read_raw_serial(file, byte, images)
        return
    before = numba.get_num_threads()
    with PARALLEL_LOCK:
        numba.set_num_threads(threads)
        try:
            read_raw_parallel(file, byte, images)
        finally:
            numba.set_num_threads(before)
