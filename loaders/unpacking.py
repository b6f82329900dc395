"""Photos given as one archive: unpacked beside the output for the time of a `prepare`, once."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastdrpl.loaders.archives import extract, foreign_packing, is_archive, unpacked_size
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.prepare_config import PrepareConfig
from fastdrpl.loaders.printable import printable
from fastdrpl.loaders.sources.split_names import split_of
from fastdrpl.loaders.sources.system_names import is_system
from fastdrpl.loaders.unfinished import remove

KINDS = ("folder", "webvision")  # whose source is a folder of photos


@contextmanager
def unpacked_source(config: PrepareConfig, out: Path, say: Callable[[str], None]) -> Iterator[PrepareConfig]:
    """The configuration with an archive replaced by the folder it was unpacked to; others as they are.

    The folder goes when the work is done or has failed. What a killed process left is used again if it is whole
    and the archive has not changed. What is wrong inside is said with the path in the archive. Raises DataError
    for a damaged or hostile archive and a disk that is too small, UserError for a packing that is not known here.
    """
    if config.kind not in KINDS or config.source is None:
        yield config
        return
    if not is_archive(config.source):
        _refuse_foreign(config.source)
        yield config
        return
    place = out.with_name(f".{out.name}.unpacked")
    status = config.source.stat()
    stamp = json.dumps([str(config.source.resolve()), status.st_size, status.st_mtime_ns])
    done = place / "done"
    photos = place / config.source.name.split(".")[0]
    try:
        if not (done.exists() and done.read_text(encoding="ascii") == stamp):
            remove(place)
            _check_space(config.source, out.parent)
            say(f"Unpacking {printable(config.source.name)} ...")
            count = extract(config.source, photos)
            say(f"{count:,} files unpacked; they are removed at the end.")
            done.write_text(stamp, encoding="ascii")
        try:
            yield dataclasses.replace(config, source=descend(photos))
        except UserError as error:  # what it names is removed before anybody reads it
            raise _named_in_archive(error, photos, config.source) from None
    finally:
        remove(place)


def descend(folder: Path) -> Path:
    """The folder that the layout begins in: archives often hold a single folder, and notes or leavings beside it."""
    while True:
        inside = _folders(folder)
        if len(inside) != 1 or split_of(inside[0].name) or not _folders(inside[0]):
            return folder
        folder = inside[0]


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones and those of systems, such as `__MACOSX`."""
    return [path for path in folder.iterdir() if path.is_dir() and not is_system(path.name)]


def _named_in_archive(error: UserError, photos: Path, archive: Path) -> UserError:
    def rename(text: str | None) -> str | None:
        return text and text.replace(printable(str(photos)), printable(str(archive)))

    return type(error)(rename(error.what) or "", where=rename(error.where), fix=rename(error.fix))


def _refuse_foreign(source: Path) -> None:
    packing = foreign_packing(source)
    if packing is not None:
        raise UserError(
            f"an archive packed by {packing}, which is not unpacked here",
            where=printable(str(source)),
            fix="unpack it first and give --source the folder; zip and tar (plain, gzip, bzip2, xz) are unpacked here",
        )


def _check_space(archive: Path, folder: Path) -> None:
    needed, free = unpacked_size(archive), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"not enough disk to unpack the archive: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
            where=printable(str(folder)),
            fix="free some space, choose another --out, or unpack it elsewhere and give --source the folder",
        )
