"""Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011).

Every draw is a function of what it is for: key = seed (low, high 32 bits), counter = (sample or step, epoch,
stage, purpose << 16 | view). So no draw depends on how many workers or ranks run, or on where a run was
interrupted, and a checkpoint stores a position instead of generator state.

This is the reference. It uses nothing but `* + >> << & ^` on int64, so the same lines run on Python integers,
numpy arrays and torch tensors of any device. `fastdrpl.kernels.cpu.philox` has the same bits, faster.
A call costs ten rounds of two 32 x 32 -> 64 bit products and gives 16 bytes.
"""

from typing import Any, NamedTuple

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF
CHUNK = 8192  # samples whose intermediate arrays stay in the processor's cache

Array = Any  # a Python integer, a numpy int64 array or a torch int64 tensor: what goes in comes out


class Stream(NamedTuple):
    """Everything that keys a draw but the sample (or step): see the head of this file."""

    seed: int
    epoch: int = 0
    stage: int = 0
    purpose_view: int = 0

    def check(self) -> "Stream":
        """Return the stream itself; ValueError if a field does not fit its 32 bits (the seed: 64)."""
        for name, value in self._asdict().items():
            bits = 64 if name == "seed" else 32
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{name} of a random stream: got {value}, want 0 <= {name} < 2**{bits}")
        return self

    @property
    def key(self) -> tuple[int, int]:
        """The seed as two 32-bit words, low first."""
        return self.seed & MASK, self.seed >> 32


def philox(
    counter: tuple[Array, Array, Array, Array], key: tuple[int, int]
) -> tuple[Array, Array, Array, Array]:
    """Philox 4x32-10: four 32-bit words per counter, as int64 in [0, 2**32).

    The counter's words (each in [0, 2**32)) broadcast against each other; the key is two integers.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: Array) -> tuple[Array, Array]:
    """High and low 32 bits of a product of two 32-bit words; by 16-bit halves, as int64 would overflow."""
    if getattr(word, "dtype", None) == np.uint64:  # holds the product: a third of the work
        product = word * np.uint64(constant)
        return product >> 32, product & MASK
    lower = constant * (word & 0xFFFF)  # < 2**48
    upper = constant * (word >> 16) + (lower >> 16)  # < 2**49
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)


def words(stream: Stream, index: Array) -> tuple[Array, Array, Array, Array]:
    """Four independent 32-bit words for each sample (or step).

    `index`: int64 (n,) numpy array or torch tensor, values in [0, 2**32), or a Python integer. Returns four
    of its kind, int64 in [0, 2**32). Raises TypeError for another dtype, ValueError for a bad stream.
    """
    if not isinstance(index, int) and str(index.dtype) not in ("int64", "torch.int64"):
        raise TypeError(f"index of a random draw: got dtype {index.dtype}, want int64")
    stream.check()
    return philox((index, stream.epoch, stream.stage, stream.purpose_view), stream.key)


def uniform(word: Array) -> Array:
    """A word as a uniform number in [0, 1): its upper 24 bits, so that float32 holds it exactly."""
    return (word >> 8) * 2.0**-24


def integers(word: Array, n: int) -> Array:
    """A word as an integer in [0, n), n < 2**31, by multiplication (bias below n / 2**32)."""
    if not 1 <= n < 1 << 31:
        raise ValueError(f"random integers below n: got n = {n}, want 1 <= n < 2**31")
    return (word * n) >> 32


def shuffle_keys(word0: Array, word1: Array) -> Array:
    """Two words as one 63-bit sort key (int64, never negative)."""
    return (word0 << 31) | (word1 >> 1)


def permutation(stream: Stream, index: int | np.ndarray) -> np.ndarray:
    """A random order: positions (n,) int64, the stable argsort of each sample's 63-bit key.

    `index`: the (n,) int64 sample index that key the draw, or n itself for 0..n-1. The key belongs to the
    sample, not to its position: `index[permutation(stream, index)]` is the same whatever order `index` is in.
    """
    index = np.arange(index, dtype=np.int64) if isinstance(index, int) else index
    keys = np.empty(len(index), np.uint64)
    for start in range(0, len(index), CHUNK):
        counter = (
            index[start : start + CHUNK].astype(np.uint64),
            stream.epoch,
            stream.stage,
            stream.purpose_view,
        )
        w0, w1, _, _ = philox(counter, stream.check().key)
        keys[start : start + CHUNK] = shuffle_keys(w0, w1)
    return np.argsort(keys, kind="stable")


def beta_symmetric(a: float, word: Array) -> Any:
    """Beta(a, a) by the inverse incomplete beta function of one uniform number, in float64 on the host.

    `word`: an integer or numpy array of words; a = 1 is the uniform itself. Raises ValueError unless a > 0.
    """
    if not 0 < a < float("inf"):
        raise ValueError(f"Beta(a, a): got a = {a}, want a finite a > 0")
    if a == 1:
        return uniform(word)
    from scipy.special import betaincinv  # costly to import, and rarely needed

    return betaincinv(a, a, uniform(word))
