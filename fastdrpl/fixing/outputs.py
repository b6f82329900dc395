"""What `fastdrpl fix` leaves: label file, corrected table, corrected folder, and a log of the changes beside them."""

import dataclasses
import os
import shlex
from pathlib import Path

from fastdrpl.errors import UserError
from fastdrpl.files import write_atomic
from fastdrpl.fixing.command import FixCommand
from fastdrpl.fixing.decisions import DROP, Decisions, corrected
from fastdrpl.fixing.image_folder import plan_folder, write_folder
from fastdrpl.fixing.judged import Judged
from fastdrpl.fixing.label_file import change_log, label_file
from fastdrpl.fixing.origin import Origin, origin_of_run
from fastdrpl.fixing.own_table import correct_table
from fastdrpl.fixing.where import Prepared, final_classes, kept_places, prepared_of, refuse_inside
from fastdrpl.loaders.printable import printable


def write_outputs(command: FixCommand, run: Judged, decisions: Decisions) -> list[str]:
    """Write what the command asks for; lines on what was written. Raises `UserError` and `DataError`."""
    outs = [path for path in (command.out, command.out_table, command.out_folder) if path is not None]
    if not outs:
        return ["Nothing was written: --out labels.csv writes labels to train on."]
    first = Path(os.path.abspath(outs[0]))  # "." has no name
    log = first.with_name(f"{first.stem if first.suffix else first.name}.changes.csv")
    _check(command, run, [path for path in (command.out, command.out_table, log) if path is not None])
    origin = _origin(run, decisions)
    files: dict[Path, bytes] = {}
    lines: list[str] = []
    if command.out is not None:
        files[command.out] = label_file(run, decisions, origin)
        words = ["--config", str(run.folder.config), "--labels", str(command.out), "--run", "NEW"]
        again = f"fastdrpl train {shlex.join(words)}"
        lines.append(f"{command.out}: train on it with `{again}`")
    if command.out_table is not None:
        prepared = _prepared(command, run, "table")
        table = correct_table(prepared.source, _final(prepared, run, decisions, origin), prepared.options)
        files[command.out_table] = table.content
        lines.append(
            f"{command.out_table}: {table.changed:,} labels changed, {table.dropped:,} rows left out"
        )
        lines += _where_paths_begin(command.out_table, prepared)
    new_files = None
    if command.out_folder is not None:
        new_files = _write_folder(command, command.out_folder, run, decisions, origin, lines)
    files[log] = change_log(run, decisions, new_files)
    for path, content in files.items():
        write_atomic(path, content)
    return [*lines, f"{log}: every decision"]


def _check(command: FixCommand, run: Judged, files: list[Path]) -> None:
    """Raises `UserError` for outputs that are there, that have no folder, or that lie in the run."""
    if command.out is not None and command.out.suffix != ".csv":
        raise UserError("labels are written as .csv", where=str(command.out), fix="--out labels.csv")
    for path in files:
        if path.exists() and not (command.overwrite and path.is_file()):
            raise UserError(
                "there is such a file already" if path.is_file() else "there is something else here",
                where=printable(str(path)),
                fix="choose another name, or add --overwrite" if path.is_file() else "choose another name",
            )
        if not path.parent.is_dir():
            raise UserError("there is no such folder", where=printable(str(path.parent)), fix="make it first")
        if not os.access(path.parent, os.W_OK):
            raise UserError(
                "nothing can be written in this folder",
                where=printable(str(path.parent)),
                fix="allow writing to it, or choose another one",
            )
    kept = kept_places(run, command.data, command.source)
    for path in [*files, *([command.out_folder] if command.out_folder is not None else [])]:
        for place, what in kept:
            refuse_inside(path, place, what)
        if command.fixes is not None and os.path.realpath(path) == os.path.realpath(command.fixes):
            raise UserError("the fix list would be overwritten", where=printable(str(path)))
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise UserError("two outputs have one name", where=printable(str(files[0])))


def _prepared(command: FixCommand, run: Judged, kind: str) -> Prepared:
    """The prepared data of a run, with their source and how it is read."""
    prepared = prepared_of(run, kind, command.data, command.source)
    given = {"path_column": command.path_column, "label_column": command.label_column}
    options = prepared.options | {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(prepared, options=options)


def _origin(run: Judged, decisions: Decisions) -> Origin:
    before = origin_of_run(run.folder.path)
    dropped = set(run.labels.source_row[decisions.decision == DROP].tolist())
    dropped |= set(() if before is None else before.dropped)
    return Origin(os.path.abspath(run.folder.path), run.hash, run.data, tuple(sorted(dropped)))


def _final(prepared: Prepared, run: Judged, decisions: Decisions, origin: Origin) -> dict[str, str | None]:
    return final_classes(prepared, corrected(run, decisions), origin.dropped)


def _where_paths_begin(out: Path, prepared: Prepared) -> list[str]:
    base = Path(prepared.options.get("images", prepared.source.parent))
    if os.path.realpath(base) == os.path.realpath(out.parent) and "images" not in prepared.options:
        return []
    return [f"relative paths in it begin in {base}: prepare it with --images {base}"]


def _write_folder(
    command: FixCommand, out: Path, run: Judged, decisions: Decisions, origin: Origin, lines: list[str]
) -> dict[int, str]:
    """Make the corrected folder; sample index -> where its image is there."""
    prepared = _prepared(command, run, "folder")
    plan = plan_folder(prepared, _final(prepared, run, decisions, origin))
    write_folder(out, plan, command.link)
    lines.append(
        f"{out}: {len(plan.places):,} images ({command.link}), {plan.moved:,} of them in another class, "
        f"{plan.dropped:,} left out"
    )
    if plan.renamed:
        lines.append(f"{plan.renamed:,} were renamed (name~2), as their new class has an image of this name")
    if plan.unknown:
        lines.append(f"{plan.unknown:,} images that the run did not train on are there as they are")
    if plan.other:
        lines.append(f"{plan.other:,} files that are no images are not in the copy")
    for name in plan.empty:
        lines.append(f"warning: no training image of the class {name!r} is left")
    files = zip(range(len(run)), run.files.tolist(), strict=True)
    return {index: plan.files[file] for index, file in files if file in plan.files}
