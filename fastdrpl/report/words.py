"""Figures and findings in words, the same on the console and on the page."""

from fastdrpl.report.facts import RunFacts


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in per cent; a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}%}"


def count(value: int | None) -> str:
    """A whole number with separators; a dash where it is not known."""
    return "-" if value is None else f"{value:,}"


def plural(number: int, noun: str) -> str:
    """`1 stage`, `2 stages`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def fraction(value: float | None, digits: int) -> str:
    """A number; a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def verdict(facts: RunFacts) -> str:
    """How many labels look wrong, in one sentence without its full stop."""
    text = f"{facts.suspects:,} of {facts.samples:,} labels look wrong ({facts.suspects / facts.samples:.1%})"
    return text if facts.noise_rate is None else f"{text}; {facts.noise_rate:.1%} really are"


def trial_note(facts: RunFacts) -> str | None:
    """What is to be said of a run whose schedules were not as long as the method's."""
    if facts.epochs_scale == 1:
        return None
    return (
        f"Every schedule was {facts.epochs_scale:g} times as long as the method's (--epochs_scale): a trial."
    )
