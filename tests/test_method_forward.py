"""Forward correction against its formulas in float64, and the transition matrix against the published recipe."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import new_store, on_ranks, pass_, step_of

from fastdrpl.errors import UserError
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.forward import Estimate, Forward, Settings, estimate_transition, forward_loss
from fastdrpl.plan import plan_of
from fastdrpl.recipes import RECIPES, recipe_named
from fastdrpl.settings import Schedule

N, C, B = 40, 5, 9
FLOOR = 1e-7


def draw_transition(classes=C, seed=1):
    """A random matrix whose rows sum to 1 and are largest on the diagonal."""
    rows = np.random.default_rng(seed).dirichlet(np.ones(classes), classes)
    return 0.5 * rows + 0.5 * np.eye(classes)


def draw_logits(scale=2.0, samples=B, classes=C, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


# --- the loss ---


def test_the_loss_is_that_of_the_prediction_after_the_noise():
    logits, transition = draw_logits(), draw_transition()
    given = torch.arange(B) % C
    found = forward_loss(logits, given, torch.from_numpy(transition), FLOOR)
    after = softmax(logits.numpy()) @ transition
    assert found.numpy() == pytest.approx(-np.log(after[np.arange(B), given.numpy()]), rel=1e-12)


def test_with_the_identity_it_is_cross_entropy():
    inputs, index = draw_logits().float(), torch.arange(3, 3 + B)
    store = new_store(N, C)
    store.put_shared("transition", torch.eye(C))
    losses, gradients = [], []
    for objective in (Forward(FLOOR), CrossEntropy()):
        leaf = inputs.clone().requires_grad_()
        outcome = objective.loss(step_of(store, lambda x: x, leaf, index))
        outcome.loss.backward()
        losses.append(outcome.loss.item())
        gradients.append(leaf.grad)
        assert torch.equal(outcome.predicted, inputs.argmax(1))
        assert torch.equal(outcome.wanted, store["given"][index])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_rows_are_true_classes_and_columns_observed_ones():
    """Class 0 is always labelled 1: a network that says 0 is right where the label is 1."""
    transition = torch.eye(3, dtype=torch.float64)[[1, 1, 2]]
    certain = torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64)
    assert forward_loss(certain, torch.tensor([1]), transition, FLOOR).item() == pytest.approx(0, abs=1e-9)
    assert forward_loss(certain, torch.tensor([0]), transition, FLOOR).item() == pytest.approx(-np.log(FLOOR))


def test_the_gradient_is_that_of_finite_differences():
    logits, transition = draw_logits(), torch.from_numpy(draw_transition())
    given = torch.arange(B) % C
    leaf = logits.clone().requires_grad_()
    forward_loss(leaf, given, transition, FLOOR).mean().backward()
    step = 1e-6
    for place in ((0, 0), (3, 1), (8, 4)):
        nudge = torch.zeros_like(logits)
        nudge[place] = step
        values = [forward_loss(logits + s * nudge, given, transition, FLOOR).mean().item() for s in (1, -1)]
        assert leaf.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_the_clean_posterior_minimises_the_loss_under_noise():
    """Theorem 2: with labels that T has changed, the best prediction is the one for clean labels."""
    transition, clean = draw_transition(), np.random.default_rng(8).dirichlet(np.ones(C))
    observed = torch.from_numpy(clean @ transition)
    matrix = torch.from_numpy(transition)

    def risk(logits):
        return (observed * forward_loss(logits.expand(C, C), torch.arange(C), matrix, FLOOR)).sum()

    best = torch.from_numpy(np.log(clean)[None]).requires_grad_()
    at_best = risk(best)
    at_best.backward()
    assert best.grad.abs().max() < 1e-12
    for seed in range(20):
        other = best.detach() + 0.3 * draw_logits(samples=1, seed=seed)
        assert risk(other) > at_best


def test_a_label_that_cannot_occur_costs_the_floor_and_pulls_at_nothing():
    transition = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    leaf = torch.tensor([[2.0, -1.0]], requires_grad=True)
    loss = forward_loss(leaf, torch.tensor([1]), transition, FLOOR).sum()
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(FLOOR), rel=1e-6)
    assert torch.equal(leaf.grad, torch.zeros(1, 2))


def test_logits_of_half_precision_are_computed_in_float32():
    store = new_store(N, C)
    store.put_shared("transition", torch.from_numpy(draw_transition()).float())
    inputs, index = draw_logits().bfloat16(), torch.arange(B)
    half = Forward(FLOOR).loss(step_of(store, lambda x: x, inputs, index)).loss
    whole = Forward(FLOOR).loss(step_of(store, lambda x: x, inputs.float(), index)).loss
    assert half.dtype == torch.float32
    assert torch.equal(half, whole)


def test_the_parts_of_two_ranks_add_up():
    store = new_store(N, C)
    store.put_shared("transition", torch.from_numpy(draw_transition()).float())
    inputs, index = draw_logits().float(), torch.arange(B)
    leaf = inputs.clone().requires_grad_()
    whole = Forward(FLOOR).loss(step_of(store, lambda x: x, leaf, index)).loss
    whole.backward()
    slices = (slice(0, B, 2), slice(1, B, 2))

    def part(rank, share):
        own = inputs[slices[rank]].clone().requires_grad_()
        loss = Forward(FLOOR).loss(step_of(store, lambda x: x, own, index[slices[rank]], share=share)).loss
        loss.backward()
        return loss.item(), own.grad

    parts = on_ranks(B, part)
    assert sum(loss for loss, _ in parts) / 2 == pytest.approx(whole.item(), rel=1e-6)
    for (_, grad), rows in zip(parts, slices, strict=True):
        assert torch.allclose(grad / 2, leaf.grad[rows], rtol=1e-5, atol=1e-8)


# --- the estimate ---


def by_the_recipe(probability, percentile=None):
    """The procedure in numpy, class by class, on a copy of each column."""
    rows = []
    for c in range(probability.shape[1]):
        column = probability[:, c].copy()
        if percentile is not None:
            column[column >= np.percentile(column, percentile, method="higher")] = 0.0
        rows.append(probability[np.argmax(column)])
    return np.array(rows) / np.sum(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("samples", "classes"), [(7, 3), (100, 10), (101, 10), (1438, 10), (333, 33)])
@pytest.mark.parametrize("percentile", [97.0, 50.0, 90.0])
def test_the_estimate_is_the_published_recipe_s(samples, classes, percentile):
    drawn = torch.softmax(draw_logits(3.0, samples, classes, samples).float(), 1)
    before = drawn.clone()
    for anchor, cut in (("argmax", None), ("percentile", percentile)):
        found = estimate_transition(drawn, anchor, percentile)
        assert found.numpy() == pytest.approx(by_the_recipe(drawn.numpy(), cut), rel=1e-6), anchor
        assert found.sum(1).numpy() == pytest.approx(np.ones(classes), rel=1e-6)
    assert torch.equal(drawn, before)  # the published code sets numbers to zero as it goes
    assert not torch.equal(found, estimate_transition(drawn, "argmax", percentile))


def test_perfect_predictions_give_the_true_matrix():
    """Where some image of each class is beyond doubt, its noisy posterior is the row of T."""
    transition = draw_transition(6)
    clean = np.random.default_rng(0).dirichlet(0.3 * np.ones(6), 500)
    clean[:6] = np.eye(6)
    found = estimate_transition(torch.from_numpy((clean @ transition).astype(np.float32)), "argmax", 97.0)
    assert found.numpy() == pytest.approx(transition, abs=1e-6)


@pytest.mark.parametrize("anchor", ["argmax", "percentile"])
def test_memorised_labels_give_the_identity(anchor):
    labels = torch.arange(500) % 10
    certain = 0.999 * torch.eye(10)[labels] + 1e-4
    certain += 1e-5 * torch.rand(500, 1, generator=torch.Generator().manual_seed(0))  # no two alike
    assert torch.allclose(estimate_transition(certain, anchor, 97.0), torch.eye(10), atol=2e-3)


@pytest.mark.parametrize("anchor", ["argmax", "percentile"])
def test_predictions_that_are_all_alike_give_a_matrix_all_the_same(anchor):
    found = estimate_transition(torch.full((30, 4), 0.25), anchor, 97.0)
    assert torch.equal(found, torch.full((4, 4), 0.25))


@pytest.mark.parametrize(
    ("classes", "same"), [(10, "percentile"), (33, "percentile"), (34, "argmax"), (100, "argmax")]
)
def test_auto_is_the_choice_of_the_published_code(classes, same):
    """3 % of CIFAR-10 is a third of a class; of CIFAR-100 it is three classes."""
    drawn = torch.softmax(draw_logits(3.0, 400, classes).float(), 1)
    found = estimate_transition(drawn, "auto", 97.0)
    other = {"percentile": "argmax", "argmax": "percentile"}[same]
    assert torch.equal(found, estimate_transition(drawn, same, 97.0))
    assert not torch.equal(found, estimate_transition(drawn, other, 97.0))


def test_the_estimate_is_made_after_its_epoch_and_at_no_other_time():
    store, objective = new_store(N, C), Estimate(3, "argmax", 97.0)
    for epoch in range(1, 6):
        store.put("probability", torch.softmax(draw_logits(samples=N, seed=epoch).float(), 1))
        objective.refresh(store, pass_(epoch))
    then = torch.softmax(draw_logits(samples=N, seed=3).float(), 1)
    assert torch.equal(store.shared("transition"), estimate_transition(then, "argmax", 97.0))
    Forward(FLOOR).begin(store, C, pass_(0, 2))
    assert "probability" not in store
    assert store.shared("transition").shape == (C, C)


# --- the stages ---


def config_of(recipe="cifar10", scale=1.0, **changes):
    config = recipe_named(recipe).config_for("forward")
    settings = dataclasses.replace(config.forward, **changes)
    return dataclasses.replace(config, forward=settings, epochs_scale=scale)


def look_epochs(stage):
    look = next(look for look in stage.looks if look.into == "probability")
    return [epoch for epoch in range(stage.schedule.epochs + 1) if look.due(epoch, stage.schedule.epochs)]


def test_fresh_weights_need_no_epoch_after_the_estimate():
    first, second = plan_of(config_of())
    assert first.schedule == Schedule(epochs=42, milestones=(42,))
    assert (first.objective.after, look_epochs(first)) == (42, [42])
    assert (second.start, second.optimiser, first.decides, second.decides) == ("fresh", None, False, True)


def test_weights_that_are_used_are_trained_to_the_end():
    config = config_of(start="previous", lr=0.01)
    first, second = plan_of(config)
    assert first.schedule == config.forward.base
    assert (first.objective.after, look_epochs(first)) == (42, [42, 120])
    assert second.start == "previous"
    assert second.optimiser == dataclasses.replace(config.optimiser, lr=0.01)


def test_zero_estimates_after_the_last_epoch():
    first, _ = plan_of(config_of(estimate_after=0))
    assert (first.schedule.epochs, first.objective.after, look_epochs(first)) == (120, 120, [120])


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("start", ["fresh", "previous"])
@pytest.mark.parametrize("scale", [0.005, 0.1, 0.37, 2.0])
def test_every_epoch_number_scales_and_the_estimate_is_always_made(recipe, start, scale):
    full, scaled = (plan_of(config_of(recipe, factor, start=start)) for factor in (1.0, scale))
    assert scaled[0].objective.after == max(1, round(full[0].objective.after * scale))
    assert scaled[0].objective.after in look_epochs(scaled[0])
    for one, other in zip(full, scaled, strict=True):
        assert other.schedule.epochs == max(1, round(one.schedule.epochs * scale))
    assert scaled[1].schedule == full[1].schedule.scaled(scale)


def test_an_estimate_beyond_the_first_stage_is_refused():
    with pytest.raises(UserError, match=r"--forward.estimate_after is 31 of 30 epochs"):
        Settings(base=Schedule(epochs=30), estimate_after=31)
    Settings(base=Schedule(epochs=30), estimate_after=30)
