"""`fastdrpl confusion`: which ImageNet class is taken for which, by four networks that others trained.

The non-uniform noises of ImageNet draw from it (arXiv 1912.08741, section IV-A): the mean over VGG-16, ResNet-50,
Inception-v3 and DenseNet-161 of their confusion on the validation images, each row scaled to sum to 1.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastdrpl.console import warn
from fastdrpl.errors import DataError, UserError
from fastdrpl.imagenet import CLASSES
from fastdrpl.loaders.arrays import open_npz, read_npy
from fastdrpl.loaders.progress import Progress
from fastdrpl.loaders.sources.imagenet_small import class_order
from fastdrpl.loaders.sources.pictures import DAMAGE, EXTENSIONS, FORMATS
from fastdrpl.names import nearest
from fastdrpl.transitions import Confusion, save_confusion

if TYPE_CHECKING:
    from torch import Tensor, nn

    Transform = Callable[[Any], Tensor]
    Readied = list[Tensor] | str  # an image as each preprocessing makes it, or why it cannot be read

# The paper's networks, and the top-1 accuracy that torchvision states for the weights that are used here.
PUBLISHED = {"vgg16": 0.71592, "resnet50": 0.76130, "inception_v3": 0.77294, "densenet161": 0.77138}
_FAR_OFF = 0.03  # from the stated accuracy: other weights, other preprocessing, or classes in another order
_KINDS, _MOST = (
    "biufU",
    1 << 20,
)  # of numbers in a table, as numpy names them; what is no count is refused later
_SHOWN = 20  # names of unreadable images that are printed


@dataclass(frozen=True, kw_only=True)
class ConfusionConfig:
    """Count how often ImageNet's classes are taken for each other. Give --images or --counts."""

    out: Path
    """The .npz file to write, for --noise.confusion."""
    images: Path | None = None
    """Folder with the validation images of ImageNet, a folder for each of its 1000 classes, named by WordNet id."""
    counts: Path | None = None
    """Counts that exist already: .npz with 1000 x 1000 whole numbers for each network, or .npy with one such table.
    Row = true class, column = predicted class, classes in the order of their sorted WordNet ids (torchvision's),
    or in that of an array `wnids` in the file."""
    networks: tuple[str, ...] = ()
    """Which networks; default: the paper's four, or all in the file of counts."""
    weights: Path | None = None
    """Folder with torchvision's weights; what is missing is downloaded. Default: torch's own cache."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = 0
    """Threads that read images; 0 = one per core."""


def make_confusion(config: ConfusionConfig) -> Confusion:
    """Count or read counts, average, write `config.out`, and print each network's accuracy.

    Nothing is kept of a counting that is interrupted: it starts anew. Raises UserError or DataError.
    """
    _check(config)
    if config.images is not None:
        counts = count_images(config, config.images)
    elif config.counts is not None:
        counts = read_counts(config.counts, config.networks)
    else:
        raise UserError("neither images nor counts are given", fix="give --images FOLDER or --counts FILE")
    confusion = average(counts)
    save_confusion(confusion, config.out)
    for name, accuracy, images in zip(confusion.networks, confusion.accuracy, confusion.images, strict=True):
        print(f"{name}: {100 * accuracy:.2f} % of {images:,} images right")
        if accuracy < PUBLISHED.get(name, 0) - _FAR_OFF:
            warn(
                f"{name} should get about {100 * PUBLISHED[name]:.1f} %: are these its published weights and "
                "preprocessing, and the classes in the right order?"
            )
    print(f"mean of {len(counts)} networks in {config.out}")
    return confusion


def average(counts: dict[str, np.ndarray]) -> Confusion:
    """The mean of the row-normalised tables: every network counts the same, and every class.

    `counts`: name of network -> (1000, 1000) int64, classes by sorted WordNet id. Raises DataError for a table
    whose row is empty.
    """
    shares = []
    for name, table in counts.items():
        sizes = table.sum(axis=1)
        if not sizes.all():
            empty = np.flatnonzero(sizes == 0)
            raise DataError(
                f"{len(empty)} of {CLASSES} classes have no image in the counts of {name}, the first is "
                f"{sorted(class_order())[empty[0]]}",
                fix="every class needs images: count the whole validation set",
            )
        shares.append(table / sizes[:, None])
    return Confusion(
        matrix=np.mean(shares, axis=0),
        class_names=tuple(sorted(class_order())),
        networks=tuple(counts),
        accuracy=tuple(float(np.trace(table) / table.sum()) for table in counts.values()),
        images=tuple(int(table.sum()) for table in counts.values()),
    )


def read_counts(path: Path, networks: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Tables of counts from .npz or .npy: name -> (1000, 1000) int64, classes by sorted WordNet id.

    Raises UserError for a missing file or network, DataError for tables that are no counts of ImageNet.
    """
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        raise UserError("counts come in an existing .npz or .npy file", where=str(path))
    try:
        if path.suffix == ".npy":
            names, wnids = [path.stem], None
            _refuse_missing(networks, names, path)
            tables = {path.stem: read_npy(path, kinds=_KINDS, most=_MOST)}
        else:
            with open_npz(path) as stored:
                names = sorted({*stored.names} - {"wnids"})
                wnids = stored.read("wnids", kinds="U", most=_MOST) if "wnids" in stored.names else None
                _refuse_missing(networks, names, path)
                tables = {name: stored.read(name, kinds=_KINDS, most=_MOST) for name in networks or names}
    except (ValueError, OSError) as error:
        raise DataError(f"not a readable file of counts: {error}", where=str(path)) from error
    if not tables:
        raise DataError("the file has no counts", where=str(path))
    order = _order_of(wnids, path)
    chosen = {name: _counts_of(name, table, path) for name, table in tables.items()}
    return {name: table[np.ix_(order, order)] for name, table in chosen.items()}


