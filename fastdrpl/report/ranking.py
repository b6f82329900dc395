"""The order in which to look at labels: the most doubtful first, without ties.

The mean loss to the given label, over the stages and the final network, orders better than what a detector says: its
probability is the same for all samples beyond the mixture's reach, and one network errs where another does not.
docs/results.md has the measurement.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def rank_labels(
    p_noisy: npt.NDArray[np.floating], losses: Sequence[npt.NDArray[np.floating]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rank (N,), 1 = most doubtful, a permutation of 1..N, and a score (N,) in [0, 1] that falls as the rank grows.

    `losses`: (N,) of each network that was asked, cross entropy to the given label. The score is 1 minus the geometric
    mean of what they give to that label; `p_noisy` where there are no losses. Equal means are ranked by `p_noisy`, then
    by the index.
    """
    posterior = np.asarray(p_noisy, np.float64)
    doubt = np.mean([np.asarray(loss, np.float64) for loss in losses], axis=0) if losses else posterior
    order = np.lexsort((-posterior, -doubt))
    rank = np.empty(len(p_noisy), np.int64)
    rank[order] = np.arange(1, len(p_noisy) + 1)
    return rank, -np.expm1(-doubt) if losses else posterior
