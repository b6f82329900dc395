"""What is printed must not end a command: a stream that shows what it can, and keeps what went wrong."""

import os
import sys
from typing import Any


class ReaderGone(Exception):
    """Who read standard output has seen enough (`| head`). No OSError: rich would end the process for a broken pipe."""


class Steady:
    """A text stream that goes on where its file takes no more (a full disk, a terminal that is gone).

    What cannot be written goes nowhere from then on; `refused` is the first error. A reader that went away counts as
    such an error where `outlives_readers`, else ReaderGone is raised.
    """

    def __init__(self, stream: Any, *, outlives_readers: bool):
        self._stream, self.outlives_readers = stream, outlives_readers
        self.refused: OSError | None = None

    def write(self, text: str) -> int:
        """The characters taken, all of them."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Hand everything on."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # What waits in buffers goes nowhere, at the end of the process too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError) and not self.outlives_readers:
            raise ReaderGone from error
        self.refused = self.refused or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def accept_everything() -> None:
    """Have standard output and standard error take whatever is printed, for every verb, tables and bars included.

    A character that their encoding does not have becomes an escape: a name in a terminal of ASCII or Latin-1, or one
    that is no text at all, must not end a command. Where a stream was closed by the caller, what is meant for it goes
    nowhere; where one takes no more, the work goes on (`refusal` tells).
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Steady):
            continue
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Steady(stream, outlives_readers=name == "stderr"))


def outlive_readers() -> None:
    """Go on with the work of this command when nobody reads its standard output any more."""
    if isinstance(sys.stdout, Steady):
        sys.stdout.outlives_readers = True


def refusal() -> OSError | None:
    """Why standard output did not take all that was printed; None if it did."""
    return sys.stdout.refused if isinstance(sys.stdout, Steady) else None
