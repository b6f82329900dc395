"""INCV: select by cross-validation the labels that hold, then train two networks that teach each other.

Chen, Liao, Chen and Zhang, "Understanding and Utilizing Deep Neural Networks Trained with Noisy Labels" (ICML 2019,
arXiv 1905.05040). With S the selected samples, C the candidates and R the removed ones, an iteration (algorithm 1):

halves      C is divided at random; a fresh network learns from S and one half and predicts the other, then the reverse
selection   S gains the samples whose prediction is their label
rate        under symmetric noise a network agrees with (1 - e)^2 + e^2 / (C - 1) of the labels, which gives e (once)
removal     R gains min(2, e / (1 - e)) times as many of each half as agreed, those of the highest loss

coteach     Co-teaching (Han et al., NeurIPS 2018, arXiv 1804.06872) on S, later joined by C: each of two networks
            learns from the samples of a batch that have a small loss under the other
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastdrpl.config import Config
from fastdrpl.errors import UserError
from fastdrpl.kernels.philox import permutation
from fastdrpl.lazy import HeldOut, label_loss, torch
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.looks import loss_looks
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.settings import POSITIVE, Schedule, scale_epoch, setting
from fastdrpl.stages import Demand, Look, Objective, Outcome, Round, Stage, Step, Walk
from fastdrpl.weighting import lowest, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor

    from fastdrpl.store import LabelStore

_CODE = "published code of INCV"
MOST_REMOVED = 2  # times as many as agreed
HIGH_NOISE = 0.6  # of the estimate: from there on the candidates join after twice as many epochs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Iterated cross-validation, then co-teaching. No noise rate is asked for: it is estimated."""

    iterations: int = setting(4, _CODE, (1, 100))
    """How often the samples that are still undecided are divided into halves; each time trains two networks."""
    half: Schedule = setting(
        Schedule(epochs=50, milestones=(42,)),
        f"{_CODE}; its smaller drops before, of Adam's rate, are left out",
    )
    """Training on the selected samples and one half."""
    epoch: Literal["best", "last"] = setting("best", f"{_CODE}, in its first iterations")
    """Predictions for the other half are those of the epoch that agrees with most of its labels, or of the last one."""
    remove: Literal["yes", "no"] = setting(
        "yes", "INCV paper, for symmetric noise; its code leaves it out for asymmetric"
    )
    """Whether the samples of the highest loss leave the candidates. How many rests on the estimated noise rate, which
    assumes symmetric noise."""
    coteach: Schedule = setting(
        Schedule(epochs=200, milestones=(81, 121, 161)), f"{_CODE}; a fourth drop, by half, is left out"
    )
    """Training of the two final networks."""
    forget_epochs: int = setting(10, f"{_CODE}; co-teaching paper", POSITIVE)
    """Over so many epochs the part of a batch that is left out grows to the expected share of wrong labels."""
    candidates: Literal["yes", "no"] = setting("yes", _CODE)
    """Whether the samples that were neither selected nor removed join the second part of co-teaching."""
    candidates_after: int = setting(
        41, f"{_CODE}; twice as many but one where the estimated noise rate is above 0.6", POSITIVE
    )
    """Epochs of co-teaching on the selected samples alone."""

    def __post_init__(self) -> None:
        if self.candidates == "yes" and self.candidates_after >= self.coteach.epochs > 0:
            raise UserError(
                f"--incv.candidates_after is {self.candidates_after} of {self.coteach.epochs} epochs: "
                "no candidate would be learnt from",
                fix="give fewer, or --incv.candidates no, or shorten all stages alike with --epochs_scale",
            )


RECIPES = {
    "digits": {
        "own: small and quick": {
            "iterations": 2,
            "half": Schedule(epochs=12, milestones=(10,)),
            "coteach": Schedule(epochs=24, milestones=(14, 20)),
            "forget_epochs": 4,
            "candidates_after": 12,
        }
    }
}


