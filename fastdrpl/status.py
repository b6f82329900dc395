"""`fastdrpl status RUN`: how a run gets on, from its files alone."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fastdrpl.checkpoint import list_checkpoints
from fastdrpl.errors import PreemptedError, UserError
from fastdrpl.files import read_json
from fastdrpl.folder import RunFolder
from fastdrpl.journal import read_journal
from fastdrpl.lock import lock_holder


def status_of(path: Path) -> dict[str, Any]:
    """The state of a run folder, in JSON values; writes nothing. Raises `UserError` if it is no run folder.

    `exit_code`: what its command ended with, or would have: 75 for a run that can be continued; None while it runs.
    """
    folder = RunFolder(path)
    if not folder.config.exists():
        raise UserError(
            "not a run folder: it has no config.toml", where=str(path), fix="give the folder of a run"
        )
    records, checkpoints = read_journal(folder.metrics), list_checkpoints(folder.checkpoints)
    holder = lock_holder(path)
    progress = read_json(folder.progress) if folder.progress.exists() else {}
    code: int | None = PreemptedError.exit_code
    if folder.result.exists():
        verdict, code = "finished", 0
    elif holder is not None:  # before what an earlier attempt ended with
        verdict, code = f"running ({holder})", None
    elif "failed" in progress:
        code = int(progress["exit_code"])
        verdict = f"ended with exit code {progress['exit_code']}: {progress['failed']}"
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
        "exit_code": code,
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


def table_of(state: Mapping[str, Any]) -> Table:
    """`status_of` as a table: what is known, a name and a value in each row."""
    state = {name: value for name, value in state.items() if name != "exit_code"}
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
            table.add_row(name.replace("_", " "), Text(text_of(name, value)))
    return table


def text_of(name: str, value: Any) -> str:
    """A value of `status_of` for a person."""
    if name in ("stage_seconds_left", "last_checkpoint_age"):
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if name == "test_accuracy":
        return f"{value:.2%}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
