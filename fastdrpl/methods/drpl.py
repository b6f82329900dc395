"""DRPL: Distribution Robust Pseudo-Labeling (Ortego et al., arXiv 1912.08741, section III).

relabel   train on all samples while relabelling them; clean labels end with a low loss   (III-A)
semi1     drop the labels that look wrong at gamma1, train semi-supervised, look again    (III-B)
semi2     drop the labels that look wrong at gamma2, train the final network              (III-C)
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdrpl.config import Config, DRPLConfig, Schedule, scale_epoch
from fastdrpl.kernels import philox
from fastdrpl.kernels.cpu.philox import words as compiled_words
from fastdrpl.kernels.mixup import mix, partners
from fastdrpl.kernels.pseudo_label import redraw_uniform, ring_mean, ring_write
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.losses import Regulariser, cross_entropy
from fastdrpl.stages import Draws, Outcome, Stage, Step, one_hot
from fastdrpl.store import LabelStore


def stages(config: Config) -> tuple[Stage, ...]:
    """The three stages; each warm-up that is asked for comes before the stage that continues it."""
    drpl, scale = config.drpl, config.epochs_scale
    regulariser = Regulariser(drpl.prior_weight, drpl.entropy_weight)
    relabel = Relabel(regulariser, scale_epoch(drpl.given_epochs, scale), drpl.average)
    semi = SemiSupervised(regulariser, drpl)
    warm = Schedule(epochs=drpl.warmup_epochs).scaled(scale)
    result = [Stage("relabel", relabel, drpl.relabel.scaled(scale), gamma=drpl.gamma1)]
    for name, schedule, splits in (("semi1", drpl.semi1, True), ("semi2", drpl.semi2, False)):
        stage = Stage(name, semi, schedule.scaled(scale), gamma=drpl.gamma2, splits=splits)
        if drpl.warmup == "load":
            result.append(Stage(f"{name}-warmup", semi, warm, samples="labelled"))
            stage = dataclasses.replace(stage, start="previous", guess=True)
        result.append(stage)
    return tuple(result)


@dataclass(frozen=True)
class Relabel:
    """Equation 1: cross entropy to the given labels for q epochs, then to pseudo-labels, with R of equation 2."""

    regulariser: Regulariser
    given_epochs: int  # q
    average: int

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Targets start as the given labels."""
        given = store["given"]
        store.put("target", one_hot(given, classes))
        store.put("prediction", torch.zeros(store.samples, classes))
        store.put("ring", torch.zeros(store.samples, self.average, classes))

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Draws | None:
        """Nothing random beside order and augmentation."""
        return None

    def loss(self, step: Step) -> Outcome:
        """The one forward pass of the step also gives the predictions that become pseudo-labels."""
        log_probability = torch.log_softmax(step.network(step.inputs).float(), 1)
        target = step.store.read("target", step.index)
        loss = step.share.mean(cross_entropy(log_probability, target))
        loss = loss + self.regulariser(log_probability, step.share)
        prediction = log_probability.detach().exp()
        step.store.write("prediction", step.index, prediction)
        return Outcome(loss, prediction.argmax(1), target.argmax(1))

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """From the end of epoch q on, every sample's target is the mean of its last predictions."""
        ring_write(store["ring"], epoch_pass.epoch, store["prediction"])
        if epoch_pass.epoch >= self.given_epochs:
            store.put("target", ring_mean(store["ring"], epoch_pass.epoch))


@dataclass(frozen=True)
class SemiSupervised:
    """Pseudo-labelling with mixup (III-C): labelled samples keep their label, the others learn from predictions."""

    regulariser: Regulariser
    drpl: DRPLConfig

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Labelled samples: their label, for ever. The others: a random class each, or uniform."""
        labelled, given = store["labelled"], store["given"]
        if self.drpl.start_targets == "random":
            word = _words(stage_pass, Purpose.start_targets, store)[0]
            start = one_hot(philox.integers(word, classes), classes)
        else:
            start = torch.full((store.samples, classes), 1.0 / classes, device=store.device)
        store.put("target", torch.where(labelled[:, None], one_hot(given, classes), start))
        store.put("prediction", torch.zeros(store.samples, classes))
        if self.drpl.semi_targets == "mean":
            store.put("ring", torch.zeros(store.samples, self.drpl.average, classes))
        else:
            store.drop("ring")

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Draws | None:
        """A mixing coefficient for each step and a key for each sample."""
        mix_pass = dataclasses.replace(epoch_pass, purpose=Purpose.mix)
        step_word = compiled_words(mix_pass.stream, np.arange(steps))[0]
        coefficient = philox.beta_symmetric(self.drpl.mixup_alpha, step_word)
        keys = _keys(dataclasses.replace(mix_pass, view=1), Purpose.mix, store)
        return Draws(torch.as_tensor(coefficient, dtype=torch.float32, device=store.device), keys)

    def loss(self, step: Step) -> Outcome:
        """An un-mixed pass makes the pseudo-label; the mixed one is learnt from, both with the same weights."""
        if step.draws is None:
            raise ValueError("mixup needs the draws of the epoch")
        forward = step.network if self.drpl.label_forward == "update" else step.frozen_statistics
        with torch.no_grad():
            prediction = torch.softmax(forward(step.inputs).float(), 1)
        coefficient = step.draws.coefficient.index_select(0, step.number[None])[0]
        partner = partners(step.draws.keys.index_select(0, step.index))
        mixed = mix(step.inputs, partner, coefficient)
        log_probability = torch.log_softmax(step.network(mixed).float(), 1)
        target = step.store.read("target", step.index)
        # Cross entropy is linear in the target: mixing targets mixes the two losses.
        loss = step.share.mean(cross_entropy(log_probability, mix(target, partner, coefficient)))
        loss = loss + self.regulariser(log_probability, step.share)
        step.store.write("prediction", step.index, prediction)
        return Outcome(loss, prediction.argmax(1), target.argmax(1))

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """Unlabelled samples take the epoch's predictions, but for a fresh fifth of them, which become uniform."""
        guess = store["prediction"]
        if self.drpl.semi_targets == "mean" and epoch_pass.epoch > 0:
            ring_write(store["ring"], epoch_pass.epoch, guess)
            guess = ring_mean(store["ring"], epoch_pass.epoch)
        unlabelled = ~store["labelled"]
        target = torch.where(unlabelled[:, None], guess, store["target"])
        count = int(round(self.drpl.redraw * int(unlabelled.sum()), 6))  # 0.29 * 100 is 28.999...
        keys = _keys(epoch_pass, Purpose.redraw, store)
        store.put("target", redraw_uniform(target, unlabelled, keys, count))


def _words(pass_: Pass, purpose: Purpose, store: LabelStore) -> tuple[Tensor, ...]:
    """Random words for every sample, on the store's device."""
    stream = dataclasses.replace(pass_, purpose=purpose).stream
    words = compiled_words(stream, np.arange(store.samples))
    return tuple(torch.from_numpy(word).to(store.device) for word in words)


def _keys(pass_: Pass, purpose: Purpose, store: LabelStore) -> Tensor:
    """A sorting key for every sample: (N,) int64 below 2^63."""
    words = _words(pass_, purpose, store)
    return philox.shuffle_keys(words[0], words[1])
