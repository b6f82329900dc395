"""What `prepare` can be asked for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.problems import ProblemKind
from fastdrpl.loaders.sources.imagenet_photos import find_photos

Kind = Literal[
    "digits",
    "cifar10",
    "cifar100",
    "imagenet32",
    "imagenet64",
    "webvision",
    "folder",
    "table",
    "webdataset",
    "huggingface",
]
_OWN = ("folder", "table", "webdataset", "huggingface")  # your own images: no published test set, any classes
_PHOTOS = ("webvision", *_OWN)  # images of any size
LISTED = ("webvision", "folder", "webdataset", "huggingface")  # whose source is whatever lies in a folder

# Options that not every kind knows: field -> the kinds that do.
_KNOWN_BY: dict[str, tuple[str, ...]] = {
    "size": _PHOTOS,
    "test_fraction": _OWN,
    "classes": _OWN,
    "images": ("table",),
    "path_column": ("table",),
    "label_column": ("table",),
    "split_column": ("table",),
    "first": ("webvision",),
    "google_only": ("webvision",),
    "subset": ("imagenet32", "imagenet64"),
}
# What these decide (order, files, labels) is in the fingerprint of the source itself.
_IN_CONTENT = ("classes", "images", "path_column", "label_column", "split_column")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Make a prepared dataset out of what you downloaded."""

    kind: Kind
    """What the source is. digits needs no source: it comes with scikit-learn."""
    source: Path | None = None
    """CIFAR: the official archive, the unpacked folder, or the folder that holds one of them.
    imagenet32, imagenet64: the folder of the published batch files (pickled or npz), or of full-size photos.
    webvision: the folder that holds info/, google/ and flickr/.
    folder: train/<class>/* with test/<class>/* or val/<class>/* (or valid, dev, ...), or one folder of class folders.
    table: a .csv, .tsv, .parquet, .jsonl or .json file with the columns path, label and perhaps split, or a .txt of
    `path label` lines.
    webdataset: a folder of tar shards. huggingface: a folder written by `datasets`."""
    out: Path
    """The folder to make. It appears when it is complete; a repeated command checks it."""
    size: int = 256
    """Photos: height and width in pixels that every image is resized to."""
    store: Literal["raw", "jpeg"] = "raw"
    """raw pixels are the fastest to read; jpeg needs a fraction of the disk."""
    quality: int = 90
    """Quality of stored JPEG, 1 to 100. Above 90 the fast decoder of ffcv is off by more than 8 of 255 levels."""
    format: Literal["beton", "shards"] = "beton"
    """shards: tar shards with DALI index files as well, for training from storage that is read in a row."""
    test_fraction: float = 0.0
    """Own images without a test set: the fraction of each class that becomes one. Its labels may be wrong too."""
    classes: Path | None = None
    """Own images: a text file with one class name a line that gives the order of the classes; default: sorted."""
    images: Path | None = None
    """table: the folder that relative paths begin in; default: that of the table."""
    path_column: str | None = None
    """table: the column of paths; default: path, file_name, filename, image, ..."""
    label_column: str | None = None
    """table: the column of labels; default: label, class, category, ..., or columns of 0 and 1, one for each class."""
    split_column: str | None = None
    """table: the column that says train, test or val; default: split, if there is one."""
    first: int = 50
    """webvision: how many classes, from the first of info/synsets.txt on; 1000 = all."""
    google_only: bool = False
    """webvision: leave the images from Flickr out."""
    subset: bool = False
    """imagenet32, imagenet64: accept fewer images than the published set; said so in the notes."""
    workers: int = 0
    """Processes that decode images; 0 means one per core."""
    refuse: tuple[ProblemKind, ...] = ()
    """End with exit code 3, and publish nothing, where there are such images: duplicates (the same to the last bit),
    near (look the same), blank, tiny. All are listed in problems.csv in any case."""
    seed: int = 1
    """Which images go to the test set where the source has none."""


def check_config(config: PrepareConfig) -> None:
    """Refuse values outside their range, and options that this kind does not know."""
    ranges: tuple[tuple[str, float, bool, str], ...] = (
        ("size", config.size, 1 <= config.size <= 4096, "1 to 4096"),
        ("quality", config.quality, 1 <= config.quality <= 100, "1 to 100"),
        ("test-fraction", config.test_fraction, 0 <= config.test_fraction < 1, "0 or more, less than 1"),
        ("first", config.first, 2 <= config.first <= 1000, "2 to 1000"),
        ("workers", config.workers, 0 <= config.workers <= 1024, "0 to 1024"),
        ("seed", config.seed, 0 <= config.seed < 1 << 64, "0 to 2**64 - 1"),
    )
    for name, value, good, wanted in ranges:
        if not good:
            raise UserError(f"--{name} is {value}, wanted {wanted}")
    if config.kind not in get_args(Kind):
        raise UserError(f"unknown kind {config.kind!r}", fix=f"one of {', '.join(get_args(Kind))}")
    if config.kind == "digits" and config.source is not None:
        raise UserError("digits come with scikit-learn and take no --source", where=str(config.source))
    if config.kind != "digits" and config.source is None:
        raise UserError(f"{config.kind} needs --source", fix="give --source FOLDER")
    if config.source is not None and not config.source.exists():
        raise UserError("the source does not exist", where=str(config.source))
    if config.images is not None and config.kind == "table" and not config.images.is_dir():
        raise UserError(
            "--images is no folder", where=str(config.images), fix="give the folder that the paths begin in"
        )
    for name, kinds in _KNOWN_BY.items():
        if config.kind not in kinds and getattr(config, name) != getattr(PrepareConfig, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for kind {' or '.join(kinds)}, not for {config.kind}")
    if not Path(os.path.abspath(config.out)).name:
        raise UserError("--out needs a folder name", where=str(config.out))


def refuse_out_in_source(config: PrepareConfig) -> None:
    """Raises UserError where the output would lie among the images of a source that is a folder of them."""
    source = config.source
    if source is None or not source.is_dir():
        return
    lists_images = config.kind in LISTED or (
        config.kind in ("imagenet32", "imagenet64") and find_photos(source) is not None
    )
    if lists_images and Path(os.path.realpath(config.out)).is_relative_to(os.path.realpath(source)):
        raise UserError(
            "--out lies inside the source: it would become a part of it",
            where=printable(str(config.out)),
            fix="choose an --out beside the source",
        )


def relevant_options(config: PrepareConfig) -> dict[str, Any]:
    """The options that decide the content."""
    options: dict[str, Any] = {"kind": config.kind, "store": config.store}
    if config.store == "jpeg":
        options["quality"] = config.quality
    if config.format != "beton":
        options["format"] = config.format
    for name, kinds in _KNOWN_BY.items():
        if config.kind in kinds and name not in _IN_CONTENT:
            options[name] = getattr(config, name)
    if config.kind == "digits" or config.test_fraction:
        options["seed"] = config.seed
    return options


def origin_of(config: PrepareConfig) -> dict[str, str]:
    """Where the source lies, as an absolute path, and how it is read: for those who write into a copy of it."""
    origin = {
        name: str(value)
        for name in ("path_column", "label_column", "split_column")
        if (value := getattr(config, name)) is not None
    }
    paths = {"source": config.source, "images": config.images}
    return origin | {name: os.path.abspath(path) for name, path in paths.items() if path is not None}
