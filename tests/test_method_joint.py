"""Joint optimisation: the labels that its first stage finds are those that the second learns."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import new_store, on_ranks, pass_, step_of

from fastdrpl.errors import UserError
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.drpl import Relabel
from fastdrpl.methods.joint import Retrain, Settings
from fastdrpl.mixing import one_hot
from fastdrpl.plan import plan_of
from fastdrpl.recipes import RECIPES, recipe_named
from fastdrpl.settings import Schedule

N, C, B = 40, 5, 9
INDEX = torch.arange(4, 4 + B)


def draw_predictions(seed, samples=N):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(samples, C, generator=generator), 1)


def config_of(recipe="cifar10", scale=1.0, **changes):
    config = recipe_named(recipe).config_for("joint")
    settings = dataclasses.replace(config.joint, **changes)
    return dataclasses.replace(config, joint=settings, epochs_scale=scale)


def test_the_second_stage_learns_the_mean_of_the_last_predictions_for_ever():
    first, second = plan_of(config_of(average=3, given_epochs=2, relabel=Schedule(epochs=6)))
    store = new_store(N, C)
    given = store["given"].clone()
    first.objective.begin(store, C, pass_(0))
    for epoch in range(1, 7):
        store.put("prediction", draw_predictions(epoch))
        first.objective.refresh(store, pass_(epoch))
    found = np.mean([draw_predictions(epoch).numpy() for epoch in (4, 5, 6)], axis=0)
    second.objective.begin(store, C, pass_(0, 2))
    inputs = 2 * torch.randn(B, C, generator=torch.Generator().manual_seed(1))
    log_p = torch.log_softmax(inputs.double(), 1).numpy()
    for epoch in range(1, 4):
        outcome = second.objective.loss(step_of(store, lambda x: x, inputs, INDEX))
        assert outcome.loss.item() == pytest.approx(-(found[INDEX] * log_p).sum(1).mean(), rel=1e-5)
        assert outcome.wanted.tolist() == found[INDEX].argmax(1).tolist()
        assert not outcome.writes and not outcome.learnt
        second.objective.refresh(store, pass_(epoch, 2))
        assert store["target"].numpy() == pytest.approx(found, rel=1e-5)
    assert "ring" not in store and "prediction" not in store
    assert torch.equal(store["given"], given)


def test_with_the_given_labels_left_it_is_cross_entropy():
    store = new_store(N, C)
    store.put("target", one_hot(store["given"], C))
    losses, gradients = [], []
    for objective in (Retrain(), CrossEntropy()):
        leaf = torch.randn(B, C, generator=torch.Generator().manual_seed(2)).requires_grad_()
        outcome = objective.loss(step_of(store, lambda x: x, leaf, INDEX))
        outcome.loss.backward()
        losses.append(outcome.loss.item())
        gradients.append(leaf.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_that_of_finite_differences():
    store = new_store(N, C, target=draw_predictions(3))
    leaf = torch.randn(B, C, generator=torch.Generator().manual_seed(2)).requires_grad_()
    Retrain().loss(step_of(store, lambda x: x, leaf, INDEX)).loss.backward()
    at, target, step = leaf.detach().double(), store["target"][INDEX].double(), 1e-6
    for place in ((0, 0), (3, 1), (8, 4)):
        nudge = torch.zeros_like(at)
        nudge[place] = step
        values = [-(target * torch.log_softmax(at + s * nudge, 1)).sum(1).mean().item() for s in (1, -1)]
        assert leaf.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_the_parts_of_two_ranks_add_up():
    store = new_store(N, C, target=draw_predictions(3))
    inputs = torch.randn(B, C, generator=torch.Generator().manual_seed(2))
    whole = Retrain().loss(step_of(store, lambda x: x, inputs, INDEX)).loss.item()

    def part(rank, share):
        own = slice(rank, B, 2)
        return Retrain().loss(step_of(store, lambda x: x, inputs[own], INDEX[own], share=share)).loss.item()

    assert sum(on_ranks(B, part)) / 2 == pytest.approx(whole, rel=1e-6)


def test_the_first_stage_is_that_of_drpl():
    for recipe in sorted(RECIPES):
        config = config_of(recipe)
        ours, theirs = plan_of(config)[0], plan_of(recipe_named(recipe).config_for("drpl"))[0]
        assert isinstance(ours.objective, Relabel)
        assert (ours.objective, ours.schedule) == (theirs.objective, theirs.schedule), recipe
        assert ours.decides and not plan_of(config)[1].decides


def test_the_original_s_settings_can_be_asked_for():
    changes = dict(prior_weight=1.2, entropy_weight=0.8, lr=0.08, retrain_lr=0.2, given_epochs=70)
    config = config_of(relabel=Schedule(epochs=200), **changes)
    first, second = plan_of(config)
    regulariser = first.objective.regulariser
    assert (regulariser.prior_weight, regulariser.entropy_weight) == (1.2, 0.8)
    assert (first.schedule, first.objective.given_epochs) == (Schedule(epochs=200), 70)
    assert (first.optimiser.lr, second.optimiser.lr, first.optimiser.momentum) == (0.08, 0.2, 0.9)
    assert second.schedule == Schedule(epochs=120, milestones=(41, 81))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_every_epoch_number_scales(recipe, scale):
    full, scaled = plan_of(config_of(recipe)), plan_of(config_of(recipe, scale))
    assert [s.schedule for s in scaled] == [s.schedule.scaled(scale) for s in full]
    assert scaled[0].objective.given_epochs == round(full[0].objective.given_epochs * scale)


def test_relabelling_that_would_never_begin_is_refused():
    with pytest.raises(UserError, match=r"--joint.given_epochs is 30 of 30 epochs"):
        Settings(relabel=Schedule(epochs=30), given_epochs=30)
    Settings(relabel=Schedule(epochs=30), given_epochs=29)
