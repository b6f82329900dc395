"""The posterior of a beta mixture inside a step: its numbers lie in the label store, the formula runs on the device.

`kernels.beta_mixture.BetaMixture.posterior` is the same for whole columns, outside of steps.
"""

from typing import Literal

import torch
from torch import Tensor

from fastdrpl.kernels.beta_mixture import (
    EDGE,
    LOOKUP_BINS,
    LOW_OFFSET,
    BetaMixture,
    lookup_table,
    monotone_log_odds,
    scale_of,
)
from fastdrpl.store import LabelStore

Compat = Literal["exact", "lookup"]


def keep_mixture(store: LabelStore, name: str, fit: BetaMixture, compat: Compat = "exact") -> None:
    """Put what `posterior_of` needs of a fit into the shared tensor `name`, float64.

    Low end and span of the losses, then five numbers of the log-odds, or the published table of 100 bins.
    """
    numbers = [fit.low + LOW_OFFSET, scale_of(fit.low, fit.high)]
    if compat == "exact":
        numbers += monotone_log_odds(fit.alpha, fit.beta, fit.weight)
    else:
        numbers += lookup_table(fit.alpha, fit.beta, fit.weight).tolist()
    store.put_shared(name, torch.tensor(numbers, dtype=torch.float64))


def posterior_of(numbers: Tensor, losses: Tensor, compat: Compat = "exact") -> Tensor:
    """Probability of the noisy component: kept numbers, (b,) losses -> (b,) float64 in [0, 1]; no host waits."""
    u = (losses.double() - numbers[0]) / numbers[1]
    if compat == "lookup":
        bins = (LOOKUP_BINS * u.clamp(EDGE, 1 - EDGE)).nan_to_num(0.0).long()
        return torch.where(u.isnan(), u, numbers[2:].index_select(0, bins))
    constant, log_u, log_rest, smallest, largest = numbers[2:].unbind()
    u = torch.minimum(torch.maximum(u, smallest), largest)
    return torch.sigmoid(constant + log_u * u.log() + log_rest * torch.log1p(-u))
