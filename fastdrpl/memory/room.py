"""Whether there is room for a run, where its rings go, and what would fit if there is none."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdrpl.console import warn
from fastdrpl.errors import UserError
from fastdrpl.loaders.resident import free_memory
from fastdrpl.machine import Machine
from fastdrpl.memory.estimate import Estimate, RunSize, estimate
from fastdrpl.rings import PLACES

SMALLEST_BATCH = 8


@dataclass(frozen=True)
class Room:
    """Bytes that are free for one more of this run's processes, each."""

    host: int
    device: int  # 0 without a GPU
    disk: int

    @classmethod
    def here(cls, machine: Machine, folder: Path) -> "Room":
        """As of now. Processes of one machine share its main memory and its disk."""
        sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cuda = machine.device.type == "cuda"
        while not folder.exists():
            folder = folder.parent
        return cls(
            free_memory() // sharers,
            torch.cuda.mem_get_info(machine.device)[0] if cuda else 0,
            shutil.disk_usage(folder).free // sharers,
        )

    def lacking(self, size: RunSize, found: Estimate) -> list[str]:
        """What there is not enough of, in words."""
        lacks = []
        if found.device_bytes > self.device and size.cuda:
            lacks.append(f"the device {amount(found.device_bytes)} of {amount(self.device)} free")
        if found.host_bytes - size.process > self.host:
            wanted = found.host_bytes - size.process
            lacks.append(f"main memory {amount(wanted)} of {amount(self.host)} free")
        if found.file > self.disk:
            lacks.append(f"the disk {amount(found.file)} of {amount(self.disk)} free")
        return lacks


@dataclass(frozen=True)
class Plan:
    """Where the rings go, and what the run is thought to take."""

    ring: str
    size: RunSize
    estimate: Estimate

    def describe(self) -> dict[str, Any]:
        """For the manifest of the run: bytes of one rank."""
        found = self.estimate
        return {"ring": self.ring, "host": dict(found.host), "device": dict(found.device), "file": found.file}


def plan_memory(size: RunSize, asked: str, before: str | None, machine: Machine, room: Room) -> Plan:
    """The first place for the rings with which the run fits, or the one that is `asked` for, or that it had `before`.

    Every rank must call this at the same point: all take the same. Raises nothing where nothing fits: see `refuse`.
    """
    places = [asked] if asked != "auto" else [before] if before else list(_places(size))
    fitting = (
        number
        for number, place in enumerate(places)
        if not room.lacking(size, estimate(dataclasses.replace(size, ring=place)))
    )
    # The last, where none fits: it takes the least memory.
    place = places[machine.highest(next(fitting, len(places) - 1))]
    size = dataclasses.replace(size, ring=place)
    return Plan(place, size, estimate(size))


def _places(size: RunSize) -> Iterator[str]:
    """What auto tries; without a GPU main memory is the device's."""
    has_rings = any(stage.rings for stage in size.stages)
    for place in PLACES if has_rings else PLACES[:1]:
        if place != "host" or size.cuda:
            yield place


def tell(plan: Plan, room: Room) -> str:
    """A line on what the run is thought to take, with the largest parts."""
    found, parts = plan.estimate, []
    if plan.size.cuda:
        parts.append(
            f"device {amount(found.device_bytes)} of {amount(room.device)} ({_largest(found.device)})"
        )
    there = room.host + plan.size.process
    parts.append(f"host {amount(found.host_bytes)} of {amount(there)} ({_largest(found.host)})")
    if found.file >= 2**20:
        parts.append(f"a mapped file of {amount(found.file)}")
    each = " for each rank" if plan.size.ranks > 1 else ""
    ring = f"; ring: {plan.ring}" if any(stage.rings for stage in plan.size.stages) else ""
    return f"memory, about{each}: {', '.join(parts)}{ring}"


def refuse(plan: Plan, room: Room, machine: Machine, policy: str, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a run that does not fit on some rank, with what would; or warn, where that is the policy.

    `settings`: the configuration by dotted names.
    """
    lacks = room.lacking(plan.size, plan.estimate)
    if not machine.highest(len(lacks)):
        return
    what = "; ".join(lacks) if lacks else "on another rank there is less memory than here"
    if policy == "warn":
        if machine.main:
            warn(f"the run may not fit: {what}")
        return
    raise UserError(
        f"the run does not fit: it takes about {what}",
        where=tell(plan, room),
        fix=f"{remedy(plan.size, settings, room) or 'nothing here makes it fit: take a larger machine'}; "
        "or try it all the same with --engine.memory warn",
    )


def remedy(size: RunSize, settings: Mapping[str, Any], room: Room) -> str | None:
    """The flags with which it would fit: one alone if there is one, else the fewest of those that help."""
    steps = list(_smaller(size, settings))
    for words, change in steps:
        if _fits(change(size), room):
            return words
    said: dict[str, str] = {}  # by flag: the last value counts
    for words, change in steps:
        smaller = change(size)
        less, now = estimate(smaller), estimate(size)
        if less.bytes < now.bytes or less.file > now.file:
            size = smaller
            flag, _, value = words.partition(" ")
            said[flag] = value
            if _fits(size, room):
                return " ".join(f"{flag} {value}" for flag, value in said.items())
    return None


def _fits(size: RunSize, room: Room) -> bool:
    return not room.lacking(size, estimate(size))


def _smaller(size: RunSize, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Flags, each with the change of size it makes, those that cost least first."""
    has_rings = any(stage.rings for stage in size.stages)
    for place in PLACES[PLACES.index(size.ring) + 1 :] if has_rings else ():
        if place != "host" or size.cuda:
            yield f"--engine.ring {place}", lambda s, place=place: dataclasses.replace(s, ring=place)
    for batch in _halves(size.eval_batch):
        yield (
            f"--engine.eval_batch {batch}",
            lambda s, batch=batch: dataclasses.replace(s, eval_batch=batch),
        )
    if size.pixels:
        yield "--engine.loader worker", lambda s: dataclasses.replace(s, pixels=0, decoded=0)
    ring = f"{settings['method']}.ring"
    if has_rings and settings.get(ring) == "fp32":
        yield f"--{ring} fp16", lambda s: _stages(s, lambda stage: {"rings": stage.rings / 2})
    for batch in _halves(int(settings["batch_size"])):
        yield (
            f"--batch_size {batch}",
            lambda s, batch=batch: _stages(s, lambda stage: {"batch_size": min(batch, stage.batch_size)}),
        )


def _halves(batch: int) -> Iterator[int]:
    while batch // 2 >= SMALLEST_BATCH:
        batch //= 2
        yield batch


def _stages(size: RunSize, change: Any) -> RunSize:
    stages = tuple(dataclasses.replace(stage, **change(stage)) for stage in size.stages)
    return dataclasses.replace(size, stages=stages)


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _largest(parts: Mapping[str, int]) -> str:
    """The three largest parts."""
    ranked = sorted(parts.items(), key=lambda part: -part[1])[:3]
    return ", ".join(f"{name} {amount(size)}" for name, size in ranked if size >= 2**20)
