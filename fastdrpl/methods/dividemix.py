"""DivideMix: two networks divide the samples for each other and learn semi-supervised (Li, Socher and Hoi 2020).

arXiv 2002.07394, section 3; equations by its numbers.

warmup     both networks: cross entropy to the given labels, with a penalty on confidence if asked   (3.1, equation 2)
codivide   each epoch: a Gaussian mixture of each network's losses splits the samples for the other  (3.1); then
           label co-refinement, label co-guessing and MixMatch, one network after the other          (3.2, 3 to 12)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastdrpl.config import Config, OptimiserConfig
from fastdrpl.errors import NonFiniteError, UserError
from fastdrpl.lazy import (
    CoDivided,
    Matching,
    co_divide,
    draw_matching,
    loss_head,
    matching_loss,
    min_max,
    mix,
    ramp_up,
    refine_labels,
    ring_update,
    share_of_copies,
    sharpen,
    torch,
)
from fastdrpl.loaders.order import SMALLEST_TAIL, Pass
from fastdrpl.looks import loss_column
from fastdrpl.settings import ALPHA, POSITIVE, WEIGHT, Schedule, scale_epoch, setting
from fastdrpl.stages import Demand, Look, Objective, Outcome, Round, Stage, Step, Walk

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_CODE = "published code of DivideMix"
_PAPER = "DivideMix paper 4.2"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """DivideMix. Its numbers are fixed: the original chooses some by the noise, which nobody knows."""

    schedule: Schedule = setting(
        Schedule(epochs=300, milestones=(151,)),
        f"{_PAPER}: 300 epochs, drop after 150; its code runs one more",
    )
    """Length of both stages together, counted from the first epoch of the warm-up."""
    warmup_epochs: int = setting(10, f"{_PAPER} (CIFAR-10)", POSITIVE)
    """How many of these are the warm-up."""
    confidence_penalty: float = setting(0.0, f"{_PAPER}: 1 for asymmetric noise, else 0", WEIGHT)
    """Weight of the penalty on confident predictions in the warm-up. The original takes 1 where it knows that the
    noise is asymmetric; off, as the noise is not known here."""
    p_threshold: float = setting(0.5, f"{_PAPER}; {_CODE}", (0.0, 0.999))
    """A sample is labelled if its posterior of being clean is above this (0.6 in the original for 90 % noise)."""
    average: int = setting(1, f"{_CODE}: 5 for 90 % noise, else 1", POSITIVE)
    """The mixture is fitted to the mean of the normalised losses of this many epochs."""
    rescue: Literal["yes", "no"] = setting("yes", "own: as detect.rescue; the original has none")
    """yes = in the split of an epoch a class without a labelled sample keeps the 1 % of it with the lowest loss."""
    temperature: float = setting(0.5, f"{_PAPER}, T", (0.01, 100.0))
    """Temperature of the sharpening of targets."""
    mixup_alpha: float = setting(4.0, f"{_PAPER}, alpha", ALPHA)
    """Mixing coefficients are drawn from Beta(alpha, alpha), one a step."""
    unlabelled_weight: float = setting(25.0, f"{_CODE}, its default lambda_u", WEIGHT)
    """Weight of the unlabelled samples' squared error. The original chooses it by the noise: CIFAR-10 0 (uniform 20 %,
    asymmetric 40 %), 25 (50 %, 80 %), 50 (90 %); CIFAR-100 25 (20 %), 150 (50 % and more)."""
    rampup: int = setting(16, _CODE, POSITIVE)
    """Epochs after the warm-up over which that weight grows from 0."""
    mixed: Literal["all", "labelled"] = setting("all", "DivideMix paper 3.2")
    """all = labelled and unlabelled samples are mixed and learnt from; labelled = the labelled ones are, with partners
    from both (published code for WebVision)."""
    label_forward: Literal["update", "freeze"] = setting("update", _CODE)
    """Whether the forward passes that make targets update the batch normalisation's statistics."""
    optimiser: Literal["own", "run"] = setting(
        "own", "P V-D: Table III has DivideMix in its own configuration"
    )
    """own = the three numbers below; run = --optimiser.* and --batch_size of the run."""
    lr: float = setting(0.02, _PAPER, WEIGHT)
    """Learning rate."""
    weight_decay: float = setting(5e-4, _PAPER, WEIGHT)
    """Weight decay."""
    batch_size: int = setting(64, f"{_CODE}; {_PAPER} says 128, which is the warm-up's", (2, 2**30))
    """Labelled samples in a step, and as many unlabelled ones; the warm-up takes twice as many."""

    def __post_init__(self) -> None:
        if self.warmup_epochs >= self.schedule.epochs > 0:
            raise UserError(
                f"--dividemix.warmup_epochs is {self.warmup_epochs} of {self.schedule.epochs} epochs: "
                "nothing would be left to co-divide",
                fix="give fewer, or shorten both alike with --epochs_scale",
            )
        if any(milestone <= self.warmup_epochs + 1 for milestone in self.schedule.milestones):
            raise UserError(
                f"--dividemix.schedule.milestones is {self.schedule.milestones}, with a warm-up of "
                f"{self.warmup_epochs} epochs",
                fix=f"give milestones above {self.warmup_epochs + 1}: the rate drops after the warm-up",
            )


