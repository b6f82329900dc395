"""Joint optimisation: learn the network and the labels in turn, then train afresh on the labels found.

Tanaka et al., "Joint Optimization Framework for Learning with Noisy Labels" (CVPR 2018), section 3:

relabel   cross entropy + prior and entropy terms; after some epochs on the given labels, every label becomes the mean
          of the network's last predictions, epoch after epoch. It is the first stage of DRPL (`drpl.Relabel`)
retrain   fresh weights, cross entropy to those soft labels as they are in the end

R of the DRPL paper's tables, which takes the weights of both terms that DRPL has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.lazy import Regulariser, loss_head
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import judged_by_loss
from fastdrpl.methods.drpl import Relabel
from fastdrpl.methods.rates import at_rate
from fastdrpl.settings import POSITIVE, SHARE, WEIGHT, Schedule, scale_epoch, setting
from fastdrpl.stages import Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from fastdrpl.store import LabelStore

_DRPL = "P IV-A, of its own first stage; published code of R: 200 epochs, no drop, relabelling after 70"
_WEIGHTS = "C, of DRPL; published code of R: {}, by the noise"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training with relabelling, then training on the labels found."""

    relabel: Schedule = setting(Schedule(epochs=100, milestones=(45, 80)), _DRPL)
    """Stage 1: training with relabelling of all samples."""
    given_epochs: int = setting(40, _DRPL, POSITIVE)
    """How many epochs use the given labels; the network's take over in the next."""
    average: int = setting(10, "published code of R", POSITIVE)
    """A label is the mean prediction of this many epochs."""
    ring: Literal["fp32", "fp16"] = setting("fp32", "C, of DRPL")
    """Type in which those predictions are kept; fp16 halves their memory."""
    prior_weight: float = setting(0.8, _WEIGHTS.format("1.2 (symmetric 70 %), 0.8 (asymmetric 40 %)"), WEIGHT)
    """Weight of the prior term, the pull of the mean prediction to the uniform one (alpha of the paper)."""
    entropy_weight: float = setting(
        0.4, _WEIGHTS.format("0.8 (symmetric 70 %), 0.4 (asymmetric 40 %)"), WEIGHT
    )
    """Weight of the entropy of predictions (beta of the paper)."""
    lr: float = setting(
        0.0, "P IV: one for all; code of R: 0.08 (symmetric 70 %), 0.03 (asymmetric 40 %)", WEIGHT
    )
    """First learning rate of stage 1; 0 = the run's."""
    retrain: Schedule = setting(
        Schedule(epochs=120, milestones=(41, 81)),
        "published code of R: drops after 1/3 and 2/3; P does not say",
    )
    """Stage 2: training of fresh weights on the labels of stage 1."""
    retrain_lr: float = setting(0.0, "P IV: one for all; published code of R: 0.2", WEIGHT)
    """First learning rate of stage 2; 0 = the run's."""
    gamma: float = setting(0.5, "own: as gamma2", SHARE)
    """A label counts as right if its posterior of being noisy is at most this, from the losses after stage 1."""

    def __post_init__(self) -> None:
        if self.given_epochs >= self.relabel.epochs > 0:
            raise UserError(
                f"--joint.given_epochs is {self.given_epochs} of {self.relabel.epochs} epochs: "
                "nothing would be relabelled",
                fix="give fewer, or shorten all stages alike with --epochs_scale",
            )


RECIPES = {
    "cifar10": {
        "P IV-B, of its own first stage": {
            "relabel": Schedule(epochs=130, milestones=(75, 110)),
            "given_epochs": 70,
        }
    },
    "digits": {
        "own: small and quick": {
            "relabel": Schedule(epochs=24, milestones=(14, 20)),
            "given_epochs": 12,
            "retrain": Schedule(epochs=40, milestones=(20, 32)),
        }
    },
}


def stages(joint: Settings, config: Config) -> tuple[Stage, ...]:
    """Relabelling, whose losses decide which labels look wrong, and training on what it found."""
    scale = config.epochs_scale
    regulariser = Regulariser(joint.prior_weight, joint.entropy_weight)
    relabel = Stage(
        name="relabel",
        objective=Relabel(regulariser, scale_epoch(joint.given_epochs, scale), joint.average, joint.ring),
        schedule=joint.relabel.scaled(scale),
        optimiser=at_rate(joint.lr, config),
    )
    retrain = Stage(
        name="retrain",
        objective=Retrain(),
        schedule=joint.retrain.scaled(scale),
        optimiser=at_rate(joint.retrain_lr, config),
        decides=False,
    )
    return tuple(judged_by_loss(stage, joint.gamma, "joint.gamma", config) for stage in (relabel, retrain))


@dataclass(frozen=True)
class Retrain(Objective):
    """Cross entropy to the soft labels that the stage before has left in the column `target`."""

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """The labels stay as they are: what they were made from is not needed any more."""
        store.drop("ring", "prediction")

    def loss(self, step: Step) -> Outcome:
        """Nothing but cross entropy."""
        head = loss_head(step.network(step.inputs), step.store["target"], step.index, share=step.share)
        return Outcome(head.loss, head.predicted, head.wanted)
