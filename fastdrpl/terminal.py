"""What is printed must not end a command: a stream that shows what it can, and keeps what went wrong."""

import os
import sys
from typing import Any


class Steady:
    """A text stream that goes on where its file takes no more (a full disk, a terminal that is gone).

    What cannot be written goes nowhere from then on; `refused` is the first error. With `pipes` a reader that went
    away counts as such an error, else BrokenPipeError is raised as ever.
    """

    def __init__(self, stream: Any, *, pipes: bool):
        self._stream, self._pipes = stream, pipes
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
        if isinstance(error, BrokenPipeError) and not self._pipes:
            raise error
        self.refused = self.refused or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(
            nowhere, self._stream.fileno()
        )  # what waits in buffers goes there, at the end of the process too
        os.close(nowhere)

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
        setattr(sys, name, Steady(stream, pipes=name == "stderr"))


def refusal() -> OSError | None:
    """Why standard output did not take all that was printed; None if it did."""
    return sys.stdout.refused if isinstance(sys.stdout, Steady) else None
