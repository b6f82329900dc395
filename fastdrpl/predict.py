"""`fastdrpl predict RUN PATH`: label new images with the final network of a finished run."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import torch
import tyro

from fastdrpl.console import say, warn
from fastdrpl.errors import DataError, UserError
from fastdrpl.files import explain_write_error
from fastdrpl.kernels.augment import centre
from fastdrpl.loaders.sources.formats import readable_extensions
from fastdrpl.loaders.sources.pictures import Unreadable, read_picture
from fastdrpl.loaders.sources.walking import WARNING, describe_left, list_images, why_no_image
from fastdrpl.opening import OpenRun, open_run
from fastdrpl.report.table import printable

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which images, by which run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    path: Annotated[Path, tyro.conf.Positional]
    """An image, or a folder of images (and of folders)."""
    out: Path | None = None
    """CSV file for the result; default: standard output."""


def predict(config: PredictConfig) -> int:
    """Write a line per image: file, class, probability. Returns how many images could not be read; each is named.

    Raises `UserError` if the run is not finished or there are no images, `DataError` for a damaged export or if
    no image can be read.
    """
    run = open_run(config.run)
    files = find_images(config.path)
    if config.out is None:
        return _write(sys.stdout, run, files)
    try:
        with open(config.out, "w", newline="", encoding="utf-8") as target:
            unreadable = _write(target, run, files)
    except OSError as error:  # of the output: an image that cannot be read is `Unreadable`
        raise explain_write_error(error, config.out.absolute()) from error
    say(f"{len(files) - unreadable} images labelled, {unreadable} unreadable: {config.out}")
    return unreadable


def find_images(path: Path) -> list[Path]:
    """An image, or all images below a folder, found as `prepare` finds them. Raises `UserError` if there are none."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError("there is no such file or folder", where=str(path))
    found = list_images(str(path))
    if not found.paths:
        why, _ = why_no_image(str(path), found)
        raise UserError(
            f"no images found{why}",
            where=str(path),
            fix=f"images end in {', '.join(sorted(readable_extensions()))}",
        )
    for line in describe_left(found.left, len(found.paths), str(path)):
        (warn if line.startswith(WARNING) else say)(line.removeprefix(WARNING))
    return [Path(file) for file in found.paths]


@torch.no_grad()
def _write(target: IO[str], run: OpenRun, files: list[Path]) -> int:
    writer, unreadable = csv.writer(target), 0
    writer.writerow(["file", "class", "probability"])
    description, names = run.description, run.description["class_names"]
    for start in range(0, len(files), _BATCH):
        images, readable = [], []
        for file in files[start : start + _BATCH]:
            try:
                resample = description.get("resample", "bilinear")
                images.append(read_picture(str(file), description["stored_size"], resample))
                readable.append(file)
            except Unreadable as error:
                warn(f"{printable(str(file))}: {error}")
                unreadable += 1
        if not images:
            continue
        inputs = centre(torch.from_numpy(np.stack(images)), torch.arange(len(images)), run.crop)
        confidence, best = torch.softmax(run.network(inputs).float(), 1).max(1)
        for file, k, p in zip(readable, best.tolist(), confidence.tolist(), strict=True):
            writer.writerow([printable(str(file)), names[k], f"{p:.4f}"])
    if unreadable == len(files):
        raise DataError(f"none of {len(files)} images can be read", fix="the reasons stand above")
    return unreadable
