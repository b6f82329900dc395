"""Plain cross entropy on the given labels: what happens when nobody looks at them."""

from dataclasses import dataclass

from fastdrpl.config import Config
from fastdrpl.loaders.order import Pass
from fastdrpl.losses import loss_head
from fastdrpl.stages import Draws, Outcome, Stage, Step
from fastdrpl.store import LabelStore


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage on the given labels; its final losses are used for detection."""
    return (
        Stage(
            name="ce",
            objective=CrossEntropy(),
            schedule=config.ce.schedule.scaled(config.epochs_scale),
            gamma=config.ce.gamma,
        ),
    )


@dataclass(frozen=True)
class CrossEntropy:
    """Mean of -log p[y] over the batch."""

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Nothing beside `given`."""

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Draws | None:
        """Nothing random."""
        return None

    def loss(self, step: Step) -> Outcome:
        """Cross entropy to the given labels."""
        head = loss_head(step.network(step.inputs), step.store["given"], step.index, share=step.share)
        return Outcome(head.loss, head.predicted, head.wanted)

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """Labels never change."""
