"""`fastdrpl predict RUN PATH`: label new images with the final network of a finished run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from fastdrpl.console import say, warn
from fastdrpl.errors import DataError, UserError
from fastdrpl.kernels.augment import centre
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.sources.formats import readable_extensions
from fastdrpl.loaders.sources.pictures import Unreadable, read_picture
from fastdrpl.loaders.sources.walking import WARNING, describe_left, list_images, why_no_image
from fastdrpl.opening import OpenRun, open_run
from fastdrpl.prediction_files import Prediction, open_predictions
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
    """File for the result, .csv or .parquet; default: CSV on standard output."""
    top: int = 1
    """How many classes to name of each image, the most probable first."""
    calibrated: Literal["yes", "no"] = "yes"
    """yes = probabilities with the temperature that was fitted when the run ended; no = as the network gives them."""


def predict(config: PredictConfig) -> int:
    """Write a line per image: file, class, probability. Returns how many images could not be read; each is named.

    Raises `UserError` if the run is not finished or there are no images, `DataError` for a damaged export or if
    no image can be read. Memory does not grow with the images, only with their names.
    """
    run = open_run(config.run)
    classes = len(run.description["class_names"])
    if not 1 <= config.top <= classes:
        raise UserError(f"--top {config.top}, but the run has {classes} classes")
    files = find_images(config.path)
    temperature = _temperature(run, config.calibrated == "yes")
    both_on_terminal = config.out is None and sys.stdout.isatty()  # lines and a bar would mix there
    unreadable = 0
    with (
        open_predictions(config.out, config.top) as target,
        Progress("labelled", len(files), quiet=both_on_terminal) as bar,
    ):
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            rows = _label(run, batch, config.top, temperature)
            target.write(rows)
            unreadable += len(batch) - len(rows)
            bar.advance(len(batch))
        if unreadable == len(files):
            raise DataError(f"none of {len(files)} images can be read", fix="the reasons stand above")
    if config.out is not None:
        say(f"{len(files) - unreadable} images labelled, {unreadable} unreadable: {config.out}")
    return unreadable


def find_images(path: Path) -> list[str]:
    """An image, or all images below a folder, found as `prepare` finds them. Raises `UserError` if there are none."""
    if path.is_file():
        return [str(path)]
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
    return found.paths


def _temperature(run: OpenRun, calibrated: bool) -> float:
    """What logits are divided by; says where it comes from."""
    known = run.calibration
    if not calibrated:
        say("probabilities as the network gives them, not calibrated")
    elif known is None:
        say("probabilities are not calibrated: the run is of a version that fitted no temperature")
    else:
        say(f"probabilities: {known.describe()}")
    return known.temperature if calibrated and known is not None else 1.0


@torch.no_grad()
def _label(run: OpenRun, files: Sequence[str], top: int, temperature: float) -> list[Prediction]:
    """Predictions for the files that can be read; the others are named."""
    images, readable = [], []
    for file in files:
        try:
            resample = run.description.get("resample", "bilinear")
            images.append(read_picture(file, run.description["stored_size"], resample))
            readable.append(printable(file))
        except Unreadable as error:
            warn(f"{printable(file)}: {error}")
    if not images:
        return []
    inputs = centre(torch.from_numpy(np.stack(images)), torch.arange(len(images)), run.crop)
    probability, best = torch.softmax(run.network(inputs).float() / temperature, 1).topk(top, dim=1)
    names = run.description["class_names"]
    return [
        Prediction(file, tuple(names[k] for k in ranked), tuple(sure))
        for file, ranked, sure in zip(readable, best.tolist(), probability.tolist(), strict=True)
    ]
