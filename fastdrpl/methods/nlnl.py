"""NLNL: learn first which class an image is not, then from the labels that the network has come to believe.

Kim, Yim, Yun and Kim, "NLNL: Negative Learning for Noisy Labels" (ICCV 2019, arXiv 1908.07387). A label "not y-bar",
with y-bar drawn among the other classes, is right far more often than the given one, so that little is learnt wrongly:

negative    L = -log(1 - p[y-bar]) (equation 2), y-bar drawn anew for each image and epoch
selective   the same on the samples with p[y] >= 1 / C (SelNL)
positive    cross entropy on the samples with p[y] >= 0.5 (SelPL); afterwards those keep their label
pseudo1     a fresh network learns from the labels that were kept
pseudo2     another one learns from the first one's predictions for all samples

p[y] is the mean over the last 10 epochs of what the training passes predicted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.kernels import philox
from fastdrpl.lazy import Confidence, compiled_words, cross_entropy, label_loss, ring_update, torch
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.looks import loss_looks
from fastdrpl.settings import POSITIVE, SHARE, WEIGHT, Schedule, setting
from fastdrpl.stages import Demand, Objective, Outcome, Stage, Step, Write
from fastdrpl.weighting import weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_CODE = "published code of NLNL"
SMALLEST = 1e-5  # of 1 - p (published code): its logarithm stays finite
FEW_CLASSES, FOR_EACH = 10, 1.1  # one complementary label up to 10 classes, beyond that 1.1 for each class


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Negative learning, selection, and pseudo-labelling from fresh networks: 3,120 epochs in all as published."""

    negative: Schedule = setting(Schedule(epochs=720), _CODE)
    """First stage: negative learning on all samples."""
    selective: Schedule = setting(Schedule(epochs=720), _CODE)
    """Second stage: negative learning on the samples whose label is not less likely than chance."""
    positive: Schedule = setting(Schedule(epochs=720), _CODE)
    """Third stage: learning the labels that the network believes."""
    pseudo1: Schedule = setting(Schedule(epochs=480, milestones=(193, 289)), _CODE)
    """Fourth stage: a fresh network on the labels that were kept."""
    pseudo2: Schedule = setting(Schedule(epochs=480, milestones=(193, 289)), _CODE)
    """Last stage: a fresh network on the fourth one's predictions."""
    lr: float = setting(0.02, _CODE, WEIGHT)
    """Learning rate of the first three stages, 0 = the run's; those from fresh networks take the run's."""
    complementary: int = setting(0, f"{_CODE}: 1 for 10 classes, 110 for 100", (0, 10_000))
    """Complementary labels drawn for an image in each epoch; 0 = one up to 10 classes, beyond that 1.1 a class."""
    average: int = setting(10, _CODE, POSITIVE)
    """Probabilities and pseudo-labels are means over this many epochs."""
    believed: float = setting(0.5, _CODE, SHARE)
    """The third stage learns the labels whose mean probability is at least this."""
    keep: float = setting(0.5, _CODE, SHARE)
    """After it a label counts as right if its mean probability is at least this."""
    class_weights: Literal["balanced", "none"] = setting("balanced", _CODE)
    """balanced = a sample weighs as many times as the largest class is larger than that of its label."""


RECIPES = {
    "digits": {
        "own: small and quick": {
            "negative": Schedule(epochs=24),
            "selective": Schedule(epochs=8),
            "positive": Schedule(epochs=8),
            "pseudo1": Schedule(epochs=12, milestones=(8, 11)),
            "pseudo2": Schedule(epochs=16, milestones=(10, 14)),
            "average": 5,
            "complementary": 11,
            "class_weights": "none",
        }
    }
}


