"""How the steps of a run are carried out, chosen once: captured, compiled or eager, and why not a better one.

captured   the whole step as one CUDA graph, its networks compiled
compiled   torch.compile of the networks' forward and backward pass
eager      operation after operation

`--engine.mode auto` stands on the best that can be had and steps down, saying so, where one cannot. A mode that was
asked for by name is had or refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdrpl.errors import UserError

Mode = Literal["eager", "compiled", "captured"]
MODES: tuple[Mode, ...] = ("eager", "compiled", "captured")  # each needs what those before it need


def _no_one_hears(_: Any) -> None:
    """Of ranks that say nothing."""


@dataclass
class Ladder:
    """The mode that a run stands on. It never goes up."""

    mode: Mode = "eager"
    named: bool = False  # asked for by name: no other will do
    reasons: list[str] = field(default_factory=list)  # of each step down
    say: Callable[[str], None] = _no_one_hears
    note: Callable[[], None] | None = None  # keeps what has changed in the manifest

    def step_down(self, to: Mode, cause: str) -> None:
        """Go on in a lower mode. Raises `UserError` where this one was asked for by name."""
        if MODES.index(to) >= MODES.index(self.mode):
            return
        if self.named:
            raise UserError(
                f"--engine.mode {self.mode} cannot be had: {cause}",
                fix=f"leave it out or give --engine.mode {to}, or mend the cause",
            )
        reason = f"no {self.mode} steps: {cause}"
        self.mode = to
        self.reasons.append(reason)
        self.say(f"{reason}; steps are {to} from here on")
        if self.note is not None:
            self.note()


def build_ladder(
    asked: Literal["auto", "eager", "compiled", "captured"],
    before: Mode | None,
    *,
    cuda: bool,
    precision: str,
    world: int,
    sync_bn: bool,
    debugging: bool,
    say: Callable[[str], None],
) -> Ladder:
    """The best mode that device, precision and ranks allow; `before`: that of a run that goes on, which is kept.

    Raises `UserError` for a mode that was asked for by name and cannot be had.
    """
    best: Mode = "captured" if cuda else "eager"  # compiling on a CPU takes longer than it saves, as a rule
    mode = (before or best) if asked == "auto" else asked
    ladder = Ladder(mode, named=asked != "auto", say=say)
    if sync_bn:
        ladder.step_down("eager", "--engine.sync_bn has every layer wait for the other ranks")
    if debugging:
        ladder.step_down("eager", "FASTDRPL_KERNELS_DEBUG=1 looks at what each kernel is given")
    if not cuda and ladder.mode == "captured":
        ladder.step_down("compiled" if asked != "auto" else "eager", "CUDA graphs need a GPU")
    if world > 1 and ladder.mode == "captured":
        ladder.step_down("compiled", f"{world} ranks add up their gradients within a step")
    if precision == "fp16" and ladder.mode == "captured":
        ladder.step_down("compiled", "the loss scale of fp16 is kept by the host")
    return ladder


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line of a terminal."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
