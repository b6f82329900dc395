"""What the running epoch has measured, and the flag that stops a run whose numbers are no numbers."""

import torch
from torch import Tensor

from fastdrpl.errors import NonFiniteError
from fastdrpl.kernels.loss_head import Share
from fastdrpl.machine import Machine

SKIPPED_IN_A_ROW = 20  # fp16 steps without an update, after which the scale is not what is wrong


class Meter:
    """Sums of the running epoch, on the device: loss, agreement with targets, samples; fp16 steps skipped in a row.

    Everything a step touches stays where it is in memory, or `placed` counts up between steps.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.values = torch.zeros(4, dtype=torch.float64, device=device)
        self.bad = torch.zeros((), device=device)  # 1 from the first non-finite step on
        self._bad_index = torch.empty(0, dtype=torch.int64, device=device)
        self.placed = 0  # how often something moved in memory

    def reserve(self, batch: int) -> None:
        """Make room for the sample ids of a batch, before the steps of an epoch."""
        if len(self._bad_index) < batch:
            longer = torch.full((batch,), -1, dtype=torch.int64, device=self.device)
            longer[: len(self._bad_index)] = self._bad_index
            self._bad_index = longer
            self.placed += 1

    def note(self, loss: Tensor, agreed: Tensor, share: Share) -> None:
        """Add a step: its loss, weighted by the samples of the global batch, and (b,) bool."""
        self.values[0] += loss.detach().double() * (share.count / share.world)
        self.values[1] += agreed.sum()
        self.values[2] += len(agreed)

    def note_bad(self, bad: Tensor, index: Tensor) -> None:
        """Keep the samples (b,) of the first bad step."""
        first = bad & (self.bad == 0)
        kept = self._bad_index[: len(index)]
        kept.copy_(torch.where(first, index, kept))
        torch.maximum(self.bad, bad.to(self.bad.dtype), out=self.bad)

    def note_skipped(self, skipped: Tensor) -> None:
        """Count fp16 steps whose gradients overflowed, in a row; a row that is too long stays."""
        too_long = self.values[3] >= SKIPPED_IN_A_ROW
        self.values[3] = torch.where(skipped | too_long, self.values[3] + skipped, 0.0)

    def refuse_bad(self, machine: Machine) -> None:
        """Raise `NonFiniteError` with the sample ids if a step was bad on any rank; the weights are from before it."""
        if machine.highest(int(self.bad)):
            raise NonFiniteError(
                "the loss or a gradient is not a finite number; the update was not applied",
                where=f"batch with sample ids {self._bad_samples(machine)}",
                fix="look at these images, or start another --run with a lower --optimiser.lr",
            )
        skipped = machine.highest(int(self.values[3]))
        if skipped >= SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"{skipped} fp16 steps in a row had gradients that are not finite",
                fix="start another --run with a lower --optimiser.lr, or with --engine.precision bf16 or fp32",
            )

    def _bad_samples(self, machine: Machine) -> list[int]:
        """Sample ids of the first bad global batch, from all ranks."""
        padded = torch.full((machine.highest(len(self._bad_index)),), -1, dtype=torch.int64)
        padded[: len(self._bad_index)] = self._bad_index.cpu()
        return [i for i in machine.stack(padded.to(machine.device)).flatten().tolist() if i >= 0]

    def load(self, rows: Tensor, machine: Machine) -> None:
        """Take this rank's row; with another number of ranks than before, rank 0 takes the sums."""
        own = rows[machine.rank] if len(rows) == machine.world else rows.sum(0) * machine.main
        self.values.copy_(own)
        self.values[3] = rows[:, 3].max()  # ranks skip together: this is no sum

    def finish(self, machine: Machine) -> tuple[float, float]:
        """Mean loss and agreement of the epoch over all ranks, then start again at zero."""
        loss, agreed, samples, _ = machine.stack(self.values).sum(0).tolist()
        self.values[:3] = 0.0
        return loss / samples, agreed / samples
