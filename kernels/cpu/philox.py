"""Philox 4x32-10 in numba: the bits of `fastdrpl.kernels.philox`, as a device function and over vectors."""

import numpy as np

from fastdrpl.kernels import philox as reference
from fastdrpl.kernels.cpu.jit import jit
from fastdrpl.kernels.philox import Stream

# Typed: numba would take a Python integer for a signed one, and signed and unsigned together for a float.
M0, M1 = np.uint64(reference.MULTIPLIERS[0]), np.uint64(reference.MULTIPLIERS[1])
W0, W1 = np.uint64(reference.KEY_STEPS[0]), np.uint64(reference.KEY_STEPS[1])
MASK = np.uint64(reference.MASK)
HALF = np.uint64(32)


@jit()
def philox_words(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """One counter to four words, each a uint64 below 2**32: a device function for other compiled loops.

    Its bits are pinned by known answers and never change, so a cached caller of it cannot become stale.
    """
    for _ in range(reference.ROUNDS):
        product0, product1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (
            (product1 >> HALF) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> HALF) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def stream_words(stream: Stream) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """A stream as `philox_words` takes it after the sample: (epoch, stage, purpose_view, key low, key high)."""
    low, high = stream.check().key
    return (
        np.uint64(stream.epoch),
        np.uint64(stream.stage),
        np.uint64(stream.purpose_view),
        np.uint64(low),
        np.uint64(high),
    )


def words(stream: Stream, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `fastdrpl.kernels.philox.words`, for a numpy int64 (n,) index."""
    out = np.empty((4, len(index)), np.int64)
    _fill_words(index, *stream_words(stream), out)
    return out[0], out[1], out[2], out[3]


@jit()
def _fill_words(
    index: np.ndarray,
    epoch: np.uint64,
    stage: np.uint64,
    purpose_view: np.uint64,
    low: np.uint64,
    high: np.uint64,
    out: np.ndarray,
) -> None:
    for i in range(len(index)):
        w0, w1, w2, w3 = philox_words(np.uint64(index[i]), epoch, stage, purpose_view, low, high)
        out[0, i], out[1, i], out[2, i], out[3, i] = w0, w1, w2, w3
