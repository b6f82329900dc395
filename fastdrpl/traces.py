"""What a start writes before it is sure that it may: taken back where it was refused."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from fastdrpl.errors import UserError


class Traces:
    """Makes a folder, and on leaving removes what has appeared in it and itself since, unless `keep` was called."""

    def __init__(self, folder: Path):
        self._folder, self._kept = folder, False
        self._made: list[Path] = []  # folders that were not there, the outermost first
        self._before: set[str] = set()

    def keep(self) -> None:
        """What is there now stays."""
        self._kept = True

    def __enter__(self) -> Self:
        missing = self._folder
        while not missing.exists():
            self._made.insert(0, missing)
            missing = missing.parent
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._before = {path.name for path in self._folder.iterdir()}
        except OSError as error:
            self._remove_folders()
            raise UserError(
                f"cannot make the run folder: {error.strerror}",
                where=str(self._folder),
                fix="give another --run",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept:
            return
        for path in list(self._folder.iterdir()):
            if path.name not in self._before:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._remove_folders()

    def _remove_folders(self) -> None:
        for path in reversed(self._made):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
