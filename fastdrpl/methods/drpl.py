"""DRPL: Distribution Robust Pseudo-Labeling (Ortego et al., arXiv 1912.08741, section III).

relabel   train on all samples while relabelling them; clean labels end with a low loss   (III-A)
semi1     drop the labels that look wrong at gamma1, train semi-supervised, look again    (III-B)
semi2     drop the labels that look wrong at gamma2, train the final network              (III-C)
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from fastdrpl.config import Config, DRPLConfig, Schedule, scale_epoch
from fastdrpl.kernels import philox
from fastdrpl.kernels.cpu.philox import words as compiled_words
from fastdrpl.kernels.mixup import partners
from fastdrpl.kernels.pseudo_label import renew_targets, ring_update, sample_keys
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.losses import Regulariser, loss_head, predict
from fastdrpl.stages import Draws, Outcome, Stage, Step, one_hot
from fastdrpl.store import LabelStore

RING_TYPES = {"fp32": torch.float32, "fp16": torch.float16}


def stages(config: Config) -> tuple[Stage, ...]:
    """The three stages; each warm-up that is asked for comes before the stage that continues it."""
    drpl, scale = config.drpl, config.epochs_scale
    regulariser = Regulariser(drpl.prior_weight, drpl.entropy_weight)
    given_epochs = scale_epoch(drpl.given_epochs, scale)
    relabel = Relabel(regulariser, given_epochs, drpl.average, RING_TYPES[drpl.ring])
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
    ring: torch.dtype = torch.float32

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Targets start as the given labels."""
        given = store["given"]
        store.put("target", one_hot(given, classes))
        store.put("prediction", torch.zeros(store.samples, classes))
        store.put("ring", torch.zeros(store.samples, self.average, classes, dtype=self.ring))

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Draws | None:
        """Nothing random beside order and augmentation."""
        return None

    def loss(self, step: Step) -> Outcome:
        """The one forward pass of the step also gives the predictions that become pseudo-labels."""
        head = loss_head(
            step.network(step.inputs),
            step.store["target"],
            step.index,
            share=step.share,
            prior_weight=self.regulariser.prior_weight,
            entropy_weight=self.regulariser.entropy_weight,
            store=step.store["prediction"],
        )
        step.store.mark_written("prediction", step.index)
        return Outcome(head.loss, head.predicted, head.wanted)

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """From the end of epoch q on, every sample's target is the mean of its last predictions."""
        epoch = epoch_pass.epoch
        mean = store["target"] if epoch >= self.given_epochs else None
        ring_update(store["ring"], epoch, store["prediction"], mean)


@dataclass(frozen=True)
class SemiSupervised:
    """Pseudo-labelling with mixup (III-C): labelled samples keep their label, the others learn from predictions."""

    regulariser: Regulariser
    drpl: DRPLConfig

    def begin(self, store: LabelStore, classes: int, stage_pass: Pass) -> None:
        """Labelled samples: their label, for ever. The others: a random class each, or uniform."""
        labelled, given = store["labelled"], store["given"]
        if self.drpl.start_targets == "random":
            start_pass = dataclasses.replace(stage_pass, purpose=Purpose.start_targets)
            word = compiled_words(start_pass.stream, np.arange(store.samples))[0]
            label = torch.from_numpy(philox.integers(word, classes)).to(store.device)
            start = one_hot(label, classes)
        else:
            start = torch.full((store.samples, classes), 1.0 / classes, device=store.device)
        store.put("target", torch.where(labelled[:, None], one_hot(given, classes), start))
        store.put("prediction", torch.zeros(store.samples, classes))
        if self.drpl.semi_targets == "mean":
            ring = torch.zeros(store.samples, self.drpl.average, classes, dtype=RING_TYPES[self.drpl.ring])
            store.put("ring", ring)
        else:
            store.drop("ring")

    def draw(self, store: LabelStore, epoch_pass: Pass, steps: int) -> Draws | None:
        """A mixing coefficient for each step and a key for each sample."""
        mix_pass = dataclasses.replace(epoch_pass, purpose=Purpose.mix)
        step_word = compiled_words(mix_pass.stream, np.arange(steps))[0]
        coefficient = philox.beta_symmetric(self.drpl.mixup_alpha, step_word)
        keys = sample_keys(dataclasses.replace(mix_pass, view=1).stream, store.samples, store.device)
        return Draws(torch.as_tensor(coefficient, dtype=torch.float32, device=store.device), keys)

    def loss(self, step: Step) -> Outcome:
        """An un-mixed pass makes the pseudo-label; the mixed one is learnt from, both with the same weights."""
        if step.draws is None:
            raise ValueError("mixup needs the draws of the epoch")
        forward = step.network if self.drpl.label_forward == "update" else step.frozen_statistics
        coefficient = step.draws.coefficient.index_select(0, step.number[None])[0]
        partner = partners(step.draws.keys.index_select(0, step.index))
        inputs, mixed = step.images.pair(partner, coefficient)
        with torch.no_grad():
            predicted = predict(forward(inputs), step.index, step.store["prediction"]).predicted
        step.store.mark_written("prediction", step.index)
        head = loss_head(
            step.network(mixed),
            step.store["target"],
            step.index,
            share=step.share,
            partner=partner,
            coefficient=coefficient,
            prior_weight=self.regulariser.prior_weight,
            entropy_weight=self.regulariser.entropy_weight,
        )
        return Outcome(head.loss, predicted, head.wanted)

    def refresh(self, store: LabelStore, epoch_pass: Pass) -> None:
        """Unlabelled samples take the epoch's predictions, but for a fresh fifth of them, which become uniform."""
        guess = store["prediction"]
        if self.drpl.semi_targets == "mean" and epoch_pass.epoch > 0:
            guess = torch.empty_like(store["target"])
            ring_update(store["ring"], epoch_pass.epoch, store["prediction"], guess)
        redraw_pass = dataclasses.replace(epoch_pass, purpose=Purpose.redraw)
        renew_targets(store["target"], guess, store["labelled"], redraw_pass.stream, self.drpl.redraw)
