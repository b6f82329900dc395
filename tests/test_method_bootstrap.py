"""Dynamic bootstrapping with mixup against the formulas written out in float64."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_steps import ToyNetwork, new_store, on_ranks, pass_, step_of

from fastdrpl.errors import UserError
from fastdrpl.kernels.beta_mixture import BetaMixture, fit_beta_mixture
from fastdrpl.methods.bootstrap import MIXTURE, RECIPES, Bootstrap, Settings
from fastdrpl.methods.mixup import Mixup
from fastdrpl.plan import plan_of
from fastdrpl.posteriors import keep_mixture
from fastdrpl.recipes import recipe_named
from fastdrpl.settings import Schedule
from fastdrpl.stages import learning_rate

N, C, B, D = 30, 4, 10, 6
RISING = BetaMixture((1.0, 4.0), (5.0, 2.0), (0.7, 0.3), 0.2, 4.0)
ALL_CLEAN = BetaMixture((1.0, 1.0), (1.0, 1.0), (1.0, 0.0), 0.0, 1.0)


@dataclass(frozen=True)
class Chosen:
    """Draws that are what a test says."""

    coefficient: float
    partner: Tensor

    def of(self, number: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.coefficient), self.partner


class Linear(ToyNetwork):
    """logits = inputs @ weight; in evaluation mode twice that, so that a test sees which mode was asked."""

    def __init__(self, seed: int = 3):
        weight = torch.randn(D, C, generator=torch.Generator().manual_seed(seed))
        self.weight = weight.requires_grad_()
        super().__init__(lambda inputs: inputs @ self.weight)

    def evaluated(self, inputs: Tensor) -> Tensor:
        return 2 * super().evaluated(inputs)


def toy(mixture: BetaMixture = RISING, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    store = new_store(N, C)
    keep_mixture(store, MIXTURE, mixture)
    index = torch.randperm(N, generator=draw)[:B]
    partner = torch.randperm(B, generator=draw)
    return store, torch.randn(B, D, generator=draw), index, partner


def log_softmax(logits):
    return (
        logits
        - logits.max(1, keepdims=True)
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    )


def written_out(weight, inputs, given, partner, lam, target_of, prior_weight):
    """The loss as in the paper: two cross entropies of the mixed image, and R; (D, C) float64 weights."""
    mixed = lam * inputs + (1 - lam) * inputs[partner]
    log_p = log_softmax(mixed @ weight)
    target = target_of(inputs, given)
    own, other = -(target * log_p).sum(1), -(target[partner] * log_p).sum(1)
    mean = np.exp(log_p).mean(0)
    return lam * own.mean() + (1 - lam) * other.mean() + prior_weight * np.sum(np.log(1 / C / mean)) / C


def targets(weight, guess, mixture=RISING, margin=1e-4):
    """(1 - B) y + B z, with the weights that z and B are made with."""

    def target_of(inputs, given):
        y, logits = np.eye(C)[given], inputs @ weight
        losses = -log_softmax(2 * logits)[np.arange(len(given)), given]  # evaluation mode
        noisy = mixture.posterior(losses, backend="reference").clip(margin, 1 - margin)[:, None]
        z = np.eye(C)[logits.argmax(1)] if guess == "hard" else np.exp(log_softmax(logits))
        return (1 - noisy) * y + noisy * z

    return target_of


@pytest.mark.parametrize("guess", ["hard", "soft"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_the_loss_and_its_gradient_are_those_of_the_paper(guess, lam):
    store, inputs, index, partner = toy()
    network = Linear()
    objective = Bootstrap(Settings(guess=guess, prior_weight=0.7), "exact", "fit")
    outcome = objective.loss(step_of(store, network, inputs, index, draws=Chosen(lam, partner)))
    outcome.loss.backward()

    weight, x = network.weight.detach().double().numpy(), inputs.double().numpy()
    given, j = store["given"][index].numpy(), partner.numpy()
    constant = targets(weight, guess)  # z and B take no gradient
    noisy = constant(x, given)[np.arange(B), given]
    assert noisy.min() < 0.5 < noisy.max()  # both kinds are there, or the test would say little
    expected = written_out(weight, x, given, j, lam, constant, 0.7)
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-5)
    for place in [(0, 0), (2, 3), (5, 1)]:
        shift = np.zeros_like(weight)
        shift[place] = 1e-6
        up = written_out(weight + shift, x, given, j, lam, constant, 0.7)
        down = written_out(weight - shift, x, given, j, lam, constant, 0.7)
        assert network.weight.grad[place].item() == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-5)
    assert torch.equal(outcome.predicted, (inputs @ network.weight).argmax(1))
    assert outcome.wanted.tolist() == constant(x, given).argmax(1).tolist()


@pytest.mark.parametrize("guess", ["hard", "soft"])
def test_with_b_zero_it_is_mixup_and_the_regulariser(guess):
    store, inputs, index, partner = toy(ALL_CLEAN)
    objective, network = Bootstrap(Settings(guess=guess, margin=0.0), "exact", "fit"), Linear()
    draws = Chosen(0.35, partner)
    outcome = objective.loss(step_of(store, network, inputs, index, draws=draws))
    mixup = Mixup(32.0)
    mixup.begin(store, C, pass_(0))
    plain = mixup.loss(step_of(store, network, inputs, index, draws=draws))
    with torch.no_grad():
        mean = torch.softmax((0.35 * inputs + 0.65 * inputs[partner]) @ network.weight, 1).mean(0)
    regulariser = (1 / C * torch.log(1 / C / mean)).sum()
    assert regulariser > 0.01
    assert outcome.loss.item() == pytest.approx((plain.loss + regulariser).item(), rel=1e-5)


def test_with_b_zero_and_lambda_one_it_is_cross_entropy():
    store, inputs, index, partner = toy(ALL_CLEAN)
    objective, network = Bootstrap(Settings(margin=0.0, prior_weight=0.0), "exact", "fit"), Linear()
    outcome = objective.loss(step_of(store, network, inputs, index, draws=Chosen(1.0, partner)))
    expected = torch.nn.functional.cross_entropy(inputs @ network.weight, store["given"][index])
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_with_b_one_labels_count_for_nothing():
    mixture = BetaMixture((1.0, 1.0), (1.0, 1.0), (0.0, 1.0), 0.0, 1.0)
    losses = []
    for given in (0, 1):
        store, inputs, index, partner = toy(mixture)
        store.put("given", torch.full((N,), given))
        objective = Bootstrap(Settings(margin=0.0), "exact", "fit")
        losses.append(
            objective.loss(step_of(store, Linear(), inputs, index, draws=Chosen(0.4, partner))).loss
        )
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("forward, first", [("update", "train"), ("freeze", "frozen")])
def test_three_forward_passes_in_their_modes(forward, first):
    store, inputs, index, partner = toy()
    network = Linear()
    objective = Bootstrap(Settings(label_forward=forward), "exact", "fit")
    objective.loss(step_of(store, network, inputs, index, draws=Chosen(0.4, partner)))
    assert network.calls == [first, "evaluated", "train"]


def test_the_parts_of_two_ranks_make_the_whole():
    store, inputs, index, _ = toy()
    within = torch.randperm(B // 2, generator=torch.Generator().manual_seed(5))
    whole = torch.empty(B, dtype=torch.int64)  # rank r holds every second sample from the r-th
    for rank in (0, 1):
        whole[rank::2] = 2 * within + rank
    objective = Bootstrap(Settings(), "exact", "fit")
    network = Linear()
    objective.loss(step_of(store, network, inputs, index, draws=Chosen(0.4, whole))).loss.backward()

    def part(rank, share):
        own = Linear()
        step = step_of(store, own, inputs[rank::2], index[rank::2], draws=Chosen(0.4, within), share=share)
        loss = objective.loss(step).loss
        loss.backward()
        return loss.detach(), own.weight.grad

    parts = on_ranks(B, part)
    single = Linear()
    expected = objective.loss(step_of(store, single, inputs, index, draws=Chosen(0.4, whole))).loss
    assert torch.stack([loss for loss, _ in parts]).mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(torch.stack([g for _, g in parts]).mean(0), network.weight.grad, atol=1e-6)


def test_the_mixture_is_that_of_the_last_losses():
    draw = np.random.default_rng(0)
    store = new_store(1000, C)
    losses = np.concatenate([draw.exponential(0.2, 700), draw.normal(4, 0.5, 300)]).astype(np.float32)
    store.put("fit", torch.from_numpy(losses))
    objective = Bootstrap(Settings(), "exact", "fit")
    objective.refresh(store, pass_(0))
    fit = fit_beta_mixture(losses)
    numbers = new_store(1, C)
    keep_mixture(numbers, MIXTURE, fit)
    assert torch.equal(store.shared(MIXTURE), numbers.shared(MIXTURE))
    store.put("fit", torch.from_numpy(losses * 2))
    objective.refresh(store, pass_(1))
    assert not torch.equal(store.shared(MIXTURE), numbers.shared(MIXTURE))


@pytest.mark.parametrize("compat", ["exact", "lookup"])
def test_losses_without_spread_trust_every_label(compat):
    """As in a set of one class that is learnt by heart."""
    store, inputs, index, partner = toy()
    store.put("given", torch.zeros(N, dtype=torch.int64))
    store.put("fit", torch.zeros(N))
    objective = Bootstrap(Settings(), compat, "fit")
    objective.refresh(store, pass_(0))
    step = step_of(store, Linear(), inputs, index, draws=Chosen(0.4, partner))
    assert (objective.distrust(step, inputs, store["given"][index]) == 1e-4).all()
    assert objective.loss(step).loss.isfinite()


# --- stages ---


def plan(recipe="cifar10", **changes):
    config = recipe_named(recipe).config_for("bootstrap")
    own = {name: changes.pop(name) for name in list(changes) if name in Settings.__dataclass_fields__}
    config = dataclasses.replace(config, bootstrap=dataclasses.replace(config.bootstrap, **own), **changes)
    return config, plan_of(config)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0])
def test_both_stages_keep_the_schedule_of_one_run(scale):
    _, (mixup, bootstrap) = plan(epochs_scale=scale)
    assert mixup.schedule.epochs == round(105 * scale)
    assert mixup.schedule.epochs + bootstrap.schedule.epochs == round(300 * scale)
    whole = Schedule(epochs=round(300 * scale), milestones=(round(100 * scale), round(250 * scale)))
    rates = [learning_rate(e, whole, lr=0.1, drop=0.1) for e in range(1, whole.epochs + 1)]
    found = [
        learning_rate(e, stage.schedule, lr=0.1, drop=0.1)
        for stage in (mixup, bootstrap)
        for e in range(1, stage.schedule.epochs + 1)
    ]
    assert (mixup.optimiser, bootstrap.optimiser) == (None, None)  # the same: momentum goes on
    assert found == pytest.approx(rates, rel=1e-12)
    assert (mixup.start, bootstrap.start) == ("fresh", "previous")


def test_even_the_smallest_scale_leaves_an_epoch_for_each_stage():
    _, both = plan(epochs_scale=1e-6)
    assert [stage.schedule.epochs for stage in both] == [1, 1]


@pytest.mark.parametrize("passes", [1, 2])
def test_the_mixture_sees_the_losses_before_the_stage_and_after_each_epoch(passes):
    config, _ = plan()
    config = dataclasses.replace(config, detect=dataclasses.replace(config.detect, passes=passes))
    stage = plan_of(config)[1]
    read = stage.objective.column
    due = [
        sum(look.into == read and look.due(epoch, stage.schedule.epochs) for look in stage.looks)
        for epoch in range(stage.schedule.epochs + 1)
    ]
    assert due == [1] * len(due)
    assert stage.detector.reads == ((read, "loss_bootstrap") if passes == 2 else ("loss_bootstrap",))
    assert all(look.keep for look in stage.looks)
    assert stage.detector.adjustable == ("bootstrap.gamma",)
    assert {look.into for look in stage.looks} == set(stage.detector.reads)


def test_a_mixup_stage_as_long_as_all_is_refused():
    with pytest.raises(UserError, match=r"bootstrap\.mixup_epochs"):
        Settings(mixup_epochs=300)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_name_fields_and_are_settings(recipe):
    config, _ = plan(recipe)
    assert config.bootstrap.mixup_epochs < config.bootstrap.schedule.epochs
    assert math.isclose(config.bootstrap.mixup_alpha, 32.0)
