"""Which loader feeds a run, and why."""

import os
from collections.abc import Mapping, Sequence

from fastdrpl.config import EngineConfig
from fastdrpl.console import say
from fastdrpl.errors import UserError
from fastdrpl.eyes import OrderFactory
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.extras import require
from fastdrpl.loaders.order import Order
from fastdrpl.loaders.progress import Progress
from fastdrpl.machine import Machine
from fastdrpl.view import View

LOADERS = ("resident", "ffcv", "dali", "worker")
_LIBRARIES = {"ffcv": "ffcv", "dali": "nvidia.dali"}


def choose_loaders(
    engine: EngineConfig,
    views: Sequence[View],
    machine: Machine,
    order: str,
    before: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The loader of each view, by the name of its split: what was asked for, what the run began with (`before`), or
    the best here.

    All ranks take the same; `auto` says why. Every rank must call this at the same point.
    """
    chosen: dict[str, str] = {}
    taken = 0  # by views that were resident before
    for view in views:
        name = view.split.name
        if engine.loader != "auto":
            chosen[name] = engine.loader
        elif before and name in before:  # a JPEG is decoded a little differently by each library
            chosen[name] = before[name]
        else:
            choice, why, need = _best_loader(view, machine, order, taken)
            chosen[name] = LOADERS[machine.highest(LOADERS.index(choice))]
            taken += need if chosen[name] == "resident" else 0
            if machine.main:
                why = why if chosen[name] == choice else "do not fit on every rank"
                say(f"loader {chosen[name]}: the {name} images {why}")
    return chosen


def _best_loader(view: View, machine: Machine, order: str, taken: int) -> tuple[str, str, int]:
    """Resident if the images fit beside what is taken, else the fastest library that is installed; why; and bytes."""
    from fastdrpl.loaders.resident import resident_bytes

    split = view.split
    need, free = resident_bytes(split, view.labels.source_row, machine.device, _ranks_here())
    free = max(0, free - taken)
    if not need:
        return "resident", "are memory-mapped", 0
    figures = f"take {need / 2**30:.2f} GiB of {free / 2**30:.1f} free"
    if need <= free:
        return "resident", figures, need
    # From pixels FFCV is faster than DALI; the GPU's JPEG decoder and tar shards are DALI's.
    dali_first = order == "shards" or (split.store == "jpeg" and machine.device.type == "cuda")
    missing = []
    for choice in ("dali", "ffcv") if dali_first else ("ffcv", "dali"):
        try:
            require(_LIBRARIES[choice])
        except UserError as error:
            missing.append(error.what)
        else:
            return choice, "; ".join([figures, *missing]), need
    return "worker", "; ".join([figures, *missing]), need


def _ranks_here() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def order_of(name: str, view: View) -> OrderFactory:
    """How an epoch of a view is arranged: `index` (any order) or `shards` (shard after shard).

    Raises `UserError` for a data set without shards, or labels that show one row twice.
    """
    if name == "index":
        return Order
    from fastdrpl.loaders.shard_order import ShardWalk

    return ShardWalk(view.split, view.labels.source_row)


def open_loader(choice: str, engine: EngineConfig, view: View, machine: Machine) -> Loader:
    """The loader of this name over a view. Raises `UserError` with an install line for a library that is missing."""
    # Imported here: each brings a library or torch's worker processes; the resident one may decode a whole set.
    split, rows = view.split, view.labels.source_row
    if choice == "worker":
        from fastdrpl.loaders.worker import WorkerLoader

        return WorkerLoader(split, rows, machine.device, engine.workers)
    if choice == "ffcv":
        from fastdrpl.loaders.ffcv_backend import FFCVLoader

        cores = max(1, len(os.sched_getaffinity(0)) // _ranks_here())
        return FFCVLoader(split, rows, machine.device, workers=min(engine.workers, cores))
    if choice == "dali":
        from fastdrpl.loaders.dali_backend import DALILoader

        return DALILoader(split, rows, machine.device, workers=engine.workers)
    from fastdrpl.loaders.resident import ResidentLoader

    with Progress(f"decoding {split.name}", None, quiet=not machine.main or split.store == "raw") as bar:
        return ResidentLoader(
            split, rows, machine.device, progress=lambda done, total: bar.advance(done - bar.done)
        )
