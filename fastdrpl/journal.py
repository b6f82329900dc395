"""The journal of a run: metrics.jsonl, one record a line, cut back to the checkpoint on resume."""

import contextlib
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastdrpl.files import explain_write_error
from fastdrpl.loaders.errors import DataError


class Journal:
    """Appends records to a file of JSON lines. One writer at a time; readers may read at any moment.

    Opening makes the file (its folder must exist), or goes on with it: a last line that a killed process
    left unfinished is cut. Raises UserError naming the file if it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._length = _whole_lines(self._descriptor)
                os.ftruncate(self._descriptor, self._length)
            except OSError:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise explain_write_error(error, self.path) from error

    @property
    def length(self) -> int:
        """Bytes of whole records so far."""
        return self._length

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record as one line, visible to readers at once.

        Numbers that are not finite are stored as null, as strict JSON asks. Raises TypeError for what JSON
        cannot hold, UserError if the disk refuses; the journal then still ends with a whole line.
        """
        data = (json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._length + written)
        except OSError as error:
            with contextlib.suppress(
                OSError
            ):  # a disk that refuses this too: opening cuts the unfinished line
                os.ftruncate(self._descriptor, self._length)
            raise explain_write_error(error, self.path) from error
        self._length += len(data)

    def sync(self) -> int:
        """Waits until all records are on the disk and returns the length: what a checkpoint stores."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise explain_write_error(error, self.path) from error
        return self._length

    def truncate(self, length: int) -> None:
        """Cuts the journal back to a length that `sync` returned, when a run goes on from a checkpoint.

        Raises DataError if the journal is shorter, or if no record ends there: then it is not the one the
        checkpoint saw.
        """
        if length < 0 or length > self._length or not _ends_line(self._descriptor, length):
            raise DataError(
                f"{self.path.name} does not fit the checkpoint: it has {self._length} bytes and should hold"
                f" whole records up to byte {length}",
                where=str(self.path),
                fix="put the file back that this run wrote, or start again in another run folder",
            )
        try:
            os.ftruncate(self._descriptor, length)
        except OSError as error:
            raise explain_write_error(error, self.path) from error
        self._length = length

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole records of a journal, also while it is being written; empty if there is no such file.

    Raises DataError naming file and line for a line that is not a record.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path} line {number} is not JSON: {error}", where=f"{path}:{number}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path} line {number} is not a record", where=f"{path}:{number}")
        records.append(record)
    return records


def _whole_lines(descriptor: int) -> int:
    """Length up to and including the last line end; reads backwards, whatever the size of the file."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        position = os.pread(descriptor, end - start, start).rfind(b"\n")
        if position >= 0:
            return start + position + 1
        end = start
    return 0


def _ends_line(descriptor: int, length: int) -> bool:
    return length == 0 or os.pread(descriptor, 1, length - 1) == b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class NoJournal:
    """What ranks other than the first write to."""

    def append(self, record: dict[str, Any]) -> None: ...
    def truncate(self, length: int) -> None: ...
    def sync(self) -> int:
        return 0

    def __enter__(self) -> "NoJournal":
        return self

    def __exit__(self, *exception: object) -> None: ...
