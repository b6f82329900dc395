"""`fastdrpl export RUN --to ...`: what is written, where, and by whom."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastdrpl.console import say
from fastdrpl.errors import UserError
from fastdrpl.exports.places import check_place
from fastdrpl.folder import RunFolder

Write = Callable[
    [Path, Path | None, Path], str
]  # (run, where the data are now, out) -> a line on what came of it


@dataclass(frozen=True)
class Target:
    """One way out; its module is imported when it is asked for."""

    name: str  # in the run's folder export/, where --out says nothing else
    function: str  # module:function, a `Write`
    folder: bool = False

    @property
    def write(self) -> Write:
        module, _, function = self.function.partition(":")
        found: Write = getattr(import_module(f"fastdrpl.exports.{module}"), function)
        return found


TARGETS = {
    "csv": Target("labels.csv", "tables:write_csv"),
    "cleanlab": Target("cleanlab.csv", "tables:write_cleanlab"),
    "fiftyone": Target("fiftyone", "fiftyone_folder:write_fiftyone", folder=True),
    "huggingface": Target("huggingface", "huggingface:write_huggingface", folder=True),
    "onnx": Target("model.onnx", "onnx_file:write_onnx"),
    "card": Target("card.md", "card:export_card"),
}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Hand on what a finished run found, in the forms that other tools read."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    to: Annotated[
        tuple[Literal["csv", "cleanlab", "fiftyone", "huggingface", "onnx", "card"], ...],
        tyro.conf.arg(aliases=["--format"]),
    ]
    """One or several of: csv (the table of labels), cleanlab (the same under cleanlab's names), fiftyone and
    huggingface (folders with every training image, its label and the suggestion), onnx (the network), card (a model
    card)."""
    out: Path | None = None
    """File or folder to write; a folder for all of them where there are several. Default: inside RUN/export."""
    data: Path | None = None
    """The prepared data set, if it is not where the run had it."""
    overwrite: bool = False
    """Replace what an earlier export left."""


def export(config: ExportConfig) -> None:
    """Write every target that is asked for; all places are checked first, so that a refusal changes nothing.

    Raises `UserError` for an unfinished run, a place that is taken or an extra that is missing, `DataError` for damaged
    files or data that are not those of the run.
    """
    folder = RunFolder(config.run)
    if not folder.result.exists():
        raise UserError(
            "the run is not finished: there is nothing to export yet",
            where=str(config.run),
            fix=f"`fastdrpl status {config.run}` says how far it is",
        )
    if not config.to:
        raise UserError("nothing is asked for", fix=f"--to {'|'.join(TARGETS)}")
    places = {name: _place(config, name) for name in dict.fromkeys(config.to)}
    for name, out in places.items():
        check_place(out, folder=TARGETS[name].folder, overwrite=config.overwrite)
    for name, out in places.items():
        if not out.parent.is_dir():
            _make(out.parent)
        came = TARGETS[name].write(config.run, config.data, out)
        say(f"{name}: {out} ({came})")


def _place(config: ExportConfig, name: str) -> Path:
    if config.out is None:
        return RunFolder(config.run).export / TARGETS[name].name
    return config.out if len(set(config.to)) == 1 else config.out / TARGETS[name].name


def _make(folder: Path) -> None:
    from fastdrpl.files import explain_write_error

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise explain_write_error(error, folder.absolute()) from error
