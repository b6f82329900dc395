"""PENCIL: labels are distributions that learn along with the network.

Yi and Wu, "Probabilistic End-to-end Noise Correction for Learning with Noisy Labels" (CVPR 2019, arXiv 1903.07788):

backbone     cross entropy on the given labels y, at a constant learning rate
correction   y^d = softmax(label logits), which start as K y. Network and label logits learn from
             L = L_c + alpha L_o + beta L_e with L_c = KL(p || y^d), L_o = -log y^d[y], L_e = H(p);
             label logits -= lambda dL / d label logits
finetune     y^d stays as it is, and the network learns from L_c alone

Where the network is sure of a class, y^d comes to rest at (p + alpha y) / (1 + alpha): below 1, alpha lets labels turn.

A label counts as right if y^d still gives it at least `threshold`. P (PENCIL, PEN) of the DRPL paper's tables.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastdrpl.config import Config, OptimiserConfig
from fastdrpl.lazy import Confidence, entropy, label_loss, one_hot, torch
from fastdrpl.loaders.order import Pass
from fastdrpl.looks import loss_looks
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.rates import at_rate
from fastdrpl.settings import SHARE, WEIGHT, Schedule, setting
from fastdrpl.stages import Learnt, Objective, Outcome, Stage, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_CODE = "published code of PENCIL"
_MEMORY = "PENCIL paper, as remembered: not checked"
LABELS = "label_logits"  # column (N, C): y^d before its softmax
CONFIDENCE = "confidence"  # column (N,): y^d[y]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Network and label distributions learn together (PENCIL)."""

    backbone: Schedule = setting(Schedule(epochs=70), _CODE)
    """Stage 1: cross entropy on the given labels."""
    correction: Schedule = setting(Schedule(epochs=130), _CODE)
    """Stage 2: network and labels."""
    finetune: Schedule = setting(
        Schedule(epochs=120, milestones=(41, 81)), f"{_CODE}: drops after a third and two thirds"
    )
    """Stage 3: the network alone, on the labels learnt."""
    lr: float = setting(0.06, _CODE, WEIGHT)
    """Learning rate of stages 1 and 2; 0 = the run's."""
    finetune_lr: float = setting(0.2, f"{_CODE}: lr2", WEIGHT)
    """First learning rate of stage 3; 0 = the run's."""
    label_rate: float = setting(60.0, f"{_CODE}: lambda = 600 for losses divided by 10 classes", WEIGHT)
    """Learning rate of the label logits, lambda, on the gradient of the batch's mean loss: it goes with the batch
    size."""
    label_scale: float = setting(10.0, f"{_CODE}: K", WEIGHT)
    """A label starts as softmax(label_scale * one-hot)."""
    compatibility_weight: float = setting(0.4, f"{_CODE}: alpha", WEIGHT)
    """Weight of L_o, which holds a learnt label at the given one."""
    entropy_weight: float = setting(0.1, f"{_CODE}: beta", WEIGHT)
    """Weight of L_e, the entropy of predictions."""
    compat: Literal["corrected", "published"] = setting(
        "corrected", "own: with those of the published code, labels hardly turn"
    )
    """published = as the published code: L_c and L_e are divided by the number of classes and lambda is multiplied
    by it, L_o takes the softmax twice, and stage 3 stands still from its first milestone on, as a division in whole
    numbers makes its learning rate 0."""
    threshold: float = setting(0.5, "own: more likely right than not", SHARE)
    """A label counts as right if its learnt distribution gives it at least this probability."""


RECIPES = {
    "cifar100": {
        _MEMORY: {
            "lr": 0.35,
            "label_rate": 100.0,
            "compatibility_weight": 0.1,
            "entropy_weight": 0.4,
        }
    },
    "digits": {
        "own: small and quick": {
            "backbone": Schedule(epochs=16),
            "correction": Schedule(epochs=24),
            "finetune": Schedule(epochs=24, milestones=(9, 17)),
        }
    },
}