_HUNDRED_CLASSES = {"own: as CIFAR-100": {"warmup_epochs": 30}}
_PHOTOS = {
    f"{_CODE} (WebVision)": {
        "schedule": Schedule(epochs=80, milestones=(41,)),
        "warmup_epochs": 1,
        "mixup_alpha": 0.5,
        "unlabelled_weight": 0.0,
        "mixed": "labelled",
        "lr": 0.01,
        "batch_size": 32,
    }
}
RECIPES = {
    "cifar100": {f"{_PAPER} (CIFAR-100)": {"warmup_epochs": 30}},
    "imagenet32": _HUNDRED_CLASSES,
    "imagenet64": _HUNDRED_CLASSES,
    "webvision": _PHOTOS,
    "folder": _PHOTOS,
    "digits": {
        "own: small and quick": {
            "schedule": Schedule(epochs=14, milestones=(12,)),
            "warmup_epochs": 7,
            "rampup": 4,
            "optimiser": "run",
        }
    },
}


def stages(dividemix: Settings, config: Config) -> tuple[Stage, ...]:
    """The warm-up, and the co-divided training that goes on from its weights."""
    scale, warm, total = config.epochs_scale, dividemix.warmup_epochs, dividemix.schedule
    rest = Schedule(epochs=total.epochs - warm, milestones=tuple(m - warm for m in total.milestones))
    optimiser, batch_size = _optimiser(dividemix, config)
    warmup = Stage(
        name="warmup",
        objective=WarmUp(dividemix.confidence_penalty),
        schedule=Schedule(epochs=warm).scaled(scale),
        optimiser=optimiser,
        batch_size=2 * batch_size,
        networks=2,
    )
    each = Look(into="losses", read="loss", of="each", every=1, keep=False)
    of_both = Look(
        into=loss_column("codivide"), read="loss", every=int(config.track == "every"), figures=True
    )
    codivide = Stage(
        name="codivide",
        objective=CoDivide(dividemix, scale_epoch(dividemix.rampup, scale)),
        schedule=rest.scaled(scale),
        optimiser=optimiser,
        batch_size=batch_size,
        networks=2,
        start="previous",
        looks=(dataclasses.replace(each, before=True), each, of_both),
        detector=CoDivided(("normalised", "by_rule"), dividemix.p_threshold),
    )
    return warmup, codivide


def _optimiser(dividemix: Settings, config: Config) -> tuple[OptimiserConfig | None, int]:
    """The original's optimiser and batch size, or None and 0 for the run's."""
    if dividemix.optimiser == "run":
        return None, 0
    own = dataclasses.replace(config.optimiser, lr=dividemix.lr, weight_decay=dividemix.weight_decay)
    return own, dividemix.batch_size


@dataclass(frozen=True)
class WarmUp(Objective):
    """Cross entropy to the given labels, minus the entropy of predictions times its weight (equations 1 and 2)."""

    confidence_penalty: float

    def loss(self, step: Step) -> Outcome:
        """Both networks learn from the same images."""
        heads = [
            loss_head(
                network(step.inputs),
                step.store["given"],
                step.index,
                share=step.share,
                entropy_weight=-self.confidence_penalty,
            )
            for network in step.networks
        ]
        return Outcome(tuple(head.loss for head in heads), heads[0].predicted, heads[0].wanted)


