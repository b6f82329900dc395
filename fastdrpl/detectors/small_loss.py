"""Small loss: the samples of the lowest loss count as clean, as many as are said to be.

Networks learn what fits before what does not (arXiv 1912.08741, Fig. 1 and 3: the detectors C and M are the loss after
40 epochs, without and with mixup). How many samples to keep does not follow from the losses: it takes the noise rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Detection, Facts, Statistic, check_labels, on_host
from fastdrpl.errors import UserError

ROUNDING = 1e-9  # a share such as 1 - 0.9 is a little off the number that was meant


@dataclass(frozen=True)
class SmallLoss:
    """Labelled = the `share` of all samples with the lowest loss, rounded down; ties go to the smaller index.

    `share` = 1 - noise rate, in [0, 1]; None where that is not known, which a call refuses. `reads`: the losses'
    column, (N,).
    """

    reads: tuple[str, ...]
    share: float | None
    adjustable: tuple[str, ...] = ()

    def __call__(
        self, statistics: Sequence[Statistic], given: npt.NDArray[np.integer], num_classes: int
    ) -> Detection:
        """Losses (N,) -> the split. `p_noisy` is a rank, not a probability: the share of samples that come no later in
        the order of the losses.

        Raises UserError without a share; ValueError for nan, wrong shapes, or class ids or a share out of range.
        """
        if self.share is None:
            fields = " or ".join(f"--{name}" for name in self.adjustable)
            raise UserError(
                "small loss needs the noise rate: the losses do not say how many labels are wrong",
                fix=f"give {fields or 'the share of labels that are right'}, or use a detector that finds it itself",
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of clean samples is {self.share}; wanted a number from 0 to 1")
        losses, given = on_host(statistics[0]).astype(np.float64), np.asarray(given)
        if losses.shape != given.shape or given.ndim != 1:
            raise ValueError(
                f"losses and labels have shapes {losses.shape} and {given.shape}; wanted (N,) twice"
            )
        if np.isnan(losses).any():
            raise ValueError(f"{int(np.isnan(losses).sum())} of {losses.size} losses are nan; wanted numbers")
        check_labels(given, num_classes)
        kept = int(self.share * losses.size + ROUNDING)
        place = np.empty(losses.size, np.int64)
        place[np.argsort(losses, kind="stable")] = np.arange(1, losses.size + 1)
        evidence = Facts(
            {"share": self.share, "kept": kept, "largest_loss_kept": _largest(losses[place <= kept])}
        )
        return Detection(place / max(1, losses.size), place <= kept, losses, evidence, self.share, "loss")


def mean_loss(losses: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The mean over epochs of the losses of each sample: (N, epochs) -> (N,). Raises ValueError for another shape."""
    _check_epochs(losses)
    return losses.mean(axis=1, dtype=np.float64)


def loss_at(losses: npt.NDArray[np.floating], epoch: int) -> npt.NDArray[np.float64]:
    """The losses after one epoch, of which the first is 1: (N, epochs) -> (N,).

    Raises ValueError for another shape or an epoch that there is not.
    """
    _check_epochs(losses)
    if not 1 <= epoch <= losses.shape[1]:
        raise ValueError(f"epoch {epoch} of {losses.shape[1]}; the first is 1")
    return losses[:, epoch - 1].astype(np.float64)


def _check_epochs(losses: npt.NDArray[np.floating]) -> None:
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise ValueError(
            f"losses of epochs have shape {losses.shape}; wanted (N, epochs), at least one epoch"
        )


def _largest(losses: npt.NDArray[np.float64]) -> float | None:
    """As JSON has it: None where nothing is kept, or where the largest is infinite."""
    largest = float(losses.max(initial=-np.inf))
    return largest if np.isfinite(largest) else None
