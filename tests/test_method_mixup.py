"""Mixup against its two cross entropies, written out."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import ToyNetwork, new_store, on_ranks, pass_, step_of

from fastdrpl.kernels.mixup import partners
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.mixup import Mixup
from fastdrpl.mixing import Mixing
from fastdrpl.plan import plan_of
from fastdrpl.recipes import RECIPES, recipe_named

N, C, B = 40, 5, 7
INDEX = torch.tensor([5, 8, 2, 31, 20, 11, 39])


def prepared(alpha=1.0):
    store, objective = new_store(N, C), Mixup(alpha)
    objective.begin(store, C, pass_(0))
    return store, objective


def linear(seed=4):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(B, 3, 4, 4, generator=generator)
    weight = torch.randn(C, 48, generator=generator).requires_grad_()
    return inputs, weight, lambda x: x.flatten(1) @ weight.T


def mixed_step(coefficient):
    store, objective = prepared()
    inputs, weight, function = linear()
    draws = objective.draw(store, pass_(1), 3)
    draws = Mixing(torch.full_like(draws.coefficient, coefficient), draws.keys)
    network = ToyNetwork(function)
    outcome = objective.loss(step_of(store, network, inputs, INDEX, draws=draws))
    order = np.argsort(draws.keys[INDEX].numpy(), kind="stable")
    return store, inputs, weight, outcome, network, order


@pytest.mark.parametrize("coefficient", [0.0, 0.2, 0.7, 1.0])
def test_the_loss_is_that_of_the_mixed_image_to_both_labels(coefficient):
    store, inputs, weight, outcome, network, order = mixed_step(coefficient)
    assert network.calls == ["train"]  # one forward pass
    x = inputs.double().numpy()
    logits = (coefficient * x + (1 - coefficient) * x[order]).reshape(
        B, -1
    ) @ weight.detach().double().numpy().T
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    given = store["given"][INDEX].numpy()
    rows = np.arange(B)
    expected = -(coefficient * log_p[rows, given] + (1 - coefficient) * log_p[rows, given[order]]).mean()
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-5)
    assert outcome.predicted.tolist() == logits.argmax(1).tolist()
    wanted = given if coefficient >= 0.5 else given[order]
    assert outcome.wanted.tolist() == wanted.tolist()
    assert (given != given[order]).any()  # or the line above says nothing


def test_with_a_coefficient_of_one_it_is_cross_entropy():
    store, inputs, weight, outcome, _, _ = mixed_step(1.0)
    outcome.loss.backward()
    gradient, weight.grad = weight.grad, None
    plain = CrossEntropy().loss(step_of(store, lambda x: x.flatten(1) @ weight.T, inputs, INDEX))
    plain.loss.backward()
    assert outcome.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert torch.allclose(gradient, weight.grad, rtol=1e-5, atol=1e-7)
    assert torch.equal(outcome.wanted, plain.wanted)


def test_the_gradient_is_that_of_finite_differences():
    store, inputs, weight, outcome, _, order = mixed_step(0.3)
    outcome.loss.backward()
    x = inputs.double().numpy().reshape(B, -1)
    mixed, given = 0.3 * x + 0.7 * x[order], store["given"][INDEX].numpy()

    def loss(w):
        logits = mixed @ w.T
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        rows = np.arange(B)
        return -(0.3 * log_p[rows, given] + 0.7 * log_p[rows, given[order]]).mean()

    at, step = weight.detach().double().numpy(), 1e-6
    for place in ((0, 0), (2, 17), (4, 47)):
        nudge = np.zeros_like(at)
        nudge[place] = step
        expected = (loss(at + nudge) - loss(at - nudge)) / (2 * step)
        assert weight.grad[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_coefficients_follow_the_beta_distribution_and_the_pass(alpha):
    store, objective = prepared(alpha)
    draws, again = (objective.draw(store, pass_(3), 4000) for _ in range(2))
    assert torch.equal(draws.coefficient, again.coefficient)
    assert torch.equal(draws.keys, again.keys)
    other = objective.draw(store, pass_(4), 4000)
    assert not torch.equal(draws.coefficient, other.coefficient)
    assert not torch.equal(partners(draws.keys), partners(other.keys))
    values = draws.coefficient.double()
    assert values.mean().item() == pytest.approx(0.5, abs=0.03)
    assert values.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)  # of Beta(alpha, alpha)


def test_the_parts_of_two_ranks_add_up():
    """Partners are found within a rank, so each rank is compared with its own rows alone."""
    store, objective = prepared()
    inputs, weight, _ = linear()
    draws = objective.draw(store, pass_(1), 3)
    slices = (slice(0, B, 2), slice(1, B, 2))

    def part(rank, share):
        own = weight.detach().clone().requires_grad_()
        step = step_of(
            store,
            lambda x: x.flatten(1) @ own.T,
            inputs[slices[rank]],
            INDEX[slices[rank]],
            draws=draws,
            share=share,
        )
        loss = objective.loss(step).loss
        loss.backward()
        return loss.item(), own.grad

    parts = on_ranks(B, part)
    expected, gradient = 0.0, torch.zeros_like(weight)
    for own in slices:
        rows = INDEX[own]
        leaf = weight.detach().clone().requires_grad_()
        step = step_of(store, lambda x, w=leaf: x.flatten(1) @ w.T, inputs[own], rows, draws=draws)
        alone = objective.loss(step).loss * len(rows) / B
        alone.backward()
        expected, gradient = expected + alone.item(), gradient + leaf.grad
    assert sum(loss for loss, _ in parts) / 2 == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(sum(grad for _, grad in parts) / 2, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("factor", [0.1, 2.0])
def test_the_schedule_scales(recipe, factor):
    config = recipe_named(recipe).config_for("mixup")
    (full,) = plan_of(config)
    (scaled,) = plan_of(dataclasses.replace(config, epochs_scale=factor))
    assert scaled.schedule == full.schedule.scaled(factor)
    assert scaled.schedule != full.schedule
    assert full.decides and full.detector is not None