def _refuse_missing(networks: tuple[str, ...], there: list[str], path: Path) -> None:
    if missing := [name for name in networks if name not in there]:
        raise UserError(
            f"the file has no counts of {missing[0]!r}{nearest(missing[0], there)}", where=str(path)
        )


def _order_of(names: np.ndarray | None, path: Path) -> np.ndarray:
    """Where in the file the classes are, by sorted WordNet id, (1000,) int64."""
    if names is None:
        return np.arange(CLASSES)
    listed, wanted = [str(name) for name in names.ravel()], sorted(class_order())
    if sorted(listed) != wanted:
        strange = sorted(set(listed) - set(wanted))
        why = f"{strange[0]!r} is none of them" if strange else "some are missing or come twice"
        raise DataError(
            f"`wnids` must name the {CLASSES} classes of ImageNet, each once: {why}", where=str(path)
        )
    return np.argsort(np.array(listed), kind="stable")


def _counts_of(name: str, table: np.ndarray, path: Path) -> np.ndarray:
    """A table as int64, if it can be counts with a row for each true class."""
    where = f"{path}: {name}"
    if table.shape != (CLASSES, CLASSES):
        raise DataError(f"counts must be {CLASSES} x {CLASSES}, these are {table.shape}", where=where)
    if table.dtype.kind not in "iuf" or not np.isfinite(table).all() or (table != np.floor(table)).any():
        fix = "give counts: shares are made here, for each network by itself"
        raise DataError("counts must be whole numbers", where=where, fix=fix)
    if (table < 0).any():
        raise DataError(f"counts must not be negative, the least is {table.min()}", where=where)
    counts = table.astype(np.int64)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    if predicted.min() == predicted.max() and true.min() < true.max():
        raise DataError(
            f"all columns sum to {predicted[0]} and the rows do not: the columns are the true classes",
            where=where,
            fix="transpose it: row = true class, column = predicted class",
        )
    return counts


# --- counting ---


def count_images(config: ConfusionConfig, folder: Path) -> dict[str, np.ndarray]:
    """Classify the images below `folder` with every network: name -> (1000, 1000) int64 as in `read_counts`.

    An image that cannot be read is named and left out.
    """
    import torch

    from fastdrpl.models.pretrained import load_pretrained

    files = _list_images(folder)
    loaded = load_pretrained(config.networks or tuple(PUBLISHED), config.weights)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    networks = {name: network.to(device) for name, (network, _) in loaded.items()}
    # Networks that take the same pixels share them: `input_of` says which of the preprocessings is whose.
    by_text = {str(transform): transform for _, transform in loaded.values()}
    input_of = {name: list(by_text).index(str(transform)) for name, (_, transform) in loaded.items()}
    counts = {name: np.zeros((CLASSES, CLASSES), np.int64) for name in networks}
    unreadable = []
    with torch.inference_mode(), Progress(f"counting on {device.type}", len(files)) as bar:
        for batch, readied in _read_batches(files, list(by_text.values()), config.batch_size, config.workers):
            good = [
                (label, images)
                for (_, label), images in zip(batch, readied, strict=True)
                if not isinstance(images, str)
            ]
            unreadable += [
                f"{file}: {why}"
                for (file, _), why in zip(batch, readied, strict=True)
                if isinstance(why, str)
            ]
            if good:
                labels = np.array([label for label, _ in good])
                inputs = [
                    torch.stack(list(pixels)).to(device)
                    for pixels in zip(*(images for _, images in good), strict=True)
                ]
                for name, network in networks.items():
                    _count(network, inputs[input_of[name]], labels, counts[name])
            bar.advance(len(batch))
    if unreadable:
        warn(f"{len(unreadable)} of {len(files)} images cannot be read and are left out:")
        for line in unreadable[:_SHOWN]:
            warn(line)
    return counts