def stages(nlnl: Settings, config: Config) -> tuple[Stage, ...]:
    """Three stages of one network, of which the last decides, and two from fresh networks."""
    scale = config.epochs_scale
    optimiser = dataclasses.replace(config.optimiser, lr=nlnl.lr) if nlnl.lr else None
    negative, selective, positive = (
        schedule.scaled(scale) for schedule in (nlnl.negative, nlnl.selective, nlnl.positive)
    )
    before = negative.epochs + selective.epochs
    loss = loss_looks("positive", config)[-1]
    return (
        Stage(name="negative", objective=Negative(nlnl, 0), schedule=negative, optimiser=optimiser),
        Stage(
            name="selective",
            objective=Negative(nlnl, negative.epochs),
            schedule=selective,
            optimiser=optimiser,
            start="previous",
        ),
        Stage(
            name="positive",
            objective=Positive(nlnl, before),
            schedule=positive,
            optimiser=optimiser,
            start="previous",
            looks=(loss,),
            detector=Confidence(("belief",), nlnl.keep, ("nlnl.keep",)),
        ),
        Stage(name="pseudo1", objective=LearnKept(nlnl), schedule=nlnl.pseudo1.scaled(scale)),
        Stage(name="pseudo2", objective=LearnPredicted(nlnl), schedule=nlnl.pseudo2.scaled(scale)),
    )


@dataclass(frozen=True)
class Believing(Objective):
    """Keeps `belief` (N,): mean p[y] of the last epochs' training passes, across the first three stages.

    `seen` (N,) holds this epoch's, `ring` (N, average, 1) the last epochs'.
    """

    nlnl: Settings
    before: int  # epochs of the stages before

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Nothing is believed at first; class weights as of the given labels."""
        if classes < 2:
            raise UserError(
                "negative learning needs at least 2 classes, the data have one", fix="use another --method"
            )
        if self.before == 0:
            for name in ("seen", "belief"):
                store.put(name, torch.zeros(store.samples))
            store.put_ring("ring", self.nlnl.average, 1)
            everyone = torch.ones(store.samples, dtype=torch.bool, device=store.device)
            store.put_shared("class_weight", class_weights(self.nlnl, store["given"], everyone, classes))

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """The epoch's p[y] takes part in the mean."""
        mean = torch.empty(store.samples, 1, device=store.device)
        ring_update(store["ring"], self.before + epoch_pass.epoch, store["seen"][:, None], mean)
        store.put("belief", mean[:, 0])

    def outcome(self, step: Step, log_p: Tensor, loss: Tensor) -> Outcome:
        """What both kinds of learning return: p[y] is written down."""
        given = step.store.read("given", step.index)
        confidence = log_p.detach().gather(1, given[:, None])[:, 0].exp()
        seen = Write("seen", step.index, confidence)
        return Outcome(loss, log_p.detach().argmax(1), given, (seen,))


@dataclass(frozen=True)
class Complements:
    """Complementary labels of an epoch."""

    labels: Tensor  # (N, k) int32


@dataclass(frozen=True)
class Negative(Believing):
    """Negative learning (equation 2); after the first stage on the samples with p[y] >= 1 / C alone."""

    def demand(self, classes: int) -> Demand:
        """The complementary labels."""
        return Demand(drawn=4 * complements(self.nlnl.complementary, classes))

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Any:
        """Complementary labels for all samples."""
        classes = len(store.shared("class_weight"))
        count = complements(self.nlnl.complementary, classes)
        stream_pass = dataclasses.replace(epoch_pass, purpose=Purpose.complement)
        return Complements(draw_complements(stream_pass, store["given"], classes, count))

    def loss(self, step: Step) -> Outcome:
        """Sum over the complementary labels, mean over the samples that take part."""
        log_p = torch.log_softmax(step.network(step.inputs).float(), 1)
        given = step.store.read("given", step.index)
        drawn = step.draws.labels.index_select(0, step.index).long()
        each = negative_loss(log_p, drawn) * step.store.shared("class_weight")[given]
        taking_part = torch.ones_like(each)
        if self.before > 0:
            taking_part = (step.store.read("belief", step.index) >= 1 / log_p.shape[1]).float()
        return self.outcome(step, log_p, weighted_mean(each, taking_part, step.share))


@dataclass(frozen=True)
class Positive(Believing):
    """Selective positive learning: cross entropy on the samples whose label is believed."""

    def loss(self, step: Step) -> Outcome:
        """Mean over the believed ones, by their class weights."""
        log_p = torch.log_softmax(step.network(step.inputs).float(), 1)
        given = step.store.read("given", step.index)
        believed = step.store.read("belief", step.index) >= self.nlnl.believed
        weight = step.store.shared("class_weight")[given] * believed
        return self.outcome(step, log_p, weighted_mean(label_loss(log_p, given), weight, step.share))


