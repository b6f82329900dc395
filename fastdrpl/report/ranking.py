"""The order in which to look at labels: the most doubtful first, without ties."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def rank_labels(
    p_noisy: npt.NDArray[np.floating], losses: Sequence[npt.NDArray[np.floating]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rank (N,), 1 = most doubtful, a permutation of 1..N, and the same as a score (N,) in [0, 1], high = doubtful.

    By the probability of being wrong, then the loss after the last stage that has losses, then the index.
    """
    keys = [p_noisy, *losses[-1:]]
    order = np.lexsort([-np.asarray(key, np.float64) for key in reversed(keys)])
    rank = np.empty(len(p_noisy), np.int64)
    rank[order] = np.arange(1, len(p_noisy) + 1)
    return rank, (len(p_noisy) - rank + 0.5) / len(p_noisy)