def stages(incv: Settings, config: Config) -> tuple[Stage, ...]:
    """Two trainings for each iteration; the agreements after the last decide; then co-teaching."""
    scale, result = config.epochs_scale, []
    schedule = incv.half.scaled(scale)
    prediction = Look(into="probability", read="probability", every=1 if incv.epoch == "best" else 0)
    for iteration in range(1, incv.iterations + 1):
        for half in (0, 1):
            objective = HalfTraining(incv, iteration, half, schedule.epochs)
            name = f"half{iteration}{'ab'[half]}"
            result.append(Stage(name=name, objective=objective, schedule=schedule, looks=(prediction,)))
    last = result.pop()
    looks = (*last.looks, loss_looks(last.name, config)[-1])
    result.append(dataclasses.replace(last, looks=looks, detector=HeldOut(("held_out", "half"))))
    coteaching = CoTeaching(
        incv,
        forget_epochs=scale_epoch(incv.forget_epochs, scale),
        candidates_after=scale_epoch(incv.candidates_after, scale),
        batch_size=config.batch_size,
    )
    result.append(
        Stage(name="coteach", objective=coteaching, schedule=incv.coteach.scaled(scale), networks=2)
    )
    return tuple(result)


@dataclass(frozen=True)
class HalfTraining(CrossEntropy):
    """Cross entropy on the selected samples and one half; after an epoch the other half is looked at.

    Columns: `half` 0 or 1, -1 for samples that were decided before; `selected`, `removed` before this iteration;
    `held_out`, the prediction for each sample when it was last held out. Shared: `noise_rate`; `agreed`, how many of
    the other half did in the best epoch so far.
    """

    incv: Settings
    iteration: int  # from 1
    half: int  # 0 or 1: the one that is learnt from
    epochs: int

    @property
    def reads(self) -> tuple[str, ...]:
        """Predictions for all samples."""
        return ("probability",)

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Decide by the iteration before, divide anew, or estimate the noise rate by the first half."""
        if self.half == 0:
            if self.iteration == 1:
                for name in ("selected", "removed"):
                    store.put(name, torch.zeros(store.samples, dtype=torch.bool))
                store.put("held_out", torch.zeros(store.samples, classes))
                store.put_shared("noise_rate", torch.zeros((), dtype=torch.float64))
            else:
                decide(store, self.incv.remove == "yes")
            candidates = ~(store["selected"] | store["removed"]).cpu().numpy()
            store.put("half", torch.from_numpy(divide(candidates, stage_pass)))
        elif self.iteration == 1:
            other = (store["half"] == 1).cpu().numpy()
            agreement = float(agreeing(store)[other].mean()) if other.any() else 1.0
            rate = noise_rate(agreement, classes)
            store.put_shared("noise_rate", torch.tensor(rate, dtype=torch.float64))
        store.put_shared("agreed", torch.tensor(-1))

    def rounds(self, store: LabelStore, epoch_pass: Pass) -> tuple[Round, ...]:
        """The selected samples and the half; where they are fewer than two, all samples."""
        index = np.flatnonzero((store["selected"] | (store["half"] == self.half)).cpu().numpy())
        return ((Walk(index if index.size > 1 else np.arange(store.samples)),),)

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """Keep the predictions for the other half if more of them agree than in any epoch before."""
        if self.incv.epoch == "last" and epoch_pass.epoch < self.epochs:
            return
        prediction, other = store["probability"], store["half"] == 1 - self.half
        agreed = ((prediction.argmax(1) == store["given"]) & other).sum()
        better = agreed > store.shared("agreed")
        store.put("held_out", torch.where((other & better)[:, None], prediction, store["held_out"]))
        store.put_shared("agreed", torch.maximum(agreed, store.shared("agreed")))


@dataclass(frozen=True)
class Keep:
    """The share of a batch that is learnt from in an epoch."""

    share: Tensor  # () float32


@dataclass(frozen=True)
class CoTeaching(Objective):
    """Each of two networks learns from the samples of a batch that have a small loss under the other.

    Both losses are those of the training pass. With several ranks each chooses in its part of the batch.
    """

    incv: Settings
    forget_epochs: int
    candidates_after: int
    batch_size: int

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Decide by the last iteration; what is left over are candidates. The share to forget: that of wrong labels
        among the selected ones under symmetric noise."""
        decide(store, self.incv.remove == "yes")
        rate = float(store.shared("noise_rate"))
        store.put_shared("forget", torch.tensor(wrong_among_selected(rate, classes), dtype=torch.float32))
        store.put("candidate", ~(store["labelled"] | store["selected"] | store["removed"]))
        store.drop("held_out", "half", "probability", "agreed")

    def rounds(self, store: LabelStore, epoch_pass: Pass) -> tuple[Round, ...]:
        """The labelled samples; later candidates beside them, in proportion, at most half as many as labelled ones."""
        labelled, candidate = (
            np.flatnonzero(store[name].cpu().numpy()) for name in ("labelled", "candidate")
        )
        first = Walk(labelled)
        after = self.candidates_after
        if float(store.shared("noise_rate")) > HIGH_NOISE:
            after = 2 * after - 1
        size = min(candidate.size * self.batch_size // max(1, labelled.size), self.batch_size // 2)
        # With fewer beside them the ranks' parts of a batch would be all but empty.
        enough = min(size, candidate.size) >= max(2, self.batch_size // 8)
        if self.incv.candidates == "no" or epoch_pass.epoch <= after or not enough:
            return ((first,),)
        return ((first, Walk(candidate, size)),)

    def demand(self, classes: int) -> Demand:
        """Candidates beside the labelled ones."""
        return Demand(images=1.5)

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Any:
        """Nothing random: R(t) = 1 - forget min(t / forget_epochs, 1), with t from 0."""
        passed = min(1.0, (epoch_pass.epoch - 1) / self.forget_epochs)
        return Keep(1 - passed * store.shared("forget"))

    def loss(self, step: Step) -> Outcome:
        """The losses of both networks, each over the samples that the other chose."""
        index = torch.cat([batch.index for batch in step.batches])
        inputs = torch.cat([batch.inputs for batch in step.batches])
        label, first = step.store.read("given", index), len(step.index)
        log_p = [torch.log_softmax(network(inputs).float(), 1) for network in step.networks]
        losses = [label_loss(each, label) for each in log_p]
        count = (first * step.draws.share).round().clamp(min=1)
        chosen = [lowest(each.detach(), count) for each in losses]
        one, two = (weighted_mean(losses[k], chosen[1 - k], step.share) for k in (0, 1))
        predicted = (log_p[0].detach().exp() + log_p[1].detach().exp()).argmax(1)
        return Outcome((one, two), predicted[:first], label[:first])


def divide(candidates: np.ndarray, stage_pass: Pass) -> np.ndarray:
    """Random halves of the candidates (N,) bool: (N,) int8, 0 or 1, and -1 for all others; 1 has the odd one."""
    index = np.flatnonzero(candidates)
    order = permutation(dataclasses.replace(stage_pass, purpose=Purpose.halves).stream, index)
    half = np.full(candidates.size, -1, dtype=np.int8)
    half[index[order]] = np.arange(index.size) >= index.size // 2
    return half


def agreeing(store: LabelStore) -> np.ndarray:
    """Whether each sample was predicted as its label says when it was last held out: (N,) bool."""
    return (store["held_out"].argmax(1) == store["given"]).cpu().numpy()


def decide(store: LabelStore, remove: bool) -> None:
    """End an iteration: what agreed is selected; of each half the samples of the highest loss are removed."""
    agrees, half = agreeing(store), store["half"].cpu().numpy()
    selected, removed = (store[name].cpu().numpy().copy() for name in ("selected", "removed"))
    confidence = store["held_out"].gather(1, store["given"][:, None])[:, 0].cpu().numpy()
    for number in (0, 1):
        members = np.flatnonzero(half == number)
        count = removed_count(float(store.shared("noise_rate")), int(agrees[members].sum()))
        least = np.argsort(confidence[members], kind="stable")[:count]
        selected[members[agrees[members]]] = True
        if remove:
            removed[members[least]] = True
    store.put("selected", torch.from_numpy(selected))
    store.put("removed", torch.from_numpy(removed))


def noise_rate(agreement: float, classes: int) -> float:
    """The smallest e with (1 - e)^2 + e^2 / (C - 1) = agreement; (C - 1) / C where no e agrees so seldom."""
    if classes < 2:
        return 0.0
    most = (classes - 1) / classes
    return most * (1 - math.sqrt(max(0.0, 1 - (1 - agreement) / most)))


def wrong_among_selected(rate: float, classes: int) -> float:
    """Share of wrong labels among those that agree under symmetric noise: 1 - label precision."""
    if rate <= 0:
        return 0.0
    return rate**2 / (rate**2 + (classes - 1) * (1 - rate) ** 2)


def removed_count(rate: float, agreed: int) -> int:
    """How many samples of a half are removed, of which `agreed` have agreed."""
    ratio = MOST_REMOVED if rate >= 1 else min(MOST_REMOVED, rate / (1 - rate))
    return int(ratio * agreed + 1e-9)  # 0.6 / 0.4 is 1.49999...
