"""Timing several things fairly: in turns, so that all of them see the same machine."""

import time
from collections.abc import Callable, Mapping


def measure_in_turns(
    functions: Mapping[str, Callable[[], object]], *, warmup: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds per call of several functions, one call of each in turn, after `warmup` calls that do not count.

    On an accelerator the function itself must wait for the end of its work.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds
