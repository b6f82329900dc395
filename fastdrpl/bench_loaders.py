"""`fastdrpl bench loaders`: how fast each back end feeds your own prepared set on this machine, and which to take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fastdrpl.config import AugmentConfig, EngineConfig
from fastdrpl.console import say
from fastdrpl.errors import UserError
from fastdrpl.eyes import Eyes
from fastdrpl.kernels.philox import permutation
from fastdrpl.labels import Labels
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.loading import LOADERS, open_loader, order_of
from fastdrpl.machine import Machine, build_machine
from fastdrpl.pixels import resolve_transform
from fastdrpl.turns import measure_in_turns
from fastdrpl.view import View

CLOSE_ENOUGH = 0.9  # of the fastest: then the resident loader is simpler


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure every back end on a prepared set."""

    data: Path
    """Prepared dataset."""
    batch_size: int = 128
    """Images in a batch."""
    images: int = 20_000
    """Images of an epoch, drawn from the training images (whole shards, where there are some); 0 = all."""
    size: int = 0
    """Side of the random crop; 0 = the stored size."""
    turns: int = 5
    """Epochs of each back end that count, one of each in turn."""
    workers: int = 2
    """Threads or processes of ffcv, dali and worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 6), ("images", 0), ("size", 0), ("turns", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}, wanted {least} or more")


@dataclass(frozen=True)
class Speed:
    """What came of one back end."""

    name: str
    flags: str  # that choose it for `fastdrpl train`
    seconds: tuple[float, ...] = ()  # of each epoch; empty where it cannot be used
    start: float = 0.0  # seconds until the first epoch was through: decoding, compiling, starting processes
    difference: int = 0  # largest, in levels of 0..255, from the first back end's first batch
    why_not: str = ""

    def images_per_second(self, images: int) -> float:
        """Of the median epoch."""
        return images / float(np.median(self.seconds))


def bench_loaders(config: BenchConfig, console: Console | None = None) -> list[Speed]:
    """Measure, print a table and a recommendation. Raises `UserError` where there is no prepared set."""
    console = console or Console(highlight=False)
    dataset = open_dataset(config.data)
    engine = EngineConfig(device=config.device, workers=config.workers)
    machine = build_machine(engine)
    split = dataset.split("train")
    rows = np.flatnonzero(split.valid)
    key = Pass(seed=1, stage=0, epoch=0, purpose=Purpose.limit)
    images = min(config.images or len(rows), len(rows))
    if split.shards:  # whole ones, which are read in a row
        whole, rows = split.shards, np.empty(0, np.int64)
        for shard in whole:
            rows = np.concatenate([rows, np.asarray(shard.rows, np.int64)])
            if len(rows) >= images:
                break
        images = len(rows)
    else:
        rows = rows[np.sort(permutation(key.stream, len(rows))[:images])]
    view = View(split, Labels(split.label[rows], split.label[rows], rows, dataset.class_names))
    transform = resolve_transform(AugmentConfig(size=config.size), dataset)

    found: list[Speed] = []
    walks: dict[str, Callable[[], None]] = {}
    opened: list[Eyes] = []
    first: torch.Tensor | None = None
    try:
        for name, choice, order in _candidates(bool(split.shards)):
            say(f"trying {name}")
            flags = f"--engine.loader {choice}" + (" --order shards" if order == "shards" else "")
            began = time.perf_counter()
            try:
                eyes = Eyes(
                    open_loader(choice, engine, view, machine), transform, images, order_of(order, view)
                )
            except UserError as error:
                found.append(Speed(name, flags, why_not=str(error)))
                continue
            opened.append(eyes)
            pixels = _first_batch(eyes, config.batch_size, machine)
            first = pixels if first is None else first
            walk = _walk(eyes, config.batch_size, machine)
            walk()
            difference = int((pixels.int() - first.int()).abs().max())
            found.append(Speed(name, flags, start=time.perf_counter() - began, difference=difference))
            walks[name] = walk
        seconds = measure_in_turns(walks, warmup=0, repeats=config.turns)
    finally:
        for eyes in opened:
            eyes.loader.close()
    speeds = [
        Speed(s.name, s.flags, tuple(seconds.get(s.name, ())), s.start, s.difference, s.why_not)
        for s in found
    ]
    _print(console, speeds, images, f"{split.width}x{split.height} {split.store}, {machine.device}")
    return speeds


def _candidates(has_shards: bool) -> list[tuple[str, str, str]]:
    """(name, loader, order) of everything to try."""
    plain = [(name, name, "index") for name in LOADERS]
    return [*plain, ("dali, shards", "dali", "shards")] if has_shards else plain


def _pass(epoch: int) -> Pass:
    return Pass(seed=1, stage=0, epoch=epoch, purpose=Purpose.train)


def _walk(eyes: Eyes, batch_size: int, machine: Machine) -> Callable[[], None]:
    """A function that takes one epoch from file to network input; another shuffle at each call."""
    epoch = 0

    def walk() -> None:
        nonlocal epoch
        epoch += 1
        pass_ = _pass(epoch)
        for batch in eyes.loader.epoch(eyes.order(np.arange(eyes.samples), batch_size, pass_, True, 0, 1)):
            eyes.transform.train(batch, pass_.stream)
        if machine.device.type == "cuda":
            torch.cuda.synchronize()

    return walk


def _first_batch(eyes: Eyes, batch_size: int, machine: Machine) -> torch.Tensor:
    """The pixels of the same few samples from every back end: (B, H, W, 3) uint8."""
    samples = np.arange(min(batch_size, eyes.samples))
    batches = eyes.loader.epoch(eyes.order(samples, batch_size, _pass(0), False, 0, 1))
    batch = next(iter(batches))
    pixels = batch.pixels[batch.rows].cpu().clone()
    return pixels[torch.argsort(batch.index.cpu())]


def recommend(speeds: list[Speed], images: int) -> Speed:
    """The fastest, or the resident loader where it is nearly as fast. Another order would be another run."""
    usable = [speed for speed in speeds if speed.seconds and "--order" not in speed.flags]
    fastest = max(usable, key=lambda speed: speed.images_per_second(images))
    for speed in usable:
        enough = speed.images_per_second(images) >= CLOSE_ENOUGH * fastest.images_per_second(images)
        if speed.name == "resident" and enough:
            return speed
    return fastest


def _print(console: Console, speeds: list[Speed], images: int, what: str) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("loader")
    for column in ("images/s", "from", "to", "start", "difference"):
        table.add_column(column, justify="right")
    for speed in speeds:
        if speed.why_not:
            table.add_row(speed.name, "-", "", "", "", "")
            continue
        rates = [images / seconds for seconds in sorted(speed.seconds, reverse=True)]
        table.add_row(
            speed.name,
            f"{speed.images_per_second(images):,.0f}",
            f"{rates[0]:,.0f}",
            f"{rates[-1]:,.0f}",
            f"{speed.start:.1f} s",
            str(speed.difference),
        )
    console.print(
        f"{images:,} images an epoch, {what}: decoded, cropped, flipped, normalised; files in the system's cache"
    )
    console.print(table)
    for speed in speeds:
        if speed.why_not:
            console.print(f"{speed.name}: {speed.why_not}", markup=False, soft_wrap=True)
    best = recommend(speeds, images)
    console.print(f"Fastest here: {best.name} ({best.flags})", markup=False)
