"""What the stages of a plan keep of each sample: found out by beginning each of them with a few samples."""

import contextlib
import io
from dataclasses import dataclass

import torch

from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.stages import Look, Stage
from fastdrpl.store import LabelStore

_SAMPLES = 61


@dataclass(frozen=True)
class StageSize:
    """Bytes that a stage keeps of each sample, and how much of its batch is in memory at once."""

    name: str
    columns: float  # but the rings
    rings: float
    drawn: float  # of an epoch's random numbers
    shared: int  # bytes, of what is not per sample
    networks: int
    batch_size: int  # over all ranks
    images: float  # with gradient, for each of the batch


def stage_sizes(plan: tuple[Stage, ...], classes: int, batch_size: int) -> tuple[StageSize, ...]:
    """Of each stage, in order. Raises whatever a method's own `begin` raises."""
    store = LabelStore(_SAMPLES, torch.device("cpu"))
    store.put("given", torch.arange(_SAMPLES) % classes)
    sizes = []
    for number, stage in enumerate(plan, 1):
        # What a stage has to say about the number of samples is not about these.
        with contextlib.redirect_stderr(io.StringIO()):
            stage.objective.begin(store, classes, Pass(0, number, 0, Purpose.train))
        for look in stage.looks:
            store.put(look.into, _seen(look, classes, stage.networks))
        if stage.detector is not None and stage.decides:
            store.put("labelled", torch.arange(_SAMPLES) % 2 == 0)
            store.put("posterior", torch.zeros(_SAMPLES, dtype=torch.float64))
        sizes.append(_measure(stage, store, classes, batch_size))
        store.drop(*(look.into for look in stage.looks if not look.keep))
        stage.objective.end(store)
    return tuple(sizes)


def _seen(look: Look, classes: int, networks: int) -> torch.Tensor:
    shape = (_SAMPLES, classes) if look.read == "probability" else (_SAMPLES,)
    return torch.full((*shape, networks) if look.of == "each" else shape, 0.5)


def _measure(stage: Stage, store: LabelStore, classes: int, batch_size: int) -> StageSize:
    size = {name: values.nbytes for name, values in store.state().items()}
    rings = sum(size[name] for name in store.rings)
    demand = stage.objective.demand(classes)
    return StageSize(
        name=stage.name,
        columns=(sum(size.values()) - rings) / _SAMPLES,
        rings=rings / _SAMPLES,
        drawn=demand.drawn,
        shared=sum(values.nbytes for values in store.shared_state().values()),
        networks=stage.networks,
        batch_size=stage.batch_size or batch_size,
        images=demand.images,
    )