@dataclass(frozen=True)
class LearnKept(Objective):
    """Cross entropy on the labels that were kept; the predictions for all samples are written down."""

    nlnl: Settings

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Class weights as of the kept labels."""
        store.drop("seen", "belief")
        weight = class_weights(self.nlnl, store["given"], store["labelled"], classes)
        store.put_shared("class_weight", weight)
        store.put("prediction", torch.zeros(store.samples, classes))
        store.put("target", torch.zeros(store.samples, classes))
        store.put_ring("ring", self.nlnl.average, classes)

    def loss(self, step: Step) -> Outcome:
        """Mean over the kept ones, by their class weights."""
        log_p = torch.log_softmax(step.network(step.inputs).float(), 1)
        given = step.store.read("given", step.index)
        weight = step.store.shared("class_weight")[given] * step.store.read("labelled", step.index)
        loss = weighted_mean(label_loss(log_p, given), weight, step.share)
        seen = Write("prediction", step.index, log_p.detach().exp())
        return Outcome(loss, seen.values.argmax(1), given, (seen,))

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """Targets of the last stage: the mean of the last epochs' predictions."""
        ring_update(store["ring"], epoch_pass.epoch, store["prediction"], store["target"])


@dataclass(frozen=True)
class LearnPredicted(Objective):
    """Cross entropy of all samples to the predictions that the stage before left, which stay as they are."""

    nlnl: Settings

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Class weights as of the most likely classes."""
        store.drop("ring", "prediction")
        everyone = torch.ones(store.samples, dtype=torch.bool, device=store.device)
        weight = class_weights(self.nlnl, store["target"].argmax(1), everyone, classes)
        store.put_shared("class_weight", weight)

    def loss(self, step: Step) -> Outcome:
        """Mean over the batch of weighted cross entropies; the weights are not divided out."""
        log_p = torch.log_softmax(step.network(step.inputs).float(), 1)
        target = step.store.read("target", step.index)
        wanted = target.argmax(1)
        each = cross_entropy(log_p, target) * step.store.shared("class_weight")[wanted]
        return Outcome(step.share.mean(each), log_p.detach().argmax(1), wanted)


def negative_loss(log_p: Tensor, complementary: Tensor) -> Tensor:
    """-sum_k log(1 - p[y-bar_k]) (equation 2): (b, C), (b, k) int64 -> (b,)."""
    return -(1 - log_p.exp()).clamp(min=SMALLEST).log().gather(1, complementary).sum(1)


def complements(wanted: int, classes: int) -> int:
    """How many complementary labels an image has: as many as wanted, or (0) as the number of classes asks for."""
    return wanted or (1 if classes <= FEW_CLASSES else round(FOR_EACH * classes))


def draw_complements(pass_: Pass, given: Tensor, classes: int, count: int) -> Tensor:
    """Uniform draws, with replacement, among the classes that are not the given one: (N,) -> (N, count) int32."""
    index, offsets = np.arange(len(given)), []
    for view in range(-(-count // 4)):  # four words each
        words = compiled_words(dataclasses.replace(pass_, view=view).stream, index)
        offsets += [philox.integers(word, classes - 1).astype(np.int32) for word in words]
    offset = torch.from_numpy(np.stack(offsets[:count], 1)).to(given.device)
    return (given[:, None] + 1 + offset).remainder(classes).int()


def class_weights(nlnl: Settings, label: Tensor, among: Tensor, classes: int) -> Tensor:
    """Size of the largest class over that of each class, among the chosen samples; 0 for a class without any: (C,).

    `label` (N,) int64, `among` (N,) bool. 1 for all where no weights are wanted.
    """
    if nlnl.class_weights == "none":
        return torch.ones(classes, device=label.device)
    size = torch.bincount(label[among], minlength=classes).float()
    return torch.where(size > 0, size.max() / size.clamp(min=1), torch.zeros_like(size))
