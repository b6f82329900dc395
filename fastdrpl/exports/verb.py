"""`fastdrpl export RUN --to ...`: what is written, where, and by whom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastdrpl.console import say
from fastdrpl.errors import UserError
from fastdrpl.exports.places import check_place
from fastdrpl.folder import RunFolder

if TYPE_CHECKING:
    from fastdrpl.exports.finished import Finished

Write = Callable[["Finished", Path], str]  # (run, out) -> a line on what came of it


@dataclass(frozen=True)
class Target:
    """One way out; its module is imported when it is asked for."""

    name: str  # in the run's folder export/, where --out says nothing else
    function: str  # module:function, a `Write`
    folder: bool = False
    reads: Literal["table", "network", "data"] = "table"  # what must be there; each with those before it
    extras: tuple[str, ...] = ()  # modules that must import
    ours: bool = False  # every run ends with one: it is renewed in that place

    @property
    def write(self) -> Write:
        module, _, function = self.function.partition(":")
        found: Write = getattr(import_module(f"fastdrpl.exports.{module}"), function)
        return found


TARGETS = {
    "csv": Target("labels.csv", "tables:write_csv"),
    "cleanlab": Target("cleanlab.csv", "tables:write_cleanlab"),
    "fiftyone": Target("fiftyone", "fiftyone_folder:write_fiftyone", folder=True, reads="data"),
    "huggingface": Target("huggingface", "huggingface:write_huggingface", folder=True, reads="data"),
    "onnx": Target(
        "model.onnx", "onnx_file:write_onnx", reads="network", extras=("onnx", "onnxscript", "onnxruntime")
    ),
    "card": Target("card.md", "card:export_card", ours=True),
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
    """Replace what an earlier export left (the card that a run ends with is renewed anyway)."""


def export(config: ExportConfig) -> None:
    """Write every target that is asked for; places, extras and data are all checked first: a refusal changes nothing.

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
        renewed = config.out is None and TARGETS[name].ours
        check_place(out, folder=TARGETS[name].folder, overwrite=config.overwrite or renewed)
    run = _open(config, [TARGETS[name] for name in places])
    for name, out in places.items():
        if not out.parent.is_dir():
            _make(out.parent)
        came = TARGETS[name].write(run, out)
        say(f"{name}: {out} ({came})")


def _place(config: ExportConfig, name: str) -> Path:
    if config.out is None:
        return RunFolder(config.run).export / TARGETS[name].name
    return config.out if len(set(config.to)) == 1 else config.out / TARGETS[name].name


def _open(config: ExportConfig, targets: Sequence[Target]) -> "Finished":
    """The run, once everything that these targets read is known to be there."""
    from fastdrpl.exports.finished import Finished
    from fastdrpl.loaders.decode import check_source_rows
    from fastdrpl.loaders.extras import require

    for target in targets:
        for module in target.extras:
            require(module)
    run = Finished(RunFolder(config.run), config.data)
    rows, read = run.table["row"].to_numpy(), {target.reads for target in targets}
    opened = None if read == {"table"} else run.opened
    if opened is not None and ("data" in read or config.data is not None):
        check_source_rows(opened.data.split("train"), rows)
    return run


def _make(folder: Path) -> None:
    from fastdrpl.files import explain_write_error

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise explain_write_error(error, folder.absolute()) from error
