"""A stage at a learning rate of its own."""

import dataclasses

from fastdrpl.config import Config, OptimiserConfig


def at_rate(rate: float, config: Config) -> OptimiserConfig | None:
    """The run's optimiser at another first learning rate; 0 = the run's as it is."""
    return dataclasses.replace(config.optimiser, lr=rate) if rate else None
