"""torch.compile of the networks' forward pass: what is compiled, where it is kept, and what happens if it fails.

One function is compiled for all networks of a process, with the network as its argument. Parameters and statistics
are inputs of the compiled code: new networks of the same architecture, as each stage has them, use it as it is. What
the compiler made is kept on disk for the next run too. Names in checkpoints stay as they are.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastdrpl.console import warn
from fastdrpl.modes import Ladder, first_line

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
MOST_VARIANTS = 64  # of one network: with and without gradient, frozen or not, each size of batch


@dataclass
class Switch:
    """Whether the networks of a step run compiled; evaluation and tail batches never do."""

    on: bool = False


def plain_forward(network: nn.Module, inputs: Tensor) -> Tensor:
    """The forward pass of the network's class, whatever stands in its place."""
    return cast(Tensor, type(network).forward(network, inputs))


def put_compiled(network: nn.Module, switch: Switch, ladder: Ladder) -> None:
    """Have a network run compiled while it trains and the switch is on.

    Where the compiler fails, the run steps down to eager steps: the very same call is done again without it. Raises
    `UserError` then if compiled steps were asked for by name.
    """

    def forward(inputs: Tensor) -> Tensor:
        if not (switch.on and network.training):
            return plain_forward(network, inputs)
        try:
            return _compiled()(network, inputs)
        except _errors_of_the_compiler() as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            switch.on = False
            ladder.step_down("eager", f"torch.compile failed: {_what_failed(error)}")
            return plain_forward(network, inputs)

    network.forward = forward  # type: ignore[method-assign]


def _errors_of_the_compiler() -> tuple[type[Exception], ...]:
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit, RuntimeError)


def _what_failed(error: Exception) -> str:
    return first_line(getattr(error, "inner_exception", error))


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    """`plain_forward`, compiled.

    As one graph: where torch finds that it cannot, or has compiled more variants than it may, it raises instead of
    running slowly in silence.
    """
    keep_cache()
    import torch._dynamo

    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, MOST_VARIANTS)
    return torch.compile(plain_forward, dynamic=False, fullgraph=True)


def cache_folder() -> Path:
    """Where compiled code is kept between runs: in the user's cache folder, unless torch is told otherwise."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says that a relative path there is to be ignored.
    place = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return place / "fastdrpl" / "inductor"


def keep_cache() -> None:
    """Have torch keep compiled code in `cache_folder` instead of in /tmp. Says so where that is not writable."""
    if CACHE_VARIABLE in os.environ:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        warn(f"compiled code is kept in the folder for temporary files only: {error}")
        return
    os.environ[CACHE_VARIABLE] = str(folder)


def rehearse(network: nn.Module, switch: Switch, ladder: Ladder, inputs: Tensor) -> None:
    """Compile a network's training step by taking one; the network is left as it was.

    A compiler that fails has the run step down before it begins, or `UserError` raised (`Ladder.step_down`).
    """
    kept = [buffer.clone() for buffer in network.buffers()]
    switch.on = True
    try:
        loss = network(inputs).sum()
        try:
            loss.backward()  # what cannot be compiled together with the forward pass is compiled here
        except _errors_of_the_compiler() as error:
            ladder.step_down("eager", f"torch.compile failed: {_what_failed(error)}")
    finally:
        switch.on = False
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), kept, strict=True):
                buffer.copy_(value)
