"""The numbers of a run that its memory depends on, from what it begins with."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastdrpl.config import Config
from fastdrpl.loaders.resident import resident_bytes
from fastdrpl.machine import Machine
from fastdrpl.memory.columns import stage_sizes
from fastdrpl.memory.estimate import RunSize
from fastdrpl.memory.network import network_size
from fastdrpl.pixels import Transform
from fastdrpl.stages import Stage
from fastdrpl.view import View


def size_of(
    config: Config,
    plan: tuple[Stage, ...],
    views: Sequence[View],
    loaders: Mapping[str, str],
    look_batch: int,
    transform: Transform,
    machine: Machine,
) -> RunSize:
    """Of the run of a plan; the first of the views is the training set. Nothing of it is allocated."""
    classes, cuda = len(views[0].labels.class_names), machine.device.type == "cuda"
    pixels = decoded = 0
    for view in views:
        if loaders[view.split.name] == "resident":
            taken = resident_bytes(view.split, view.labels.source_row, machine.device)[0]
            pixels += taken
            decoded = max(decoded, taken if view.split.store != "raw" else 0)
    stages = stage_sizes(plan, classes, config.batch_size)
    if config.engine.forwards == "joined":  # the images that teach nothing wait for the backward pass too
        stages = tuple(dataclasses.replace(stage, images=2 * stage.images) for stage in stages)
    return RunSize(
        samples=len(views[0].labels),
        classes=classes,
        side=transform.size,
        network=network_size(config.model.name, classes, config.model.width, transform.size),
        stages=stages,
        eval_batch=look_batch,
        half=machine.precision != "fp32",
        cuda=cuda,
        ranks=machine.world,
        ring="device",
        pixels=pixels,
        decoded=decoded if cuda else 0,
        process=resident_set(),
    )


def resident_set() -> int:
    """Bytes that this process has in main memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
