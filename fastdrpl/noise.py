"""Wrong labels on purpose: uniform, non-uniform, or by a transition matrix (arXiv 1912.08741, section IV).

Every kind is the same two steps: choose samples (`_choose`), then draw for each of them. In-distribution kinds
draw a new label from the row of its true class in a flip matrix (`flip_matrix`). Out-of-distribution kinds keep
the label and show an image of a class outside in its place (`_swap`). All comes from the true labels, in one shot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdrpl.fixing.origin import origin_of_file
from fastdrpl.kernels.philox import Stream, permutation, uniform, words
from fastdrpl.label_files import Rows, is_foreign, read_labels
from fastdrpl.labels import OUTSIDE, UNKNOWN, Labels, load_labels
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.noise_config import OUTSIDE_KINDS, NoiseConfig
from fastdrpl.transitions import (
    MAKE_CONFUSION,
    cifar10_flips,
    load_confusion,
    load_matrix,
    superclass_cycles,
    without_diagonal,
)

# Views of the pass that keys the draws: never renumber.
_CHOICE, _TARGET, _POOL, _REDRAW = range(4)


@dataclass(frozen=True, eq=False)
class Pool:
    """M images outside the classes of a view, which may be shown in it. Raises ValueError for what cannot be."""

    rows: np.ndarray  # (M,) int64, ascending: rows of the prepared split
    label: np.ndarray  # (M,) int64: position of each image's class in class_names
    class_names: tuple[str, ...]  # of classes outside

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.label) or (np.diff(self.rows) <= 0).any():
            raise ValueError("rows of a pool: want ascending rows, each once, and a label for each")
        if len(self.label) and not 0 <= self.label.min() <= self.label.max() < len(self.class_names):
            raise ValueError(f"labels of a pool: want 0..{len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self.rows)


def draw_noise(
    truth: np.ndarray,
    source_row: np.ndarray,
    class_names: tuple[str, ...],
    config: NoiseConfig,
    *,
    given: np.ndarray | None = None,
    superclass: Sequence[int] | None = None,
    pool: Pool | None = None,
    total: int | None = None,
    ids: Sequence[str] | None = None,
) -> Labels:
    """The labels of a view under `config`: a pure function of its arguments (and of the files they name).

    `truth` (N,) and `source_row` (N,) as in `Labels`. `given` (N,) are the labels as downloaded, used where
    no noise is drawn; default: the truth. `superclass` (C,) is the true coarse class of each class, for the
    nonuniform noise of CIFAR-100. `pool`: the images that out-of-distribution kinds may show, each at most once.
    `total` and `ids`: how many rows the prepared split has, and the file name of each, for label files of others.
    Raises UserError where the noise is not defined for these data or the pool is too small, DataError where a
    file does not fit them.
    """
    if config.file is not None:
        if is_foreign(config.file):
            rows = Rows(
                truth=truth,
                given=truth if given is None else given,
                source_row=source_row,
                total=len(truth) if total is None else total,
                class_names=class_names,
                ids=ids,
            )
            return read_labels(config.file, config.file_column, rows)
        if config.file_column is not None:
            raise UserError(
                "the file has one set of labels",
                where="noise.file_column",
                fix="leave --noise.file_column out",
            )
        return _labels_from_file(config.file, truth, source_row, class_names)
    if config.kind == "none":
        return Labels(truth if given is None else given, truth, source_row, class_names)
    unknown = int(np.count_nonzero(truth < 0))
    if unknown:
        raise UserError(
            f"{unknown} of {len(truth)} samples have no known true class: their labels cannot be made wrong",
            where="noise.kind",
            fix="use --noise.kind none: the noise that is there is found",
        )
    clean = Labels(truth, truth, source_row, class_names)
    if config.kind in OUTSIDE_KINDS:
        return _swap(clean, pool, config)
    flips = flip_matrix(config, class_names, superclass)
    draw = _draw_published if config.legacy_rng else _draw_keyed
    return Labels(draw(clean.truth, flips, config), clean.truth, clean.source_row, clean.class_names)


def flip_matrix(
    config: NoiseConfig, class_names: tuple[str, ...], superclass: Sequence[int] | None = None
) -> np.ndarray:
    """(C, C) float64: where the label of a chosen sample goes; row = true class. A zero row: nowhere."""
    count = len(class_names)
    if config.kind == "uniform":
        flips = np.ones((count, count))
        return without_diagonal(flips) if config.excludes_truth else flips / count
    if config.kind == "matrix" and config.matrix is not None:
        matrix = load_matrix(config.matrix, count)
        return matrix if config.uses_whole_matrix else without_diagonal(matrix)
    if config.confusion is not None:
        return load_confusion(config.confusion).flips(class_names)
    flips = np.zeros((count, count))
    pairs = (
        cifar10_flips(class_names, config.both_directions)
        if superclass is None
        else superclass_cycles(superclass, count)
    )
    for source, target in pairs:
        flips[source, target] = 1
    return flips


def achieved(labels: Labels) -> dict[str, Any]:
    """The noise that is really there, ready for JSON: rates are fractions of the samples with a known truth.

    `per_class` (C,): share of each true class that is wrong, null for a class without samples.
    `transitions` (C, C): counts, row = true class, column = given.
    `outside` (C,): counts of the given labels of images outside the classes; `redrawn` as in `Labels`.
    """
    count = len(labels.class_names)
    inside = labels.truth >= 0
    pairs = labels.truth[inside] * count + labels.given[inside]
    transitions = np.bincount(pairs, minlength=count * count).reshape(count, count)
    sizes = transitions.sum(axis=1)
    noisy, known = labels.is_noisy
    return {
        "samples": len(labels),
        "known": int(known.sum()),
        "wrong": int(noisy.sum()),
        "rate": float(noisy.sum() / known.sum()) if known.any() else None,
        "per_class": [
            float(1 - right / size) if size else None
            for right, size in zip(np.diagonal(transitions), sizes, strict=True)
        ],
        "transitions": transitions.tolist(),
        "outside": np.bincount(labels.given[labels.truth == OUTSIDE], minlength=count).tolist(),
        "redrawn": labels.redrawn,
        "class_names": list(labels.class_names),
        "fingerprint": labels.fingerprint,
    }


def _share(count: int, ratio: float) -> int:
    """floor(count * ratio) without the error of binary fractions: 50000 * 0.29 is 14500, not 14499.99..."""
    return math.floor(round(count * ratio, 6))


def _draw_keyed(truth: np.ndarray, flips: np.ndarray, config: NoiseConfig) -> np.ndarray:
    """New labels (N,) from Philox draws keyed by (seed, sample): the same with every library version.

    A larger ratio keeps the wrong labels of a smaller one and adds more.
    """
    can_change = np.asarray((flips > 0).any(axis=1))[truth]
    chosen = np.arange(len(truth)) if config.uses_whole_matrix else _choose(truth, can_change, config)
    given = truth.copy()
    draws = _uniform_of(_stream(config, _TARGET), len(truth))
    given[chosen] = _draw_from_rows(flips, truth[chosen], draws[chosen])
    return given


def _choose(truth: np.ndarray, can_change: np.ndarray, config: NoiseConfig) -> np.ndarray:
    """Samples that are drawn anew, among those that can change (N,) bool.

    They come in the order in which a rising ratio would take them in: a smaller ratio gives a head of it.
    """
    stream = _stream(config, _CHOICE)
    if config.choice == "bernoulli":
        draws = _uniform_of(stream, len(truth))
        chosen = np.flatnonzero(can_change & (draws < config.ratio))
        return chosen[np.argsort(draws[chosen], kind="stable")]
    order = np.asarray(permutation(stream, len(truth)))
    order = order[can_change[order]]
    if config.choice == "global":
        return order[: _share(len(order), config.ratio)]
    heads = [(group[: _share(len(group), config.ratio)], len(group)) for group in _groups(truth, order)]
    taken_at = np.concatenate([(np.arange(len(head)) + 1) / max(1, size) for head, size in heads])
    return np.concatenate([head for head, _ in heads])[np.argsort(taken_at, kind="stable")]


def _swap(clean: Labels, pool: Pool | None, config: NoiseConfig) -> Labels:
    """Chosen samples show an image of the pool, and no image comes twice; their given label stays.

    Uniform: any image. Nonuniform: an image of a class that looks like the label's; where that class has no image
    left, the class is drawn again among those that have.
    """
    if pool is None:
        raise UserError(
            f"kind {config.kind} shows images of other classes, and these data have none",
            where="noise.kind",
            fix="use a prepared imagenet32 or imagenet64 with --classes paper",
        )
    if shared := set(pool.class_names) & set(clean.class_names):
        raise ValueError(f"classes of a pool: want classes outside the view, got {sorted(shared)[:3]}")
    chosen = _choose(clean.truth, np.ones(len(clean), bool), config)
    if len(chosen) > len(pool):
        raise UserError(
            f"{len(chosen)} images are to be replaced, but there are {len(pool)} outside the classes",
            where="noise.ratio",
            fix="use a smaller ratio or --limit",
        )
    shuffled = permutation(_stream(config, _POOL), pool.rows)  # keyed by row, not by position in the pool
    taken, redrawn = shuffled[: len(chosen)], 0
    if config.kind == "nonuniform_ood":
        taken, redrawn = _take_similar(clean, chosen, pool, shuffled, config)
    truth, source_row = clean.truth.copy(), clean.source_row.copy()
    truth[chosen], source_row[chosen] = OUTSIDE, pool.rows[taken]
    return Labels(clean.given, truth, source_row, clean.class_names, redrawn)


def _take_similar(
    clean: Labels, chosen: np.ndarray, pool: Pool, shuffled: np.ndarray, config: NoiseConfig
) -> tuple[np.ndarray, int]:
    """Positions in the pool (n,) for `chosen` (n,), one after the other, and how many classes were drawn again."""
    if config.confusion is None:
        raise UserError("kind nonuniform_ood draws by confusion", where="noise.kind", fix=MAKE_CONFUSION)
    sizes = np.bincount(pool.label, minlength=len(pool.class_names))
    chances = load_confusion(config.confusion).outside_chances(
        clean.class_names, pool.class_names, config.ood_direction
    )
    chances *= sizes > 0  # a class without any image is no class of this pool
    labels = clean.given[chosen]
    draws = _uniform_of(_stream(config, _TARGET), len(clean))[chosen]
    drawn = _draw_from_rows(chances, labels, draws).tolist()
    redraws = _uniform_of(_stream(config, _REDRAW), len(clean))[chosen]
    queue = shuffled[np.argsort(pool.label[shuffled], kind="stable")].tolist()  # class by class
    following = (np.cumsum(sizes) - sizes).tolist()  # the next image of each class in the queue
    left, redrawn = sizes.tolist(), 0
    taken = np.empty(len(chosen), np.int64)
    for position, kind in enumerate(drawn):
        if not left[kind]:
            remaining = (chances[labels[position]] * (np.asarray(left) > 0)).cumsum()
            kind = int((remaining / remaining[-1]).searchsorted(redraws[position], side="right"))
            redrawn += 1
        taken[position] = queue[following[kind]]
        following[kind] += 1
        left[kind] -= 1
    return taken, redrawn


def _draw_published(truth: np.ndarray, flips: np.ndarray, config: NoiseConfig) -> np.ndarray:
    """New labels (N,) from the published sequence of draws: seed, permutation, then sample after sample."""
    generator = np.random.RandomState(config.seed)
    order = generator.permutation(len(truth))
    chosen = order[: _share(len(truth), config.ratio)]
    given = truth.copy()
    if config.kind == "uniform":
        for sample in chosen:
            drawn = generator.randint(len(flips), dtype=np.int32)
            while config.excludes_truth and drawn == truth[sample]:
                drawn = generator.randint(len(flips), dtype=np.int32)
            given[sample] = drawn
    elif len(chosen):  # a ratio below one sample changes nothing
        stays = 1 - config.ratio * flips.any(axis=1)
        transition = config.ratio * flips + np.diag(stays)
        given[order] = _draw_from_rows(transition, truth[order], generator.random_sample(len(order)))
    return given


def _draw_from_rows(matrix: np.ndarray, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One column (n,) per row index (n,): the row's distribution, inverted at draws (n,) in [0, 1)."""
    columns = np.empty(len(rows), dtype=np.int64)
    for members in _groups(rows, np.arange(len(rows))):
        if len(members):
            distribution = matrix[rows[members[0]]].cumsum()
            columns[members] = (distribution / distribution[-1]).searchsorted(draws[members], side="right")
    return columns


