"""The losses that runs left, for figures: after which epochs, of which samples, and what was fitted to them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrpl.detect.collecting import Collected, StageName, about_run, labels_of, not_finished
from fastdrpl.detect.stage_files import AGAIN, Split, epoch_files, read_column, read_losses, read_split
from fastdrpl.detection import Curve
from fastdrpl.detectors.beta_mixture import MixtureEvidence
from fastdrpl.detectors.gaussian_mixture import GaussianEvidence
from fastdrpl.errors import DataError, UserError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder, stored_config
from fastdrpl.journal import read_journal
from fastdrpl.kernels.beta_mixture import BetaMixture
from fastdrpl.kernels.gaussian_mixture import GaussianMixture
from fastdrpl.labels import Labels
from fastdrpl.plan import plan_of

Losses = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class LossStage:
    """A stage that left losses (N,) or a detection; `epochs`: a file of losses for each, empty with --track final."""

    name: str
    given_epochs: int | None  # after so many epochs the labels are replaced; None: not in this stage
    last: Losses | None
    epochs: tuple[Path, ...]
    split: Split | None
    measure: str  # what the doubt of `split` is
    gamma: float | None  # largest p_noisy of a label that is kept
    curves: tuple[Curve, ...]  # fitted densities of the doubt


@dataclass(frozen=True, eq=False)
class LossRun:
    """A run with losses. `journal`: the records of metrics.jsonl."""

    path: Path
    name: str  # tells it from the others
    noise: str  # what is known of its wrong labels, in words
    labels: Labels
    stages: tuple[LossStage, ...]
    journal: Sequence[Mapping[str, Any]]

    @property
    def groups(self) -> tuple[tuple[str, npt.NDArray[np.bool_]], ...]:
        """The samples of each kind that there is: a name and a mask (N,); all in one where no truth is known."""
        noisy, known = self.labels.is_noisy
        if not known.any():
            return (("all", np.ones(len(self.labels), bool)),)
        kinds = (("clean", known & ~noisy), ("noisy", noisy), ("unknown", ~known))
        return tuple((name, mask) for name, mask in kinds if mask.any())


def collect_losses(paths: Sequence[Path]) -> tuple[list[LossRun], list[tuple[Path, UserError]]]:
    """The runs of which losses can be shown, and for each folder what is missing; raises nothing, writes nothing."""
    runs: list[LossRun] = []
    problems: list[tuple[Path, UserError]] = []
    for path, name in zip(paths, names_of(paths), strict=True):
        found = Collected(path)
        run = found.attempt(functools.partial(_read_run, found, path, name))
        runs += [] if run is None else [run]
        problems += [(path, problem) for problem in found.problems]
    return runs, problems


def names_of(paths: Sequence[Path]) -> list[str]:
    """The last part of each path where that tells them apart, else the whole path."""
    last = [path.resolve().name for path in paths]
    return last if len(set(last)) == len(last) else [str(path) for path in paths]


def _read_run(found: Collected, path: Path, name: str) -> LossRun:
    folder = RunFolder(path)
    labels = labels_of(folder)
    _, _, stages = about_run(folder)
    if not folder.result.exists():
        found.problems.append(not_finished(folder))
    given = found.attempt(lambda: _given_epochs(folder)) or {}
    read = [found.attempt(functools.partial(_read_stage, folder, stage, labels, given)) for stage in stages]
    shown = tuple(stage for stage in read if stage is not None and (stage.last is not None or stage.split))
    if not shown and not found.problems:
        raise UserError("no stage of this run keeps losses", where=str(path))
    noise = found.attempt(lambda: _noise(folder, labels)) or ""
    journal = found.attempt(lambda: read_journal(folder.metrics)) or []
    return LossRun(path, name, noise, labels, shown, journal)


def _given_epochs(folder: RunFolder) -> dict[str, int]:
    """After how many epochs each stage that relabels begins with it."""
    return {
        stage.name: stage.objective.given_epochs
        for stage in plan_of(stored_config(folder))
        if hasattr(stage.objective, "given_epochs")
    }


def _noise(folder: RunFolder, labels: Labels) -> str:
    noisy, known = labels.is_noisy
    if not known.any():
        return "truth unknown"
    kind = stored_config(folder).noise.kind
    said = "" if kind == "none" else f"{kind.replace('_ood', ' OOD')} noise: "
    return f"{said}{noisy.sum() / known.sum():.0%} wrong"


def _read_stage(folder: RunFolder, stage: StageName, labels: Labels, given: Mapping[str, int]) -> LossStage:
    place, samples = folder.stage(stage.name), len(labels)
    split = read_split(place, samples, required=stage.detects)
    facts = read_json(place / "detection.json") if split is not None else {}
    measure, gamma, curves = _evidence(place / "detection.json", facts)
    epochs = epoch_files(place, stage.epochs)
    last = read_losses(place, samples, required=False)
    if last is None and epochs:  # of a stage that does not look at losses otherwise, or is under way
        last = read_column(epochs[-1], samples)
    return LossStage(stage.name, given.get(stage.name), last, tuple(epochs), split, measure, gamma, curves)


def _evidence(path: Path, facts: Mapping[str, Any]) -> tuple[str, float | None, tuple[Curve, ...]]:
    """What the doubt is, the threshold of p_noisy and the fitted densities. Raises DataError for a damaged file."""
    try:
        if "mixture" in facts:
            told = facts["mixture"]
            fit = BetaMixture(
                alpha=_pair(told["alpha"]),
                beta=_pair(told["beta"]),
                weight=_pair(told["weight"]),
                low=float(told["low"]),
                high=float(told["high"]),
            )
            gamma = float(facts["gamma"])
            return "loss", gamma, MixtureEvidence(fit, gamma).curves()
        if "mixtures" in facts:
            fits = tuple(
                GaussianMixture(
                    mean=_pair(told["mean"]),
                    variance=_pair(told["variance"]),
                    weight=_pair(told["weight"]),
                    iterations=int(told["iterations"]),
                    converged=True,
                )
                for told in facts["mixtures"]
            )
            least = float(facts["p_threshold"])
            return "normalised loss", 1 - least, GaussianEvidence(fits, least).curves()
        return "doubt", float(facts["gamma"]) if "gamma" in facts else None, ()
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} is damaged ({error!r})", where=str(path), fix=AGAIN) from error


def _pair(values: Any) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)


def finite(losses: Losses) -> npt.NDArray[np.float64]:
    """Losses (N,) with infinite ones as the largest finite one."""
    values = np.asarray(losses, np.float64)
    limits = values[np.isfinite(values)]
    return np.clip(values, limits.min(initial=np.inf), limits.max(initial=-np.inf)) if len(limits) else values


def moments(stage: LossStage, samples: int) -> Iterator[tuple[str, int | None, Losses]]:
    """When the losses of a stage are looked at: words, the epoch (None: the last), and the losses (N,).

    A stage that relabels is shown before, during and after it where the losses of every epoch were kept. Raises
    DataError for a damaged file.
    """
    last, begin = len(stage.epochs), stage.given_epochs
    if begin is not None and 0 < begin < last:
        for words, epoch in (("before", begin), ("during", (begin + last) // 2)):
            yield f"{words} relabelling", epoch, read_column(stage.epochs[epoch - 1], samples)
    if stage.last is not None:
        yield f"after {stage.name}" if begin is None else "after relabelling", last or None, stage.last
