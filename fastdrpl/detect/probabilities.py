"""What the final network of a run says of the images of its data set, without augmentation."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastdrpl.detect.stage_files import AGAIN
from fastdrpl.errors import DataError
from fastdrpl.folder import RunFolder
from fastdrpl.kernels.augment import centre
from fastdrpl.labels import Labels
from fastdrpl.loaders.batch import Loader
from fastdrpl.loaders.dataset import Dataset, Split
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.progress import Progress
from fastdrpl.opening import OpenRun, open_run

BATCH = 500


@torch.no_grad()
def class_probabilities(run: Path, labels: Labels, split: str = "train") -> npt.NDArray[np.float32]:
    """Softmax of a finished run's network for each sample of a split: (N, C), on a GPU if there is one.

    Raises UserError if the run is not finished or its data are not where they were, DataError if they are others.
    """
    folder = RunFolder(run)
    opened = open_run(run, data=folder.prepared if folder.prepared.is_dir() else None)
    description, images_of = opened.description, _data_of(opened).split(split)
    if tuple(description["class_names"]) != labels.class_names:
        raise DataError("the network and the labels of this run have other classes", where=str(run))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = opened.network.to(device)
    found = np.empty((len(labels), len(labels.class_names)), np.float32)
    order = Order(np.arange(len(labels)), BATCH, Pass(0, 0, 0, Purpose.export), shuffle=False)
    loader = _open_loader(images_of, labels)
    try:
        with Progress(f"probabilities of {run}", len(labels)) as bar:
            for batch in loader.epoch(order):
                images = batch.pixels[batch.rows].to(device)
                inputs = centre(images, torch.arange(len(images), device=device), opened.crop)
                found[batch.index.numpy()] = torch.softmax(network(inputs).float(), 1).cpu().numpy()
                bar.advance(len(images))
    finally:
        loader.close()
    return found


def _data_of(run: OpenRun) -> Dataset:
    """The data set that a run was trained on: inside its folder, wherever that lies now, or where it was then."""
    try:
        return run.data
    except (KeyError, TypeError) as error:
        raise DataError(
            f"a field is missing or of a wrong type ({error!r})", where=str(run.folder.manifest), fix=AGAIN
        ) from error


def _open_loader(split: Split, labels: Labels) -> Loader:
    """Raw pixels are memory-mapped; JPEG files are decoded by processes of their own, never all held at once."""
    if split.store == "raw":
        from fastdrpl.loaders.resident import ResidentLoader

        return ResidentLoader(split, labels.source_row)
    from fastdrpl.loaders.worker import WorkerLoader

    return WorkerLoader(split, labels.source_row)
