"""Where an export goes: whole or not at all, and never over something that nobody asked to replace."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdrpl.errors import UserError
from fastdrpl.files import TEMPORARY_PREFIX, explain_write_error, fsync_folder, write_json

MARK = "fastdrpl.json"  # in every folder that is made here: only these are ever replaced


def check_place(out: Path, *, folder: bool, overwrite: bool) -> None:
    """Raise `UserError` where an export may not go to `out`."""
    if not os.path.lexists(out):
        return
    if out.is_dir() != folder:
        kind = "folder" if folder else "file"
        raise UserError(
            f"this export is a {kind}, and there is something else", where=str(out), fix="give another --out"
        )
    if not overwrite:
        raise UserError(
            "there is something already; nothing was changed",
            where=str(out),
            fix="add --overwrite, or give another --out",
        )
    if folder and any(out.iterdir()) and not (out / MARK).is_file():
        raise UserError(
            "this folder was not made by `fastdrpl export`, so it is not replaced",
            where=str(out),
            fix="give another --out",
        )


@contextmanager
def new_folder(out: Path, made: dict[str, str]) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when the block ends well; else nothing is left of it and
    the folder that was there is there again.

    `made`: what goes into its mark. Raises `UserError` where it cannot be written.
    """
    work, old = (
        out.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{name}-{out.name}") for name in ("new", "old")
    )
    try:
        try:
            shutil.rmtree(work, ignore_errors=True)  # of a dead process that had our number
            work.mkdir(parents=True)
            yield work
            write_json(work / MARK, made)
            if out.exists():
                os.rename(out, old)
            try:
                os.rename(work, out)
            except OSError:
                if old.exists():
                    os.rename(old, out)
                raise
            fsync_folder(out.absolute().parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explain_write_error(error, out.absolute()) from error
