"""The methods: each is a function of the configuration that returns stages."""

from collections.abc import Callable

from fastdrpl.config import Config
from fastdrpl.methods import ce, drpl
from fastdrpl.stages import Stage

METHODS: dict[str, Callable[[Config], tuple[Stage, ...]]] = {
    "drpl": drpl.stages,
    "ce": ce.stages,
}


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages that a configuration asks for."""
    return METHODS[config.method](config)