def _count(network: "nn.Module", pixels: "Tensor", labels: np.ndarray, counts: np.ndarray) -> None:
    """Add a batch to a network's table of counts."""
    predicted = network(pixels).argmax(1).cpu().numpy()
    np.add.at(counts, (labels, predicted), 1)


def _list_images(folder: Path) -> list[tuple[Path, int]]:
    """(file, position of its class among the sorted WordNet ids) of every image, class by class."""
    wanted = sorted(class_order())
    if not folder.is_dir():
        raise UserError("there is no such folder of images", where=str(folder))
    found = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    missing, strange = sorted(set(wanted) - found), sorted(found - set(wanted))
    if missing or strange:
        what = f"{len(missing)} are missing, {missing[0]} for one" if missing else f"{strange[0]!r} is none"
        raise UserError(
            f"the images must lie in the {CLASSES} class folders of ImageNet, named by WordNet id: {what}",
            where=str(folder),
            fix="sort the validation images into class folders (each row of the matrix needs its class)",
        )
    files = [
        (path, label)
        for label, name in enumerate(wanted)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in EXTENSIONS and (path.is_file() or path.is_symlink())
    ]
    empty = sorted({*range(CLASSES)} - {label for _, label in files})
    if empty:
        raise DataError(
            f"{len(empty)} of {CLASSES} class folders have no image, the first is {wanted[empty[0]]}",
            where=str(folder),
        )
    return files


def _read_batches(
    files: list[tuple[Path, int]], transforms: "list[Transform]", batch_size: int, workers: int
) -> "Iterator[tuple[list[tuple[Path, int]], list[Readied]]]":
    """Batches of files and what became of each, in order; threads read two batches ahead."""
    from PIL import Image

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    ahead: deque[Any] = deque()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as threads, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities of single files would flood the terminal
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            ahead.append((batch, [threads.submit(_read, file, formats, transforms) for file, _ in batch]))
            if len(ahead) > 2:
                ready, futures = ahead.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in ahead:
            yield ready, [future.result() for future in futures]


def _read(file: Path, formats: list[str], transforms: "list[Transform]") -> "Readied":
    """An image as each preprocessing makes it. As published: not turned upright by its notes, alpha dropped."""
    from PIL import Image

    try:
        with Image.open(file, formats=formats) as image:
            rgb = image.convert("RGB")
    except Image.DecompressionBombError:
        return "too many pixels"
    except DAMAGE as error:
        return f"damaged ({type(error).__name__})"
    return [transform(rgb) for transform in transforms]


def _check(config: ConfusionConfig) -> None:
    """Refuse what does not go together before hours are spent on it."""
    if config.images is not None and config.counts is not None:
        raise UserError("--images and --counts are given", fix="give one of them")
    if config.out.suffix != ".npz":
        raise UserError("the matrix is an .npz file", where=str(config.out), fix="give --out confusion.npz")
    if not config.out.absolute().parent.is_dir():
        raise UserError("there is no such folder", where=str(config.out.parent), fix="make it first")
    if config.batch_size < 1 or config.workers < 0:
        raise UserError(f"--batch_size {config.batch_size} --workers {config.workers}", fix="from 1, from 0")
    if len(set(config.networks)) < len(config.networks):
        raise UserError("a network is named twice", where="--networks")
    if config.counts is not None and config.weights is not None:
        raise UserError("--weights are for --images", where="--weights")
    if config.images is not None:
        for name in config.networks:
            if name not in PUBLISHED:
                fix = f"one of {', '.join(PUBLISHED)}"
                raise UserError(f"unknown network {name!r}{nearest(name, PUBLISHED)}", fix=fix)
        if config.device == "cuda":
            import torch

            if not torch.cuda.is_available():
                fix = "`fastdrpl doctor` says what is missing"
                raise UserError("--device cuda, but torch sees no GPU", fix=fix)
