"""The label store: everything a run knows of each sample, on the device, as named columns keyed by sample index."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
SYNC_BYTES = 64 << 20  # of a column that ranks exchange at a time: bounds the copies that this takes


class LabelStore:
    """Named columns of N rows, and shared tensors of any shape. Ranks hold the same; each writes only its samples.

    `total` sums a tensor over ranks (None with one rank). Between two `sync` calls a rank sees its own
    writes only, and each sample is written by one rank at most. A column keeps its place in memory for as long as its
    shape and type stay: what a captured step reads does not move. `placed` counts the times that something did.

    Rings are columns of the last predictions, which no step touches: `rings` makes them (zeros of a shape and type)
    where there is room for them, which need not be on the device.
    """

    def __init__(
        self,
        samples: int,
        device: torch.device,
        total: Reduce | None = None,
        rings: Allocate | None = None,
    ):
        self.samples, self.device, self._total = samples, device, total
        self._new_ring = rings or (lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=device))
        self._rings: set[str] = set()
        self._columns: dict[str, Tensor] = {}
        self._shared: dict[str, Tensor] = {}
        self._written: dict[str, Tensor] = {}
        self.placed = 0

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name]

    def get(self, name: str) -> Tensor | None:
        """A column, or None."""
        return self._columns.get(name)

    def put(self, name: str, values: Tensor) -> None:
        """Add or replace a whole column, the same on every rank: (N, ...). The values are copied."""
        if len(values) != self.samples:
            raise ValueError(f"column {name!r} has {len(values)} rows, the store {self.samples}")
        self._place(self._columns, name, values)
        if name in self._written:
            self._written[name].zero_()

    def put_ring(self, name: str, length: int, classes: int, dtype: torch.dtype = torch.float32) -> None:
        """Add or clear the column (N, length, C) of the last `length` predictions, for `ring_update`."""
        shape, there = (self.samples, length, classes), self._columns.get(name)
        if there is not None and there.shape == shape and there.dtype == dtype:
            there.zero_()
            return
        self.drop(name)
        self._columns[name] = self._new_ring(shape, dtype)
        self.placed += 1
        self._rings.add(name)

    @property
    def rings(self) -> tuple[str, ...]:
        """The names of the rings there are."""
        return tuple(sorted(self._rings))

    def put_shared(self, name: str, values: Tensor) -> None:
        """Add or replace a tensor that is not per sample, such as a transition matrix; the same on every rank."""
        self._place(self._shared, name, values)

    def shared(self, name: str) -> Tensor:
        """A tensor that is not per sample."""
        return self._shared[name]

    def _place(self, where: dict[str, Tensor], name: str, values: Tensor) -> None:
        there = where.get(name)
        if there is not None and there.shape == values.shape and there.dtype == values.dtype:
            there.copy_(values)
        else:
            self.placed += 1
            where[name] = values.detach().to(self.device, copy=True).contiguous()

    def drop(self, *names: str) -> None:
        """Forget columns and shared tensors that the next stage does not use."""
        self.placed += 1
        for name in names:
            for where in (self._columns, self._shared, self._written):
                where.pop(name, None)
            self._rings.discard(name)

    def read(self, name: str, index: Tensor) -> Tensor:
        """Rows (B, ...) of a column."""
        return self._columns[name].index_select(0, index)

    def write(self, name: str, index: Tensor, values: Tensor, unless: Tensor | None = None) -> None:
        """Set rows (B,) of a column and have `sync` tell the other ranks, without host synchronisation.

        `unless` () is a number: where it is not 0, the rows stay as they are.
        """
        column = self._columns[name]
        values = values.to(column.dtype)
        if unless is not None:
            values = torch.where(unless > 0, column.index_select(0, index), values)
        column.index_copy_(0, index, values)
        if self._total is not None:
            if name not in self._written:
                self._written[name] = torch.zeros(self.samples, dtype=torch.int32, device=self.device)
            self._written[name].index_fill_(0, index, 1)

    def sync(self) -> None:
        """Give every rank what the others wrote; the same columns must have been written on each rank."""
        if self._total is None:
            return
        for name, written in sorted(self._written.items()):
            count = self._total(written)
            for rows in pieces(self._columns[name], SYNC_BYTES):
                column = self._columns[name][rows]
                shape = (-1,) + (1,) * (column.ndim - 1)
                own = torch.where(written[rows].view(shape) > 0, column, torch.zeros_like(column))
                # x + 0 is x: adding over ranks moves the bits of the one rank that wrote the row.
                everyones = self._total(own)
                column.copy_(torch.where(count[rows].view(shape) > 0, everyones, column))
            written.zero_()

    def state(self) -> dict[str, Tensor]:
        """All columns, for a checkpoint; call `sync` first."""
        return dict(self._columns)

    def shared_state(self) -> dict[str, Tensor]:
        """All shared tensors, for a checkpoint."""
        return dict(self._shared)

    def load(
        self,
        columns: dict[str, Tensor],
        shared: dict[str, Tensor] | None = None,
        rings: Iterable[str] = (),
    ) -> None:
        """Replace everything by that of a checkpoint; `rings` tells which of the columns are rings."""
        self.placed += 1
        for where in (self._columns, self._shared, self._written):
            where.clear()
        self._rings.clear()
        for name, values in columns.items():
            if name in rings:
                _, length, classes = values.shape
                self.put_ring(name, length, classes, values.dtype)
            self.put(name, values)
        for name, values in (shared or {}).items():
            self.put_shared(name, values)


def pieces(values: Tensor, size: int) -> Iterator[slice]:
    """Slices of the rows of (N, ...), each of about `size` bytes and at least one row."""
    step = max(1, size // max(1, math.prod(values.shape[1:]) * values.element_size()))
    for start in range(0, len(values), step):
        yield slice(start, min(start + step, len(values)))
