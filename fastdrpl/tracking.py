"""Trackers: what a run measures, told to tensorboard, wandb, mlflow and the others that Accelerate knows.

The files of the run say everything already. So a tracker that fails is named once and left; the training goes on.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from fastdrpl.console import warn
from fastdrpl.errors import UserError
from fastdrpl.files import read_json, write_json
from fastdrpl.names import nearest

PROJECT = "fastdrpl"
_PACKAGES = {"comet_ml": "comet-ml", "tensorboard": "tensorboard>=2.15"}  # where it is not the tracker's name


def parse_trackers(text: str) -> tuple[str, ...]:
    """The trackers that `--track_with` names, in order, each once.

    Raises UserError for one that Accelerate does not know, or whose package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = sorted(LOGGER_TYPE_TO_CLASS)
    there = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(
                f"--track_with: unknown tracker {name!r}{nearest(name, known)}",
                fix=f"one of {', '.join(known)}",
            )
        if name not in there:
            raise UserError(
                f"--track_with {name}: its package is not installed",
                fix=f"pip install '{_PACKAGES.get(name, name)}'",
            )
    return names


class Trackers:
    """The trackers of a run, all of whose files lie in `folder`. On ranks but the first there is none."""

    def __init__(self, names: tuple[str, ...], folder: Path, run: Path, settings: Mapping[str, Any]):
        self._names, self._folder, self._run, self._settings = names, folder, run, settings
        self._running: dict[str, Any] = {}

    def start(self, step: int) -> None:
        """Begin, or go on with what an earlier process began; `step` is the next that `log` will be called with."""
        for name in self._names:
            try:
                self._start(name, step)
            except Exception as error:  # whatever a foreign library, or a server behind it, comes upon
                self._give_up(name, error)

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Tell the numbers of an epoch."""
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        for name, tracker in list(self._running.items()):
            try:
                tracker.log(numbers, step=step)
            except Exception as error:
                self._give_up(name, error)

    def finish(self) -> None:
        """End every tracker, so that what it holds back is written."""
        for name, tracker in list(self._running.items()):
            try:
                tracker.finish()
            except Exception as error:
                self._give_up(name, error)
        self._running.clear()

    def _start(self, name: str, step: int) -> None:
        kind, notes = LOGGER_TYPE_TO_CLASS[name], self._folder / f"{name}.json"
        begun = notes.exists()
        note = read_json(notes) if begun else {"id": uuid.uuid4().hex}
        place = self._folder / name
        place.mkdir(parents=True, exist_ok=True)
        options = _options(name, place, self._run.resolve().name, note["id"], step, begun)
        arguments = (name, self._folder) if kind.requires_logging_directory else (PROJECT,)
        tracker = kind(*arguments, **options)
        tracker.start()
        self._running[name] = tracker
        if not begun:
            tracker.store_init_configuration(_plain(self._settings))
        write_json(notes, {**note, **_known_by(name, tracker)})

    def _give_up(self, name: str, error: Exception) -> None:
        self._running.pop(name, None)
        text = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        warn(f"{name} failed and is told nothing more; metrics.csv has everything ({what})")


def _options(name: str, place: Path, run: str, own_id: str, step: int, begun: bool) -> dict[str, Any]:
    """What a tracker is made with: files in `place`, and its own way to go on with a run.

    A tracker of another name begins a run of its own whenever ours goes on; its steps go on with ours.
    """
    if name == "tensorboard":
        return {"purge_step": step}  # what a killed process told beyond the checkpoint does not count
    if name == "wandb":
        return {"dir": str(place), "name": run, "id": own_id, "resume": "allow"}
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place.resolve() / 'mlflow.db'}")
        return {"run_name": run, "run_id": own_id if begun else None, "logging_dir": str(place.resolve())}
    if name == "dvclive":
        return {"dir": str(place), "resume": begun}
    if name == "swanlab":
        return {"logdir": str(place), "experiment_name": run}
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(place.resolve()))
        return {"name": run, "resume": "allow"}
    return {}


def _known_by(name: str, tracker: Any) -> dict[str, str]:
    """The id that a tracker gave the run, where it does not take ours."""
    return {"id": tracker.active_run.info.run_id} if name == "mlflow" else {}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the kinds of values that every tracker takes."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in settings.items()
        if value is not None
    }
