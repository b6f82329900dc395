"""Images that look the same: pairs whose marks agree in nearly every bit, then compared by their pixels.

Two marks that differ in at most k of 64 bits agree in at least one of k + 1 bands of them (pigeonhole): only rows that
share a band are compared, so that the work grows with N and the few rows of a band, and memory with N.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fastdrpl.loaders.marks import shrink_weights
from fastdrpl.loaders.spawning import cores

SIMILARITY = (
    0.6  # of edges; on CIFAR-10 nearly every pair above it is one picture, and below 0.4 nearly none is
)
SMALLEST = 16  # pixels: of smaller images, and of those enlarged from smaller ones, too many look alike
BITS_OF_FEW, BITS_OF_MANY, FEW = 7, 3, 20_000  # differing bits; images up to which the first is affordable
_WIDEST = 1024  # rows of one band that each row is compared with: more share it only among very many copies
_BLOCK, _KEPT = 256, 500  # pairs compared at a time; images whose edges are kept, of 24 KB each
_THUMB = 32  # pixels: what is smaller than a cell of such an image does not count
_ONES = [
    np.uint64(n) for n in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
]


class Close(NamedTuple):
    """Pairs of positions, ascending in each pair: (m,) int64 each, and how many bits differ.

    `most`: bits that a pair may differ in; where the search was `cut`, the most that differ in one of these pairs.
    """

    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    most: int
    cut: bool


def close_pairs(looks: np.ndarray, most: int, limit: int) -> Close:
    """All pairs of different looks (n,) uint64 that differ in at most `most` bits.

    Where there are more than `limit` such pairs the search is cut: the `limit` that differ in the fewest bits are
    returned.
    """
    found = [np.zeros((0, 3), np.int64)]
    held, bar, cut = 0, most, False
    for first, second in _sharing_a_band(looks, most + 1):
        bits = count_ones(looks[first] ^ looks[second])
        near = bits <= bar
        if near.any():
            found.append(_table(first[near], second[near], bits[near]))
            held += len(found[-1])
        if held > 4 * limit:
            pairs, more = _keep_closest(found, limit)
            found, held = [pairs], len(pairs)
            if more:  # from here on only a closer pair takes the place of one of these
                cut, bar = True, int(pairs[:, 2].max(initial=0)) - 1
    pairs, more = _keep_closest(found, limit)
    cut = cut or more
    first, second, bits = pairs.T
    return Close(first, second, bits, int(bits.max(initial=0)) if cut else most, cut)


def _table(first: np.ndarray, second: np.ndarray, bits: np.ndarray) -> np.ndarray:
    return np.stack([np.minimum(first, second), np.maximum(first, second), bits.astype(np.int64)], 1)


def _keep_closest(found: list[np.ndarray], limit: int) -> tuple[np.ndarray, bool]:
    """-> (at most `limit` different pairs of the fewest bits, whether there were more)."""
    pairs = np.unique(np.concatenate(found), axis=0)
    if len(pairs) <= limit:
        return pairs, False
    first, bits = pairs[:, 0], pairs[:, 2]
    turn = np.arange(len(pairs)) - np.searchsorted(
        first, first
    )  # a pair for each before another for one of them
    return pairs[np.lexsort((turn, bits))[:limit]], True


def _sharing_a_band(looks: np.ndarray, bands: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions whose looks agree in a band of bits; some come several times."""
    width = 64 // bands
    for band in range(bands):
        key = ((looks >> np.uint64(band * width)) & np.uint64((1 << width) - 1)).astype(np.uint16)
        order = np.argsort(key, kind="stable")
        key = key[order]
        here = np.arange(len(key))
        for ahead in range(1, _WIDEST + 1):
            here = here[: np.searchsorted(here, len(key) - ahead)]
            here = here[key[here] == key[here + ahead]]
            if not len(here):
                break
            yield order[here], order[here + ahead]


def count_ones(words: np.ndarray) -> np.ndarray:
    """How many bits of each word are set: (n,) uint64 -> (n,) uint64."""
    one, two, four, all_ = _ONES
    words = words - ((words >> np.uint64(1)) & one)
    words = (words & two) + ((words >> np.uint64(2)) & two)
    words = (words + (words >> np.uint64(4))) & four
    return (words * all_) >> np.uint64(56)


def similarities(
    pairs: np.ndarray, pixels: Callable[[int], np.ndarray], advance: Callable[[int], None]
) -> np.ndarray:
    """How alike the edges of two images are, for (m, 2) rows: -1..1, 1 for the same edges; (m,) float64.

    `pixels(row)`: (height, width, 3) uint8, is called by several threads; `advance(m)`: m more are compared. Rows that
    lie near each other in `pairs` are decoded once. Compared are differences of neighbours in small versions of both:
    brightness and the plain areas that all skies have in common do not count.
    """
    out = np.zeros(len(pairs))
    edges: dict[int, np.ndarray] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK]
            if len(edges) > _KEPT:
                edges.clear()
            new = [row for row in np.unique(block).tolist() if row not in edges]
            edges.update(zip(new, pool.map(lambda row: find_edges(pixels(row)), new), strict=True))
            out[start : start + _BLOCK] = [edges[first] @ edges[second] for first, second in block.tolist()]
            advance(len(block))
    return out


def find_edges(image: np.ndarray) -> np.ndarray:
    """Differences of neighbouring pixels of a small version, as one vector of length 1 (0 for a plain image)."""
    height, width = min(len(image), _THUMB), min(image.shape[1], _THUMB)
    small = image.transpose(2, 0, 1).astype(np.float32)
    small = shrink_weights(image.shape[0], height) @ small @ shrink_weights(image.shape[1], width).T
    down, across = small[:, 1:] - small[:, :-1], small[:, :, 1:] - small[:, :, :-1]
    edges = np.concatenate([down.ravel(), across.ravel()])
    return edges / max(float(np.sqrt(edges @ edges)), 1e-6)
