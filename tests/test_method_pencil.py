"""PENCIL's losses against numpy, and what becomes of the labels."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import new_store, on_ranks, pass_, step_of

from fastdrpl.methods.pencil import (
    CONFIDENCE,
    LABELS,
    RECIPES,
    Correction,
    FineTuning,
    Settings,
    correction_loss,
)
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.stages import learning_rate

N, C, B = 30, 5, 12


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def written_out(logits, rows, given, settings):
    """The mean loss of a batch, term by term."""
    p, y_d, each = softmax(logits), softmax(rows), np.arange(len(given))
    factor = 1 / logits.shape[1] if settings.compat == "published" else 1.0
    divergence = (p * (np.log(p) - np.log(y_d))).sum(1)
    entropy = -(p * np.log(p)).sum(1)
    held = y_d if settings.compat == "corrected" else softmax(y_d)
    compatibility = -np.log(held[each, given])
    total = factor * divergence + settings.compatibility_weight * compatibility
    return (total + factor * settings.entropy_weight * entropy).mean()


def toy(settings=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    objective = Correction(settings or Settings())
    store = new_store(N, C, seed)
    objective.begin(store, C, pass_(0))
    store.put(LABELS, store[LABELS] / 5 + torch.randn(N, C, generator=draw))  # as after some steps
    return objective, store, torch.randn(B, C, generator=draw), torch.randperm(N, generator=draw)[:B]


def take(store, outcome):
    """What the loop does with parameters that learn."""
    for learnt in outcome.learnt:
        (gradient,) = torch.autograd.grad(outcome.loss, learnt.rows, retain_graph=True)
        store.write(learnt.column, learnt.index, learnt.rows.detach() - learnt.rate * gradient)


@pytest.mark.parametrize("compat", ["corrected", "published"])
def test_the_loss_and_both_gradients_are_those_written_out(compat):
    settings = Settings(compat=compat, compatibility_weight=0.3, entropy_weight=0.7)
    objective, store, logits, index = toy(settings)
    logits.requires_grad_()
    outcome = objective.loss(step_of(store, lambda x: x, logits, index))
    outcome.loss.backward()
    given, z = store["given"][index].numpy(), logits.detach().double().numpy()
    rows = store[LABELS][index].double().numpy()
    assert outcome.loss.item() == pytest.approx(written_out(z, rows, given, settings), rel=1e-6)
    (learnt,) = outcome.learnt
    for place in [(0, 0), (3, int(given[3])), (B - 1, 4)]:
        shift = np.zeros_like(z)
        shift[place] = 1e-6
        up, down = (written_out(z + s, rows, given, settings) for s in (shift, -shift))
        assert logits.grad[place].item() == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-7)
        up, down = (written_out(z, rows + s, given, settings) for s in (shift, -shift))
        assert learnt.rows.grad[place].item() == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-7)
    assert torch.equal(outcome.predicted, logits.argmax(1))
    assert outcome.wanted.tolist() == rows.argmax(1).tolist()


def test_a_step_only_says_what_is_to_be_learnt():
    """A step that is not finite must leave no trace, and one row belongs to one image."""
    objective, store, logits, index = toy()
    before = store[LABELS].clone()
    outcome = objective.loss(step_of(store, lambda x: x, logits, index))
    outcome.loss.backward()
    (learnt,) = outcome.learnt
    assert (learnt.column, learnt.rate, outcome.writes) == (LABELS, 60.0, ())
    assert learnt.rows.is_leaf and torch.equal(learnt.index, index)
    assert torch.equal(store[LABELS], before)


def test_labels_start_at_the_given_ones():
    store = new_store(N, C)
    Correction(Settings(label_scale=10.0)).begin(store, C, pass_(0))
    expected = softmax(10.0 * np.eye(C)[store["given"].numpy()])
    assert np.allclose(torch.softmax(store[LABELS], 1), expected, atol=1e-6)
    assert expected.max() > 0.999


def test_with_lambda_zero_the_labels_stay():
    objective, store, logits, index = toy(Settings(label_rate=0.0))
    before = store[LABELS].clone()
    for _ in range(5):
        take(store, objective.loss(step_of(store, lambda x: x, logits, index)))
    assert torch.equal(store[LABELS], before)


@pytest.mark.parametrize("alpha, turns", [(0.1, True), (0.4, True), (3.0, False)])
def test_a_sure_network_turns_wrong_labels_if_alpha_lets_it(alpha, turns):
    """y^d comes to rest at (p + alpha y) / (1 + alpha)."""
    objective = Correction(Settings(compatibility_weight=alpha, label_rate=20.0))
    store = new_store(N, C)
    objective.begin(store, C, pass_(0))
    given = store["given"]
    wrong = torch.arange(N) < 10
    believed = torch.where(wrong, (given + 1) % C, given)
    p = torch.softmax(8.0 * torch.nn.functional.one_hot(believed, C).float(), 1)
    for _ in range(400):
        take(store, objective.loss(step_of(store, lambda x: x, p.log(), torch.arange(N))))
    learnt = torch.softmax(store[LABELS], 1)
    y = torch.nn.functional.one_hot(given, C)
    assert torch.allclose(learnt, (p + alpha * y) / (1 + alpha), atol=0.01)
    assert torch.equal(learnt.argmax(1), believed if turns else given)


def test_as_published_lambda_is_multiplied_by_the_classes():
    """600 for CIFAR-10; its losses are divided by 10."""
    objective, store, logits, index = toy(Settings(compat="published"))
    (learnt,) = objective.loss(step_of(store, lambda x: x, logits, index)).learnt
    assert learnt.rate == 60.0 * C


def test_rows_that_no_step_visits_keep_their_labels():
    objective, store, logits, index = toy()
    before = store[LABELS].clone()
    take(store, objective.loss(step_of(store, lambda x: x, logits, index)))
    others = torch.ones(N, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(store[LABELS][others], before[others])
    assert not torch.equal(store[LABELS][index], before[index])


def test_the_parts_of_two_ranks_make_the_whole():
    objective, store, logits, index = toy()
    whole = logits.clone().requires_grad_()
    outcome = objective.loss(step_of(store, lambda x: x, whole, index))
    outcome.loss.backward()

    def part(rank, share):
        own = logits[rank::2].clone().requires_grad_()
        found = objective.loss(step_of(store, lambda x: x, own, index[rank::2], share=share))
        found.loss.backward()
        return found.loss.item(), own.grad, found.learnt[0].rows.grad

    parts = on_ranks(B, part)
    assert np.mean([loss for loss, _, _ in parts]) == pytest.approx(outcome.loss.item(), rel=1e-6)
    for rank, (_, gradient, rows) in enumerate(parts):  # averaged over two ranks
        assert torch.allclose(gradient / 2, whole.grad[rank::2], atol=1e-7)
        assert torch.allclose(rows / 2, outcome.learnt[0].rows.grad[rank::2], atol=1e-7)


@pytest.mark.parametrize("sure", [1e3, 1e5])
def test_extreme_labels_and_predictions_stay_finite(sure):
    """Label logits take steps of hundreds."""
    settings = Settings(compat="published")
    logits = torch.tensor([[sure, 0.0, -sure]], requires_grad=True)
    rows = torch.tensor([[-sure, sure, 0.0]], requires_grad=True)
    for choice in (settings, Settings()):
        loss = correction_loss(torch.log_softmax(logits, 1), rows, torch.tensor([0]), choice)
        gradients = torch.autograd.grad(loss.sum(), (logits, rows))
        assert loss.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)


# --- fine-tuning ---


@pytest.mark.parametrize("compat", ["corrected", "published"])
def test_fine_tuning_learns_from_the_divergence_alone(compat):
    settings = Settings(compat=compat)
    _, store, logits, index = toy(settings)
    before = store[LABELS].clone()
    objective = FineTuning(settings)
    objective.begin(store, C, pass_(0))
    outcome = objective.loss(step_of(store, lambda x: x, logits.requires_grad_(), index))
    alone = dataclasses.replace(settings, compatibility_weight=0.0, entropy_weight=0.0)
    rows = before[index].double().numpy()
    expected = written_out(logits.detach().double().numpy(), rows, store["given"][index].numpy(), alone)
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-5)
    assert outcome.learnt == outcome.writes == ()
    assert torch.equal(store[LABELS], before)


def test_the_divergence_to_its_own_labels_is_zero():
    _, store, _, index = toy()
    objective = FineTuning(Settings())
    objective.begin(store, C, pass_(0))
    rows = store[LABELS][index]
    loss = objective.loss(step_of(store, lambda x: x, rows.clone().requires_grad_(), index)).loss
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_detector_reads_what_the_labels_say_of_the_given_ones():
    config, plan = stages_for("cifar10")
    objective, store, _, _ = toy()
    FineTuning(objective.pencil).begin(store, C, pass_(0))
    own = softmax(store[LABELS].double().numpy())[np.arange(N), store["given"].numpy()]
    assert np.allclose(store[CONFIDENCE], own, atol=1e-6)
    detector = plan[-1].detector
    assert detector.reads == (CONFIDENCE,)
    found = detector([store[CONFIDENCE]], store["given"].numpy(), C)
    assert found.labelled.tolist() == (store[CONFIDENCE] >= config.pencil.threshold).tolist()
    assert 0 < found.labelled.sum() < N


def test_labels_of_one_class():
    objective, store, logits, index = toy()
    store.put("given", torch.zeros(N, dtype=torch.int64))
    objective.begin(store, C, pass_(0))
    take(store, objective.loss(step_of(store, lambda x: x, logits, index)))
    assert store[LABELS].isfinite().all()
    FineTuning(Settings()).begin(store, C, pass_(0))
    assert (store[CONFIDENCE] <= 1).all()


# --- stages ---


def stages_for(recipe, settings=None, **changes):
    config = recipe_named(recipe).config_for("pencil")
    config = dataclasses.replace(
        config, pencil=dataclasses.replace(config.pencil, **(settings or {})), **changes
    )
    return config, plan_of(config)


def rates(stage):
    lr, drop = stage.optimiser.lr, stage.optimiser.drop
    return [learning_rate(e, stage.schedule, lr=lr, drop=drop) for e in range(1, stage.schedule.epochs + 1)]


def test_learning_rates_of_320_epochs():
    _, plan = stages_for("cifar10")
    found = [rate for stage in plan for rate in rates(stage)]
    assert found == pytest.approx([0.06] * 200 + [0.2] * 40 + [0.02] * 40 + [0.002] * 40)
    assert [stage.start for stage in plan] == ["fresh", "previous", "previous"]


def test_as_published_the_last_eighty_epochs_stand_still():
    _, plan = stages_for("cifar10", {"compat": "published"})
    assert rates(plan[-1]) == [0.2] * 40 + [0.2 // 10] * 40 + [0.2 // 100] * 40


def test_nought_is_the_rate_of_the_run():
    _, plan = stages_for("cifar10", {"lr": 0.0, "finetune_lr": 0.0})
    assert [stage.optimiser for stage in plan] == [None, None, None]
    config, plan = stages_for("cifar10", {"lr": 0.0, "finetune_lr": 0.0, "compat": "published"})
    assert plan[-1].optimiser == dataclasses.replace(config.optimiser, drop=0.0)


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("recipe", ["cifar10", *RECIPES])
def test_every_schedule_is_scaled(recipe, scale):
    _, before = stages_for(recipe)
    _, after = stages_for(recipe, epochs_scale=scale)
    assert [stage.schedule for stage in after] == [stage.schedule.scaled(scale) for stage in before]
