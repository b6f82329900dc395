"""Features of a frozen network after each of its stages, and a linear classifier on each."""

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import adaptive_avg_pool2d

from fastdrpl.export import Ensemble
from fastdrpl.figures.pictures import pixels_of
from fastdrpl.figures.probe_task import Part, Task
from fastdrpl.kernels.augment import centre
from fastdrpl.kernels.crop import Crop
from fastdrpl.loaders.progress import Progress
from fastdrpl.models.maps import stage_maps
from fastdrpl.opening import OpenRun

_BATCH = 128  # images in one pass
Features = npt.NDArray[np.float32]


class Settings(Protocol):
    """The part of the command that decides how a classifier is trained."""

    @property
    def pool(self) -> int: ...
    @property
    def strength(self) -> float: ...
    @property
    def iterations(self) -> int: ...


@dataclass(frozen=True)
class Probe:
    """The classifier after one stage of a run's network; accuracies are fractions."""

    run: str
    depth: str  # L1, L2, ...
    features: int
    train_images: int
    test_images: int
    train_accuracy: float
    accuracy: float
    converged: bool


def fit_probes(settings: Settings, run: OpenRun, name: str, task: Task) -> list[Probe]:
    """A probe for each stage, from the first; the same for the same arguments. Of several networks the first."""
    train = stage_features(run, task.train, task.size, settings.pool, f"{name}: training images")
    test = stage_features(run, task.test, task.size, settings.pool, f"{name}: test images")
    found = []
    for k, (x, y) in enumerate(zip(train, test, strict=True), start=1):
        fitted, converged = _fit(settings, x, task.train.label)
        found.append(
            Probe(
                run=name,
                depth=f"L{k}",
                features=x.shape[1],
                train_images=len(x),
                test_images=len(y),
                train_accuracy=float(fitted.score(x, task.train.label)),
                accuracy=float(fitted.score(y, task.test.label)),
                converged=converged,
            )
        )
    return found


@torch.no_grad()
def stage_features(run: OpenRun, part: Part, size: int, pool: int, words: str) -> list[Features]:
    """The map after each stage, averaged to `pool` x `pool` pixels: (n, width * pool^2) of each stage.

    Images are cropped to `size` in the centre and normalised as the run did. Batch after batch: beside the features
    only one batch is in memory.
    """
    network = run.network.networks[0] if isinstance(run.network, Ensemble) else run.network
    crop = Crop(size=size, mean=run.crop.mean, std=run.crop.std)
    found: list[Features] = []
    done = 0
    with Progress(words, len(part.rows)) as bar:
        for batch in pixels_of(part.split, part.rows, _BATCH):
            inputs = centre(torch.from_numpy(batch), torch.arange(len(batch)), crop)
            pooled = [adaptive_avg_pool2d(each, pool).flatten(1) for each in stage_maps(network, inputs)]
            found = found or [np.empty((len(part.rows), each.shape[1]), np.float32) for each in pooled]
            for whole, each in zip(found, pooled, strict=True):
                whole[done : done + len(batch)] = each.numpy()
            done += len(batch)
            bar.advance(len(batch))
    return found


def _fit(settings: Settings, features: Features, label: npt.NDArray[np.int64]) -> tuple[Any, bool]:
    """Standardisation and multinomial logistic regression, and whether the solver came to its end."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=settings.strength, max_iter=settings.iterations)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(features, label)
    return pipeline, not any(issubclass(each.category, ConvergenceWarning) for each in caught)
