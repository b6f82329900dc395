"""What `prepare` can be asked for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastdrpl.loaders.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Make a prepared dataset out of what you downloaded."""

    kind: Literal["digits", "cifar10", "cifar100", "folder"]
    """What the source is. digits needs no source: it comes with scikit-learn."""
    source: Path | None = None
    """CIFAR: the official archive, the unpacked folder, or the folder that holds one of them.
    folder: train/<class>/* with test/<class>/* or val/<class>/*, or one folder of class folders."""
    out: Path
    """The folder to make. It appears when it is complete; a repeated command checks it."""
    size: int = 256
    """folder: height and width in pixels that every image is resized to."""
    store: Literal["raw", "jpeg"] = "raw"
    """raw pixels are the fastest to read; jpeg needs a fraction of the disk."""
    quality: int = 95
    """Quality of stored JPEG, 1 to 100."""
    test_fraction: float = 0.0
    """folder without a test set: the fraction of each class that becomes one. Its labels may be wrong too."""
    classes: Path | None = None
    """folder: a text file with one class name a line that gives the order of the classes; default: sorted."""
    workers: int = 0
    """folder: processes that decode images; 0 means one per core."""
    seed: int = 1
    """Which images go to the test set where the source has none."""


def check_config(config: PrepareConfig) -> None:
    """Refuse values outside their range, and options that this kind does not know."""
    ranges: tuple[tuple[str, float, bool, str], ...] = (
        ("size", config.size, 1 <= config.size <= 4096, "1 to 4096"),
        ("quality", config.quality, 1 <= config.quality <= 100, "1 to 100"),
        ("test-fraction", config.test_fraction, 0 <= config.test_fraction < 1, "0 or more, less than 1"),
        ("workers", config.workers, 0 <= config.workers <= 1024, "0 to 1024"),
        ("seed", config.seed, 0 <= config.seed < 1 << 64, "0 to 2**64 - 1"),
    )
    for name, value, good, wanted in ranges:
        if not good:
            raise UserError(f"--{name} is {value}, wanted {wanted}")
    if config.kind not in ("digits", "cifar10", "cifar100", "folder"):
        raise UserError(f"unknown kind {config.kind!r}", fix="one of digits, cifar10, cifar100, folder")
    if config.kind == "digits" and config.source is not None:
        raise UserError("digits come with scikit-learn and take no --source", where=str(config.source))
    if config.kind != "digits" and config.source is None:
        raise UserError(f"{config.kind} needs --source", fix="give --source FOLDER")
    if config.source is not None and not config.source.exists():
        raise UserError("the source does not exist", where=str(config.source))
    for name in ("size", "test_fraction", "classes"):
        if config.kind != "folder" and getattr(config, name) != getattr(PrepareConfig, name):
            raise UserError(f"--{name.replace('_', '-')} is for kind folder, not for {config.kind}")
    if not Path(os.path.abspath(config.out)).name:
        raise UserError("--out needs a folder name", where=str(config.out))


def relevant_options(config: PrepareConfig) -> dict[str, Any]:
    """The options that decide the content."""
    options: dict[str, Any] = {"kind": config.kind, "store": config.store}
    if config.store == "jpeg":
        options["quality"] = config.quality
    if config.kind == "folder":
        options |= {"size": config.size, "test_fraction": config.test_fraction}
    if config.kind == "digits" or config.test_fraction:
        options["seed"] = config.seed
    return options
