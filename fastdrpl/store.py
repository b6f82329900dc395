"""The label store: everything a run knows of each sample, on the device, as named columns keyed by sample index."""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


class LabelStore:
    """Named columns of N rows. Ranks hold the same columns; each writes only the samples it was handed.

    `total` sums a tensor over ranks (None with one rank). Between two `sync` calls a rank sees its own
    writes only, and each sample is written by one rank at most.
    """

    def __init__(self, samples: int, device: torch.device, total: Reduce | None = None):
        self.samples, self.device, self._total = samples, device, total
        self._columns: dict[str, Tensor] = {}
        self._written: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name]

    def put(self, name: str, values: Tensor) -> None:
        """Add or replace a whole column, the same on every rank: (N, ...)."""
        if len(values) != self.samples:
            raise ValueError(f"column {name!r} has {len(values)} rows, the store {self.samples}")
        self._columns[name] = values.to(self.device)
        self._written.pop(name, None)

    def drop(self, *names: str) -> None:
        """Forget columns that the next stage does not use."""
        for name in names:
            self._columns.pop(name, None)
            self._written.pop(name, None)

    def read(self, name: str, index: Tensor) -> Tensor:
        """Rows (B, ...) of a column."""
        return self._columns[name].index_select(0, index)

    def write(self, name: str, index: Tensor, values: Tensor) -> None:
        """Set rows (B,) of a column, without host synchronisation."""
        column = self._columns[name]
        column.index_copy_(0, index, values.to(column.dtype))
        self.mark_written(name, index)

    def mark_written(self, name: str, index: Tensor) -> None:
        """Note rows (B,) that a kernel has set in the column itself, so that `sync` tells the other ranks."""
        if self._total is not None:
            if name not in self._written:
                self._written[name] = torch.zeros(self.samples, dtype=torch.int32, device=self.device)
            self._written[name].index_fill_(0, index, 1)

    def sync(self) -> None:
        """Give every rank what the others wrote; the same columns must have been written on each rank."""
        if self._total is None:
            return
        for name, written in sorted(self._written.items()):
            column = self._columns[name]
            shape = (-1,) + (1,) * (column.ndim - 1)
            own = torch.where(written.view(shape) > 0, column, torch.zeros_like(column))
            # x + 0 is x: adding over ranks moves the bits of the one rank that wrote the row.
            everyones, count = self._total(own), self._total(written)
            self._columns[name] = torch.where(count.view(shape) > 0, everyones, column)
        self._written.clear()

    def commit(self, refresh: Callable[["LabelStore"], None]) -> None:
        """End an epoch: `sync`, then let `refresh` derive the next epoch's targets."""
        self.sync()
        refresh(self)

    def state(self) -> dict[str, Tensor]:
        """All columns, for a checkpoint; call `sync` first."""
        return dict(self._columns)

    def load(self, columns: dict[str, Tensor]) -> None:
        """Replace all columns by those of a checkpoint."""
        self._columns.clear()
        self._written.clear()
        for name, values in columns.items():
            self.put(name, values)
