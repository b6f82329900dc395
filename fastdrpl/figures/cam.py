"""Where the networks of runs see a class in an image (Fig. 4): which images, which classes, and the maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastdrpl.errors import UserError
from fastdrpl.export import Ensemble
from fastdrpl.figures.pictures import pixels_of
from fastdrpl.kernels.augment import centre
from fastdrpl.loaders.dataset import Split
from fastdrpl.models.maps import class_maps
from fastdrpl.opening import OpenRun
from fastdrpl.report.table import read_table

TRUE, GIVEN, PREDICTED = "true", "given", "predicted"


@dataclass(frozen=True)
class Chosen:
    """An image of a split: the number it was asked for by, where it lies, and its labels by name, where known."""

    index: int
    row: int
    file: str | None
    given: str | None  # None for a test image
    truth: str | None

    def compared_with(self, predicted: str) -> tuple[str, str]:
        """Role and name of the class whose map stands over that of the predicted one.

        The right class, as in the paper; the given one where the right one is predicted or not known.
        """
        if self.given is None or (self.truth is not None and self.truth != predicted):
            return TRUE, str(self.truth)
        return GIVEN, self.given


@dataclass(frozen=True, eq=False)
class Cam:
    """One map (h, w): its mean plus the classifier's bias is the logit. None where the run has no such class."""

    run: str
    image: Chosen
    role: str
    class_name: str
    logit: float | None
    probability: float | None
    values: npt.NDArray[np.float32] | None


def choose_train(
    run: OpenRun, index: Sequence[int], *, doubtful: int = 0, undetected: int = 0
) -> list[Chosen]:
    """Samples of a run by number, or the most doubtful ones, or the wrong labels that it kept and predicts.

    Raises UserError for a number out of range, or where there is no truth to know a wrong label by.
    """
    labels, table = run.labels, read_table(run.folder.labels)
    rank = table["rank"].to_numpy()
    if doubtful:
        index = np.argsort(rank, kind="stable")[:doubtful].tolist()
    if undetected:
        noisy, known = labels.is_noisy
        if not known.any():
            raise UserError(
                "the right labels are not known, so no wrong one is known to be kept",
                where=str(run.folder.path),
                fix="give --most_doubtful or --images",
            )
        kept = noisy & table["labelled"].to_numpy() & (table["suggested"].to_numpy() == labels.given)
        index = sorted(np.flatnonzero(kept).tolist(), key=lambda k: -rank[k])[:undetected]
        if not index:
            raise UserError(
                "the run kept no wrong label that its network predicts",
                where=str(run.folder.path),
                fix="give --most_doubtful or --images",
            )
    _check_range(index, len(labels), "samples", run.folder.path)
    files, names = run.data.ids("train"), labels.class_names
    return [
        Chosen(
            k,
            row := int(labels.source_row[k]),
            None if files is None else files[row],
            names[labels.given[k]],
            names[labels.truth[k]] if labels.truth[k] >= 0 else None,
        )
        for k in index
    ]


def choose_test(run: OpenRun, index: Sequence[int]) -> list[Chosen]:
    """Rows of the test split. Raises UserError for a number out of range or a row without an image."""
    split, files = run.data.split("test"), run.data.ids("test")
    _check_range(index, len(split), "test images", split.path)
    for k in index:
        if not split.valid[k]:
            raise UserError(f"test row {k} has no readable image", where=str(split.path), fix="give another")
    names = run.data.class_names
    return [Chosen(k, k, None if files is None else files[k], None, names[split.label[k]]) for k in index]


def _check_range(index: Sequence[int], count: int, what: str, where: Path) -> None:
    outside = [k for k in index if not 0 <= k < count]
    if outside:
        raise UserError(
            f"there is no image {outside[0]}: there are {count:,} {what}",
            where=str(where),
            fix=f"give numbers from 0 to {count - 1}",
        )


@torch.no_grad()
def cams_of(run: OpenRun, name: str, split: Split, images: Sequence[Chosen]) -> tuple[list[Cam], Tensor]:
    """For each image the map of its label, then that of the predicted class; and what the network saw.

    The latter is (B, size, size, 3) in 0..1. Of several networks the mean map.
    """
    rows = np.array([image.row for image in images], np.int64)
    pixels = torch.from_numpy(np.concatenate(list(pixels_of(split, rows))))
    inputs = centre(pixels, torch.arange(len(pixels)), run.crop)
    members = list(run.network.networks) if isinstance(run.network, Ensemble) else [run.network]
    each = [class_maps(network, inputs) for network in members]
    maps, logits = (torch.stack(parts).mean(0) for parts in zip(*each, strict=True))
    probability = _prediction(run.network, inputs)
    names = run.description["class_names"]
    place = {class_name: k for k, class_name in enumerate(names)}
    cams = []
    for k, image in enumerate(images):
        best = int(probability[k].argmax())
        for role, class_name in (image.compared_with(names[best]), (PREDICTED, names[best])):
            c = place.get(class_name)
            found: tuple[Any, ...] = (None, None, None)
            if c is not None:
                found = (float(logits[k, c]), float(probability[k, c]), maps[k, c].numpy())
            cams.append(Cam(name, image, role, class_name, *found))
    shown = inputs.movedim(1, 3) * torch.tensor(run.crop.std) + torch.tensor(run.crop.mean)
    return cams, shown.clamp(0, 1)


def _prediction(network: nn.Module, inputs: Tensor) -> Tensor:
    return torch.softmax(network(inputs).float(), 1)
