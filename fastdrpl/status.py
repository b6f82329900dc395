"""`fastdrpl status RUN`: how a run gets on, from its files alone."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.errors import UserError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.journal import read_journal
from fastdrpl.lock import lock_holder


def status_of(path: Path) -> dict[str, Any]:
    """The state of a run folder, in JSON values; writes nothing. Raises `UserError` if it is no run folder."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise UserError(
            "not a run folder: it has no config.toml", where=str(path), fix="give the folder of a run"
        )
    records, checkpoints = read_journal(folder.metrics), list_checkpoints(folder.checkpoints)
    holder = lock_holder(path)
    progress = read_json(folder.progress) if folder.progress.exists() else {}
    if folder.result.exists():
        verdict = "finished"
    elif "failed" in progress:
        verdict = f"ended with exit code {progress['exit_code']}: {progress['failed']}"
    elif holder is not None:
        verdict = f"running ({holder})"
    else:
        verdict = (
            "stopped; the training command continues it"
            if checkpoints
            else "stopped before its first checkpoint"
        )
    last = records[-1] if records else {}
    speed = progress.get("images_per_second")
    return {
        "verdict": verdict,
        "stage": progress.get("stage", last.get("stage")),
        "epoch": progress.get("epoch", last.get("epoch")),
        "epochs": progress.get("epochs"),
        "images_per_second": speed,
        "stage_seconds_left": progress.get("stage_seconds_left") if holder is not None else None,
        "test_accuracy": next(
            (r["test_accuracy"] for r in reversed(records) if r["test_accuracy"] is not None), None
        ),
        "loss": last.get("loss"),
        "last_checkpoint": checkpoints[-1].name if checkpoints else None,
        "last_checkpoint_age": time.time() - checkpoints[-1].stat().st_mtime if checkpoints else None,
        "result": read_json(folder.result) if folder.result.exists() else None,
    }


def print_status(path: Path) -> None:
    """Print `status_of` for a person."""
    state = status_of(path)
    table = Table(box=None, show_header=False, pad_edge=False)
    result = state.pop("result")
    if result is not None:
        for name in (
            "stage",
            "epoch",
            "epochs",
            "images_per_second",
            "stage_seconds_left",
            "loss",
            "test_accuracy",
        ):
            state.pop(name)
        state["labels that look wrong"] = f"{result['suspects']:,} of {result['samples']:,}"
        state["accuracy"] = (
            ", ".join(f"{k} {v:.2%}" for k, v in result["accuracy"].items() if v is not None) or None
        )
    for name, value in state.items():
        if value is not None:
            table.add_row(name.replace("_", " "), Text(_text(name, value)))
    Console(highlight=False).print(table)


def _text(name: str, value: Any) -> str:
    if name in ("stage_seconds_left", "last_checkpoint_age"):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if name == "test_accuracy":
        return f"{value:.2%}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
