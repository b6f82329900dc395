"""What a run says to the person in front of it: plain lines on standard error, the summary on standard output."""

from rich.console import Console

_notes = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line of information."""
    _notes.print(text, markup=False)


def warn(text: str) -> None:
    """A line that should be read."""
    _notes.print(f"warning: {text}", markup=False, style="yellow")


def fail(text: str) -> None:
    """The text of an error."""
    _notes.print(f"error: {text}", markup=False, style="bold red")
