"""Class activation maps over the images (Fig. 4): a column for each image, two rows for each run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastdrpl.errors import DataError
from fastdrpl.figures.cam import PREDICTED, Cam, Chosen, cams_of, choose_test, choose_train
from fastdrpl.figures.command import CamFigure
from fastdrpl.figures.loss_files import names_of
from fastdrpl.figures.output import to_csv
from fastdrpl.figures.pictures import show_picture
from fastdrpl.figures.style import legible, render
from fastdrpl.opening import open_run

_ACROSS = 8  # images in a row
_NAME = 18  # characters of a class, of a run
_MAP = "inferno"
_ALPHA = 0.55


def make_cam_figure(command: CamFigure) -> dict[str, bytes]:
    """`cam.png`, `cam.svg` and `cam.csv`. Raises UserError or DataError for runs and images that do not fit."""
    paths = list({path.resolve(): path for path in command.runs}.values())
    runs = [open_run(path, data=command.data) for path in paths]
    first = runs[0]
    for run in runs[1:]:
        if run.data.fingerprint != first.data.fingerprint:
            raise DataError(
                "these runs were trained on different data, so they share no images",
                where=f"{first.folder.path}, {run.folder.path}",
                fix="draw a figure for each",
            )
    if command.split == "test":
        images = choose_test(first, command.index)
    else:
        images = choose_train(
            first, command.index, doubtful=command.most_doubtful, undetected=command.undetected
        )
    split = first.data.split(command.split)
    found = [cams_of(run, name, split, images) for run, name in zip(runs, names_of(paths), strict=True)]
    cams = [cams for cams, _ in found]
    return _draw(images, cams, [shown.numpy() for _, shown in found]) | {"cam.csv": _numbers(cams)}


def _draw(
    images: Sequence[Chosen], cams: Sequence[Sequence[Cam]], shown: Sequence[np.ndarray]
) -> dict[str, bytes]:
    across = min(_ACROSS, len(images))
    blocks, rows = -(-len(images) // across), 1 + 2 * len(cams)

    def paint(figure: Any) -> None:
        grid = figure.subplots(blocks * rows, across, squeeze=False)
        for place in grid.ravel():
            place.set_axis_off()
        for k, image in enumerate(images):
            block, column = divmod(k, across)
            top = grid[block * rows, column]
            _on(top, shown[0][k], _labels_of(image), "image" if column == 0 else "")
            for r, of_run in enumerate(cams):
                for half in (0, 1):
                    cam = of_run[2 * k + half]
                    place = grid[block * rows + 1 + 2 * r + half, column]
                    _on(
                        place,
                        shown[r][k],
                        _class_of(cam),
                        _row_name(of_run[0].run, half) if column == 0 else "",
                    )
                    _overlay(place, cam, shown[r].shape[1:3])
        _scale(figure, grid)

    files = render("cam", (1.45 * across + 0.5, 1.62 * blocks * rows + 0.6), paint)
    return files


def _on(place: Any, pixels: np.ndarray, title: str, row: str) -> None:
    place.set_axis_on()
    show_picture(place, pixels)
    place.set_title(title, fontsize=7.5, pad=3)
    if row:
        place.set_ylabel(row, fontsize=8)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """The luminance of an image (H, W, 3), as an image: colours are for the map."""
    return np.repeat(pixels @ np.array([[0.299], [0.587], [0.114]], pixels.dtype), 3, axis=2).clip(0, 1)


def _overlay(place: Any, cam: Cam, size: tuple[int, int]) -> None:
    """The map from its least to its largest value, brought to the size of the image; nothing where these are one."""
    if cam.values is None:
        return
    low, high = float(cam.values.min()), float(cam.values.max())
    if high <= low:  # of an image so small that its last map is one pixel
        return
    scaled = (cam.values - low) / (high - low)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(scaled)[None, None], size=size, mode="bilinear", align_corners=False
    )
    place.imshow(enlarged[0, 0].numpy(), cmap=_MAP, alpha=_ALPHA, vmin=0, vmax=1)


def _scale(figure: Any, grid: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _MAP), ax=grid, location="bottom", shrink=0.3, aspect=30, pad=0.01
    )
    bar.set_ticks([0, 1], labels=["least", "most of a map"])
    bar.ax.tick_params(labelsize=7.5)


def _labels_of(image: Chosen) -> str:
    lines = [f"{image.index}"]
    if image.given is not None:
        lines.append(f"given: {legible(image.given, _NAME)}")
    if image.truth is not None:
        lines.append(f"true: {legible(image.truth, _NAME)}")
    return "\n".join(lines)


def _class_of(cam: Cam) -> str:
    if cam.probability is None:
        return f"{legible(cam.class_name, _NAME)}: no such class"
    role = "" if cam.role == PREDICTED else f"{cam.role}: "
    return f"{role}{legible(cam.class_name, _NAME)}  {cam.probability:.2f}"


def _row_name(run: str, half: int) -> str:
    return f"{legible(run, _NAME)}\n{('label', 'prediction')[half]}"


def _numbers(cams: Sequence[Sequence[Cam]]) -> bytes:
    header = ("run", "index", "row", "file", "role", "class", "logit", "probability", "y", "x", "value")
    rows: list[tuple[Any, ...]] = []
    for cam in (cam for of_run in cams for cam in of_run):
        image = cam.image
        about = (cam.run, image.index, image.row, image.file, cam.role, cam.class_name)
        if cam.values is None:
            rows.append((*about, None, None, None, None, None))
            continue
        for y, line in enumerate(cam.values.tolist()):
            rows += [(*about, cam.logit, cam.probability, y, x, value) for x, value in enumerate(line)]
    return to_csv(header, rows)