@dataclass(frozen=True)
class CoDivide(Objective):
    """Each network learns from the split that the other's losses give (algorithm 1 of the paper).

    Columns, each with a last dimension of networks: `losses`, which a look brings; `normalised`, to [0, 1]; `clean`,
    the posterior w; `kept`, the samples labelled for the other network; `by_rule`, a count of epochs (`co_divide`).
    """

    dividemix: Settings
    rampup: int

    @property
    def reads(self) -> tuple[str, ...]:
        """Each network's losses, before the first epoch and after each."""
        return ("losses",)

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """The look before the first epoch fills the columns."""
        samples, average = store.samples, self.dividemix.average
        store.put("normalised", torch.zeros(samples, 2))
        store.put("by_rule", torch.zeros(samples, 2, dtype=torch.int32))
        if average > 1:
            store.put_ring("ring", average, 2)

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """A mixture of each network's normalised losses gives w and the split for the other (3.1)."""
        losses = store["losses"].cpu().numpy()
        bad = np.flatnonzero(np.isnan(losses).any(1))
        if len(bad) or not np.isfinite(losses).any(0).all():
            raise NonFiniteError(
                f"the losses of {len(bad) or len(losses)} samples are no finite numbers, so nothing can be divided",
                where=f"sample ids {bad[:10].tolist()}" if len(bad) else None,
                fix="start another --run with a lower learning rate",
            )
        normalised = np.stack([min_max(column) for column in losses.T], 1)
        latest = torch.from_numpy(normalised).float().to(store.device)
        if self.dividemix.average > 1:
            ring_update(store["ring"], epoch_pass.epoch + 1, latest, store["normalised"])
        else:
            store.put("normalised", latest)
        split = co_divide(
            store["normalised"], store["given"], self.dividemix.p_threshold, self.dividemix.rescue == "yes"
        )
        store.put("clean", torch.from_numpy(split.clean))
        store.put("kept", torch.from_numpy(split.kept))
        store.put("by_rule", store["by_rule"] + torch.from_numpy(split.by_rule).to(store.device))

    def rounds(self, store: LabelStore, epoch_pass: Pass) -> tuple[Round, ...]:
        """First network 1 learns from the split of network 2, then network 2 from that of network 1.

        Unlabelled samples that are too few for a batch are left out: the labelled ones are learnt from alone.
        """
        kept = store["kept"].cpu().numpy()
        result = []
        for network in (0, 1):
            labelled = kept[:, 1 - network]
            walks = [Walk(np.flatnonzero(labelled))]
            if np.count_nonzero(~labelled) >= SMALLEST_TAIL:
                walks.append(Walk(np.flatnonzero(~labelled)))
            result.append(tuple(walks))
        return tuple(result)

    def demand(self, classes: int) -> Demand:
        """Two augmentations of a labelled and an unlabelled batch, for one network at a time; four keys."""
        return Demand(images=2, drawn=32)

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Matching:
        """Mixing coefficients, partners, and the weight of the unlabelled term, which grows within each round."""
        labelled = store["kept"].sum(0).tolist()
        first = round(steps * labelled[1] / sum(labelled))  # steps of round 1, by the samples it walks over
        within = torch.cat([torch.arange(n) / max(1, n) for n in (first, steps - first)])
        weight = self.dividemix.unlabelled_weight * ramp_up(epoch_pass.epoch - 1 + within, self.rampup)
        return draw_matching(store, epoch_pass, weight, alpha=self.dividemix.mixup_alpha, copies=4)

    def loss(self, step: Step) -> Outcome:
        """Targets by both networks, then MixMatch with those of one of them (3.2)."""
        own, labelled = step.round, step.batches[0]
        inputs = [batch.images(view) for batch in step.batches for view in (0, 1)]
        with torch.no_grad():
            predictions = [self._predict(step, x) for x in inputs]
            prediction = (predictions[0] + predictions[1]) / 2
            refined = self._refine(step, prediction)
            targets = [refined, refined]
            if len(step.batches) > 1:
                guess = self._guess(step, predictions[2:], inputs[2:])
                targets += [guess, guess]
        loss = self._match(step, torch.cat(inputs), torch.cat(targets), 2 * len(labelled.index))
        losses = (loss, None) if own == 0 else (None, loss)
        return Outcome(losses, prediction.argmax(1), refined.argmax(1))

    def _predict(self, step: Step, inputs: Tensor) -> Tensor:
        """What the network that learns says, in training mode."""
        network = step.networks[step.round]
        forward = network if self.dividemix.label_forward == "update" else network.frozen
        return torch.softmax(forward(inputs).float(), 1)

    def _refine(self, step: Step, prediction: Tensor) -> Tensor:
        """Label co-refinement with the other network's w (equations 3 and 4).

        All labelled samples have w > p_threshold, but those that a rule added: theirs counts as that.
        """
        weight = step.store.read("clean", step.index)[:, 1 - step.round].clamp(min=self.dividemix.p_threshold)
        label = step.store.read("given", step.index)
        return refine_labels(prediction, label, weight, self.dividemix.temperature)

    def _guess(self, step: Step, predictions: list[Tensor], inputs: list[Tensor]) -> Tensor:
        """Label co-guessing: the mean over two augmentations and both networks, sharpened (3.2)."""
        peer = step.networks[1 - step.round]
        theirs = torch.softmax(peer.evaluated(torch.cat(inputs)).float(), 1).chunk(2)
        mean = (predictions[0] + predictions[1] + theirs[0] + theirs[1]) / 4
        return sharpen(mean, self.dividemix.temperature)

    def _match(self, step: Step, inputs: Tensor, targets: Tensor, rows: int) -> Tensor:
        """All rows are mixed with partners from all rows (equations 5 to 8); the first `rows` are labelled."""
        draws: Any = step.draws
        copies = [(2 * step.round + view, batch.index) for batch in step.batches for view in (0, 1)]
        partner, coefficient = draws.partner(copies), draws.coefficient_of(step.number)
        mixed, target = mix(inputs, partner, coefficient), mix(targets, partner, coefficient)
        unlabelled = share_of_copies(step.batches[1].share, 2) if len(step.batches) > 1 else None
        if self.dividemix.mixed == "labelled":
            mixed, target, unlabelled = mixed[:rows], target[:rows], None
        return matching_loss(
            step.networks[step.round](mixed),
            target,
            share_of_copies(step.share, 2),
            unlabelled,
            rows,
            draws.weight_of(step.number),
        )
