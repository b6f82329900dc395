"""What every loader hands out, whatever holds the pixels."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fastdrpl.loaders.order import Order

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """One step's images, not augmented and without labels; B may be 0.

    A staging buffer is filled again later: the pixels hold until the next batch is asked for. Clone what is kept.
    """

    pixels: (
        "Tensor"  # uint8 (M, H, W, 3) on the device: the whole set (or a strided view), or a staging buffer
    )
    rows: "Tensor"  # (B,) int64 on the device, opaque: pixels[rows] are the B images. Read, never write
    # (B,) int64 on the device, sample index: the key into every per-sample table. It hides tuple.index.
    index: "Tensor"  # type: ignore[assignment]


class Loader(Protocol):
    """A source of batches. All of them give the same `index` and `pixels[rows]` for the same order."""

    def epoch(self, order: Order, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an order from a step on. Several epochs may be under way at once."""
        ...

    def close(self) -> None:
        """Give back processes and memory; the loader is of no use afterwards."""
        ...