def stages(pencil: Settings, config: Config) -> tuple[Stage, ...]:
    """Three stages, each from the weights of the one before."""
    scale = config.epochs_scale
    slow, fast = at_rate(pencil.lr, config), at_rate(pencil.finetune_lr, config)
    if pencil.compat == "published":
        fast = dataclasses.replace(fast or config.optimiser, drop=0.0)  # lr2 // 10
    last = _stage("finetune", FineTuning(pencil), pencil.finetune.scaled(scale), fast)
    detector = Confidence(reads=(CONFIDENCE,), threshold=pencil.threshold, adjustable=("pencil.threshold",))
    return (
        dataclasses.replace(
            _stage("backbone", CrossEntropy(), pencil.backbone.scaled(scale), slow), start="fresh"
        ),
        _stage("correction", Correction(pencil), pencil.correction.scaled(scale), slow),
        dataclasses.replace(last, looks=loss_looks("finetune", config)[-1:], detector=detector),
    )


def _stage(name: str, objective: Objective, schedule: Schedule, optimiser: OptimiserConfig | None) -> Stage:
    return Stage(name=name, objective=objective, schedule=schedule, optimiser=optimiser, start="previous")


@dataclass(frozen=True)
class Correction(Objective):
    """L_c + alpha L_o + beta L_e, of which the labels take their own, much larger steps."""

    pencil: Settings

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Label logits start as K times the given label."""
        store.put(LABELS, self.pencil.label_scale * one_hot(store["given"], classes))

    def loss(self, step: Step) -> Outcome:
        """One forward pass; the rows of the batch learn with the network."""
        logits = step.network(step.inputs)
        rows = step.store.read(LABELS, step.index).requires_grad_()
        given = step.store.read("given", step.index)
        loss_of_each = correction_loss(torch.log_softmax(logits.float(), 1), rows, given, self.pencil)
        factor = logits.shape[1] if self.pencil.compat == "published" else 1
        learnt = Learnt(LABELS, step.index, rows, factor * self.pencil.label_rate)
        return Outcome(
            step.share.mean(loss_of_each),
            logits.detach().argmax(1),
            rows.detach().argmax(1),
            learnt=(learnt,),
        )


@dataclass(frozen=True)
class FineTuning(Objective):
    """L_c alone, to the labels learnt."""

    pencil: Settings

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """What the learnt labels say of the given ones, for the detector."""
        learnt = torch.softmax(store[LABELS], 1)
        store.put(CONFIDENCE, learnt.gather(1, store["given"][:, None])[:, 0])

    def loss(self, step: Step) -> Outcome:
        """One forward pass."""
        logits = step.network(step.inputs)
        rows = step.store.read(LABELS, step.index)
        loss_of_each = divergence(torch.log_softmax(logits.float(), 1), torch.log_softmax(rows, 1))
        if self.pencil.compat == "published":
            loss_of_each = loss_of_each / logits.shape[1]
        return Outcome(step.share.mean(loss_of_each), logits.detach().argmax(1), rows.argmax(1))


def correction_loss(log_probability: Tensor, rows: Tensor, given: Tensor, pencil: Settings) -> Tensor:
    """L of each sample: log p (b, C), label logits (b, C), y (b,) -> (b,)."""
    log_label = torch.log_softmax(rows, 1)
    own, held = (
        divergence(log_probability, log_label) + pencil.entropy_weight * entropy(log_probability),
        log_label,
    )
    if pencil.compat == "published":
        own, held = own / rows.shape[1], torch.log_softmax(log_label.exp(), 1)
    return own + pencil.compatibility_weight * label_loss(held, given)


def divergence(log_probability: Tensor, log_label: Tensor) -> Tensor:
    """L_c = KL(p || y^d), the prediction first: (b, C), (b, C) -> (b,)."""
    return (log_probability.exp() * (log_probability - log_label)).sum(1)
