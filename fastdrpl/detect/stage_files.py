"""The files that a stage leaves of what it looked at: losses (N,), of the end and of each epoch, and its detection."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrpl.detection import Curve
from fastdrpl.errors import DataError
from fastdrpl.files import read_json
from fastdrpl.loaders.arrays import open_npz, read_npy

AGAIN = "train again in another --run: the same configuration makes the same file"
EPOCH_FILE = re.compile(r"epoch-(\d{4,9})\.npy")
EPOCHS_NAMED = 5
MOST_POINTS = 100_000  # of a fitted density

Losses = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Split:
    """What a stage's detector made of the samples."""

    detector: str
    p_noisy: npt.NDArray[np.float64]  # (N,)
    doubt: npt.NDArray[np.float64]  # (N,)
    labelled: npt.NDArray[np.bool_]  # (N,)
    measure: str = "doubt"
    curves: tuple[Curve, ...] = ()


def read_losses(stage: Path, samples: int, *, required: bool) -> Losses | None:
    """The losses after a stage's last epoch (N,); None where there are none and need be none.

    Raises DataError for a missing or damaged file.
    """
    path = stage / "losses.npy"
    return read_column(path, samples) if _is_there(path, required) else None


def read_epochs(stage: Path, samples: int, epochs: int | None) -> Losses | None:
    """The losses after every epoch (N, epochs), None where they were not kept (--track final).

    `epochs`: how many there must be; None: as many as there are. Raises DataError for missing or damaged files.
    """
    files = epoch_files(stage, epochs)
    if not files:
        return None
    losses = np.empty((samples, len(files)), np.float32)
    for k, path in enumerate(files):
        losses[:, k] = read_column(path, samples)
    return losses


def epoch_files(stage: Path, epochs: int | None) -> list[Path]:
    """The file of each epoch's losses, from the first; none where they were not kept. Arguments as `read_epochs`.

    Raises DataError where some are missing.
    """
    folder = stage / "losses"
    files = {int(name[1]): path for path in folder.glob("*") if (name := EPOCH_FILE.fullmatch(path.name))}
    if not files:
        return []
    wanted = range(1, (epochs or max(files)) + 1)
    missing = [str(epoch) for epoch in wanted if epoch not in files]
    if missing:
        named = ", ".join(missing[:EPOCHS_NAMED]) + (", ..." if len(missing) > EPOCHS_NAMED else "")
        raise DataError(
            f"the losses of {len(missing)} of {len(wanted)} epochs are missing ({named})",
            where=str(folder),
            fix=AGAIN,
        )
    return [files[epoch] for epoch in wanted]


def read_split(stage: Path, samples: int, *, required: bool) -> Split | None:
    """The stage's own detection; None where there is none and need be none.

    Raises DataError for a missing or damaged file.
    """
    path, about = stage / "detection.npz", stage / "detection.json"
    if not _is_there(path, required):
        return None
    try:
        with open_npz(path) as stored:
            doubt = stored.read("doubt", kinds="f", most=samples)
            labelled = stored.read("labelled", kinds="b", most=samples)
            p_noisy = stored.read("p_noisy", kinds="f", most=samples)
            curves = [
                stored.read(name, kinds="f", most=MOST_POINTS)
                for name in sorted(stored.names)
                if name.startswith("curve_")
            ]
    except (ValueError, OSError) as error:
        raise _damaged(path, str(error)) from error
    for values in (doubt, labelled, p_noisy):
        _check_shape(path, values, samples)
    for numbers in (doubt, p_noisy):
        _check_numbers(path, numbers)
    facts = read_json(about) if _is_there(about, True) else {}
    facts = facts if isinstance(facts, dict) else {}
    name, names = _text(facts, "detector", "detection"), facts.get("curves", [])
    if len(names) != len(curves) or any(curve.ndim != 2 or len(curve) != 2 for curve in curves):
        raise _damaged(path, f"{len(curves)} fitted densities, {len(names)} in {about.name}")
    fitted = tuple(Curve(str(name), *curve) for name, curve in zip(names, curves, strict=True))
    return Split(
        name,
        p_noisy.astype(np.float64),
        doubt.astype(np.float64),
        labelled,
        _text(facts, "measure", "doubt"),
        fitted,
    )


def _text(facts: dict[str, Any], key: str, default: str) -> str:
    value = facts.get(key)
    return value if isinstance(value, str) else default


def _is_there(path: Path, required: bool) -> bool:
    """Raises DataError for a missing file that is required."""
    if path.is_file():
        return True
    if required:
        raise DataError(f"{path.name} is missing", where=str(path), fix=AGAIN)
    return False


def read_column(path: Path, samples: int) -> Losses:
    """The losses in one file (N,). Raises DataError for a damaged one."""
    try:
        losses = read_npy(path, kinds="f", most=samples)
    except (ValueError, OSError) as error:
        raise _damaged(path, str(error)) from error
    _check_shape(path, losses, samples)
    _check_numbers(path, losses)
    return losses


def _check_shape(path: Path, values: npt.NDArray[np.generic], samples: int) -> None:
    if values.shape != (samples,):
        raise _damaged(path, f"an array of shape {values.shape} for {samples} samples")


def _check_numbers(path: Path, values: npt.NDArray[np.floating]) -> None:
    if np.isnan(values).any():
        raise _damaged(path, f"{int(np.isnan(values).sum())} of {values.size} values are nan")


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path.name} is damaged: {why}", where=str(path), fix=AGAIN)