def _groups(values: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Split `order` (positions in `values`) by value; within each value the order stays."""
    by_value = order[np.argsort(values[order], kind="stable")]
    return np.split(by_value, np.flatnonzero(np.diff(values[by_value])) + 1)


def _stream(config: NoiseConfig, view: int) -> Stream:
    return Pass(config.seed, 0, 0, Purpose.noise, view).stream


def _uniform_of(stream: Stream, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1), one per sample index."""
    return np.asarray(uniform(words(stream, np.arange(count))[0]), dtype=np.float64)


def _labels_from_file(
    path: Path, truth: np.ndarray, source_row: np.ndarray, class_names: tuple[str, ...]
) -> Labels:
    """Labels exported earlier, if they are of these data: same rows and, where both know it, same truth."""
    origin = origin_of_file(path)
    if origin is not None and origin.dropped:
        raise UserError(
            f"the label file leaves {len(origin.dropped):,} images out, which --noise.file cannot",
            where=str(path),
            fix=f"give it as --labels {path}",
        )
    labels = load_labels(path, samples=len(truth), class_names=class_names)
    rows_differ = (labels.source_row != source_row) & (
        labels.truth != OUTSIDE
    )  # a swapped image has another row
    truth_differs = (labels.truth != truth) & (labels.truth >= 0) & (truth != UNKNOWN)
    for what, differs in (("row", rows_differ), ("truth", truth_differs)):
        if differs.any():
            raise DataError(
                f"{what} differs from the data set for {differs.sum()} of {len(truth)} samples, "
                f"first at index {int(np.argmax(differs))}",
                where=str(path),
                fix="use the label file that was made for this data set, with the same --limit",
            )
    return labels
