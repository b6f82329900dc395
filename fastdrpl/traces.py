"""What a start writes before it is sure that it may: taken back where it was refused."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from fastdrpl.errors import UserError
from fastdrpl.lock import LOCK_FILE, RunLock


class Traces:
    """Makes and locks a run folder; on leaving takes back what has appeared since, unless `keep` was called.

    It looks at the folder only once it holds the lock: nothing of another process is touched.
    """

    def __init__(self, folder: Path):
        self._folder, self._kept = folder, False
        self._lock = RunLock(folder)
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
            had_lock = (self._folder / LOCK_FILE).exists()
        except OSError as error:
            self._remove_folders()
            raise UserError(
                f"cannot make the run folder: {error.strerror}",
                where=str(self._folder),
                fix="give another --run",
            ) from error
        self._lock.__enter__()
        self._before = {path.name for path in self._folder.iterdir()}
        if not had_lock:
            self._before.discard(LOCK_FILE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._kept:
                for path in list(self._folder.iterdir()):
                    if path.name not in self._before:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        finally:
            self._lock.__exit__(kind, error, trace)
        if not self._kept:
            self._remove_folders()

    def _remove_folders(self) -> None:
        for path in reversed(self._made):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
