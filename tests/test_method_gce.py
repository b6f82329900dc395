"""Generalised cross entropy against its formula in float64, its two ends, and what pruning does."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import new_store, on_ranks, pass_, step_of

from fastdrpl.errors import UserError
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.gce import GeneralisedCrossEntropy, Settings, lq_loss, mean_over_kept
from fastdrpl.plan import plan_of
from fastdrpl.recipes import RECIPES, recipe_named
from fastdrpl.settings import Schedule

N, C, B = 40, 5, 9
INDEX = torch.arange(4, 4 + B)
# p[y] at the last look of the samples of the batch: about half are pruned at 0.5, which itself is.
CONFIDENCE = torch.tensor([0.9, 0.1, 0.5, 0.6, 0.2, 0.51, 0.49, 1.0, 0.0])


def draw_logits(seed=2, scale=2.0):
    return scale * torch.randn(B, C, generator=torch.Generator().manual_seed(seed))


def new_step(inputs, objective, confidence=None, index=INDEX, share=None):
    store = new_store(N, C)
    objective.begin(store, C, pass_(0))
    if confidence is not None:
        store.put("confidence", torch.ones(N).index_copy(0, INDEX, confidence))
    return step_of(store, lambda x: x, inputs, index, share=share)


def probability_of_label(logits, given):
    log_p = torch.log_softmax(logits.double(), 1).numpy()
    return np.exp(log_p[np.arange(len(given)), given.numpy()])


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_before_the_first_look_it_is_the_formula_for_all(q):
    objective = GeneralisedCrossEntropy(q, 0.5, "batch")
    step = new_step(draw_logits(), objective)
    outcome = objective.loss(step)
    p = probability_of_label(draw_logits(), step.store["given"][INDEX])
    assert (p < 0.5).any()  # the mask, not the present prediction, decides
    assert outcome.loss.item() == pytest.approx(np.mean((1 - p**q) / q), rel=1e-5)
    assert outcome.predicted.tolist() == draw_logits().argmax(1).tolist()
    assert torch.equal(outcome.wanted, step.store["given"][INDEX])


def test_as_q_goes_to_zero_it_tends_to_cross_entropy():
    cross_entropy = CrossEntropy().loss(new_step(draw_logits(), CrossEntropy())).loss.item()
    distances = []
    for q in (1e-2, 1e-3, 1e-4, 1e-6):
        objective = GeneralisedCrossEntropy(q, 0.0, "batch")
        distances.append(abs(objective.loss(new_step(draw_logits(), objective)).loss.item() - cross_entropy))
    assert distances[0] > 5 * distances[1] > 25 * distances[2]  # in proportion to q
    assert distances[-1] < 2e-5


def test_at_q_one_it_is_one_minus_p():
    objective = GeneralisedCrossEntropy(1.0, 0.0, "batch")
    step = new_step(draw_logits(), objective)
    p = probability_of_label(draw_logits(), step.store["given"][INDEX])
    assert objective.loss(step).loss.item() == pytest.approx(np.mean(1 - p), rel=1e-6)


def test_pruned_samples_cost_a_constant_and_pull_at_nothing():
    objective = GeneralisedCrossEntropy(0.7, 0.5, "batch")
    leaf = draw_logits().requires_grad_()
    step = new_step(leaf, objective, CONFIDENCE)
    outcome = objective.loss(step)
    outcome.loss.backward()
    p = probability_of_label(draw_logits(), step.store["given"][INDEX])
    kept = CONFIDENCE.numpy() > 0.5
    expected = np.where(kept, (1 - p**0.7) / 0.7, (1 - 0.5**0.7) / 0.7)  # section 3.3
    assert outcome.loss.item() == pytest.approx(expected.mean(), rel=1e-5)
    assert ((leaf.grad != 0).any(1).numpy() == kept).all()


def test_divided_by_the_kept_the_loss_is_that_of_the_kept_alone():
    batch, kept = (GeneralisedCrossEntropy(0.7, 0.5, how) for how in ("batch", "kept"))
    gradients = []
    for objective in (batch, kept):
        leaf = draw_logits().requires_grad_()
        outcome = objective.loss(new_step(leaf, objective, CONFIDENCE))
        outcome.loss.backward()
        gradients.append(leaf.grad)
    given = new_store(N, C)["given"][INDEX]
    count = int((CONFIDENCE > 0.5).sum())
    assert 0 < count < B
    p = probability_of_label(draw_logits(), given)[CONFIDENCE.numpy() > 0.5]
    assert outcome.loss.item() == pytest.approx(np.mean((1 - p**0.7) / 0.7), rel=1e-5)
    assert torch.allclose(gradients[1], gradients[0] * B / count, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("normalise", ["batch", "kept"])
@pytest.mark.parametrize("q", [1e-3, 0.7, 1.0])
def test_the_gradient_is_that_of_finite_differences(normalise, q):
    objective = GeneralisedCrossEntropy(q, 0.5, normalise)
    leaf = draw_logits().requires_grad_()
    step_ = new_step(leaf, objective, CONFIDENCE)
    objective.loss(step_).loss.backward()
    given, kept = step_.store["given"][INDEX], CONFIDENCE.numpy() > 0.5

    def loss(logits):
        of_each = np.where(kept, (1 - probability_of_label(logits, given) ** q) / q, 0.0)
        return of_each.sum() / (B if normalise == "batch" else kept.sum())

    at, size = draw_logits().double(), 1e-6
    for row, column in ((0, 0), (1, 2), (3, 1), (7, 4)):
        nudge = torch.zeros_like(at)
        nudge[row, column] = size
        expected = (loss(at + nudge) - loss(at - nudge)) / (2 * size)
        assert leaf.grad[row, column].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("normalise", ["batch", "kept"])
def test_a_batch_without_a_kept_sample_is_no_accident(normalise):
    objective = GeneralisedCrossEntropy(0.7, 0.5, normalise)
    leaf = draw_logits().requires_grad_()
    loss = objective.loss(new_step(leaf, objective, torch.zeros(B))).loss
    loss.backward()
    assert loss.item() == pytest.approx({"batch": (1 - 0.5**0.7) / 0.7, "kept": 0.0}[normalise], rel=1e-6)
    assert torch.equal(leaf.grad, torch.zeros(B, C))


@pytest.mark.parametrize("q", [1e-6, 0.7, 1.0])
def test_the_loss_stays_finite_where_p_is_zero_in_float32(q):
    label_loss = torch.tensor([0.0, 50.0, 500.0, 1e5], requires_grad=True)
    loss = lq_loss(label_loss, q)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(label_loss.grad).all()
    assert loss.detach().numpy() == pytest.approx(
        -np.expm1(-q * label_loss.detach().double().numpy()) / q, rel=1e-5
    )
    assert loss[0].item() == 0 and (loss <= 1 / q * (1 + 1e-6)).all()


@pytest.mark.parametrize("normalise", ["batch", "kept"])
def test_the_parts_of_two_ranks_add_up(normalise):
    objective = GeneralisedCrossEntropy(0.7, 0.5, normalise)
    leaf = draw_logits().requires_grad_()
    whole = objective.loss(new_step(leaf, objective, CONFIDENCE)).loss
    whole.backward()

    def part(rank, share):
        rows = slice(rank, B, 2)
        own = draw_logits()[rows].clone().requires_grad_()
        loss = objective.loss(new_step(own, objective, CONFIDENCE, INDEX[rows], share)).loss
        loss.backward()
        return loss.item(), own.grad

    parts = on_ranks(B, part)
    assert sum(loss for loss, _ in parts) / 2 == pytest.approx(whole.item(), rel=1e-6)
    for rank, (_, gradient) in enumerate(parts):
        assert torch.allclose(gradient / 2, leaf.grad[rank::2], rtol=1e-5, atol=1e-8)


def test_kept_samples_may_all_be_on_another_rank():
    losses = torch.tensor([1.0, 2.0, 3.0])
    kept = (torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, True]))
    parts = on_ranks(6, lambda rank, share: mean_over_kept(losses, kept[rank], share).item())
    assert parts[0] == 0.0
    assert sum(parts) / 2 == pytest.approx(2.0)


# --- the stages ---


def config_of(recipe="cifar10", scale=1.0, **changes):
    config = recipe_named(recipe).config_for("gce")
    settings = dataclasses.replace(config.gce, **changes)
    return dataclasses.replace(config, gce=settings, epochs_scale=scale)


def look_epochs(stage):
    """Epochs after which p[y] is looked at; 0 = before the first."""
    looks = [look for look in stage.looks if look.into == "confidence"]
    last = stage.schedule.epochs
    return [epoch for epoch in range(last + 1) if any(look.due(epoch, last) for look in looks)]


def test_what_is_pruned_is_chosen_every_ten_epochs_from_the_fortieth_on():
    (stage,) = plan_of(config_of())
    assert look_epochs(stage) == [39, 49, 59, 69, 79, 89, 99, 109, 119, 120]  # used in the epochs that follow
    (stage,) = plan_of(config_of("cifar100"))
    assert look_epochs(stage) == [79, 89, 99, 109, 119, 129, 139, 149, 150]
    (stage,) = plan_of(config_of(scale=0.1))
    assert look_epochs(stage) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_without_truncation_nothing_is_looked_at():
    (stage,) = plan_of(config_of(k=0.0))
    assert look_epochs(stage) == []


def test_cross_entropy_may_come_first():
    config = config_of(start="ce", lr=0.01)
    first, second = plan_of(config)
    assert (first.objective, first.schedule) == (CrossEntropy(), config.gce.ce)
    assert (first.start, second.start, second.optimiser.lr) == ("fresh", "previous", 0.01)
    assert first.detector is None and second.decides
    _, second = plan_of(config_of(start="ce", prune_from=1))
    assert look_epochs(second)[:3] == [0, 10, 20]


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.05])
def test_fresh_weights_are_trained_before_they_are_asked(scale):
    """However short: a network that knows nothing would prune every sample."""
    (stage,) = plan_of(config_of(scale=scale))
    assert 0 not in look_epochs(stage)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("start", ["fresh", "ce"])
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_every_epoch_number_scales(recipe, start, scale):
    full, scaled = (plan_of(config_of(recipe, factor, start=start)) for factor in (1.0, scale))
    assert [s.schedule for s in scaled] == [s.schedule.scaled(scale) for s in full]
    settings = config_of(recipe).gce
    looks = [look for look in scaled[-1].looks if look.into == "confidence"]
    assert [look.since for look in looks] == [max(1, round(settings.prune_from * scale) - 1)]
    assert [look.every for look in looks] == [max(1, round(settings.prune_every * scale))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prune_from": 121}, r"--gce.prune_from is 121 of 120 epochs"),
        ({"prune_from": 1}, r"--gce.prune_from is 1 with fresh weights"),
    ],
)
def test_settings_that_contradict_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        Settings(**changes)
    Settings(**changes, k=0.0)
    if changes["prune_from"] == 1:
        Settings(**changes, start="ce")
    else:
        Settings(**changes, schedule=Schedule(epochs=121))
