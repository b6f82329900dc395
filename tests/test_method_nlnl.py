"""NLNL's losses, selections and pseudo-labels against the rules written out in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import new_store, on_ranks, pass_, step_of

from fastdrpl.errors import UserError
from fastdrpl.methods.nlnl import (
    Complements,
    LearnKept,
    LearnPredicted,
    Negative,
    Positive,
    Settings,
    class_weights,
    complements,
    draw_complements,
    negative_loss,
)
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named

N, C = 60, 5
NLNL = Settings(average=4)


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def begun(objective, **columns):
    """A store in which the first stage has begun, then `objective`'s, with columns of the test's own."""
    store = new_store(N, C)
    Negative(NLNL, 0).begin(store, C, pass_(0))
    objective.begin(store, C, pass_(0))
    for name, values in columns.items():
        store.put(name, values)
    return store


def batch(seed=3, size=7):
    generator = np.random.default_rng(seed)
    return torch.tensor(generator.permutation(N)[:size]), generator.normal(size=(size, C)) * 2


def run(objective, store, index, logits, draws=None, share=None):
    """Loss, its gradient to the logits (numpy) and the outcome, of a network that hands on its input."""
    inputs = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    outcome = objective.loss(step_of(store, lambda x: x, inputs, index, draws=draws, share=share))
    outcome.loss.backward()
    return outcome.loss.item(), inputs.grad.numpy(), outcome


def check(loss, gradient, reference, logits):
    """Against a float64 function of the logits and its central differences."""
    assert loss == pytest.approx(reference(logits), rel=1e-5)
    numeric = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        numeric[place] = (reference(logits + step) - reference(logits - step)) / 2e-5
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-5)


def weights_by_hand(label, among):
    size = np.bincount(label[among], minlength=C)
    return np.array([size.max() / n if n else 0.0 for n in size])


# --- complementary labels ---


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (5, 3), (10, 1), (100, 110)])
def test_a_complementary_label_is_never_the_given_one_and_uniform_among_the_others(classes, count):
    given = torch.arange(4000) % classes
    drawn = draw_complements(pass_(3), given, classes, count)
    assert drawn.shape == (4000, count)
    assert drawn.min() >= 0
    assert drawn.max() < classes
    assert not (drawn == given[:, None]).any()
    offset = (drawn - given[:, None]).remainder(classes)
    size = np.bincount(offset.flatten(), minlength=classes)[1:]
    expected = drawn.numel() / (classes - 1)
    assert ((size - expected) ** 2 / expected).sum() < classes - 1 + 6 * np.sqrt(2 * (classes - 1))


def test_complementary_labels_are_keyed_by_epoch_stage_and_sample():
    given = torch.zeros(500, dtype=torch.int64)
    first = draw_complements(pass_(1), given, 10, 6)
    assert torch.equal(first, draw_complements(pass_(1), given, 10, 6))
    assert torch.equal(
        first[:100], draw_complements(pass_(1), given[:100], 10, 6)
    )  # of more samples, the same
    for other in (pass_(2), pass_(1, stage=2)):
        assert 0.05 < (draw_complements(other, given, 10, 6) == first).float().mean() < 0.2
    assert not any(torch.equal(first[:, k], first[:, j]) for k in range(6) for j in range(k))


def test_as_many_as_published_for_ten_and_for_a_hundred_classes():
    assert [complements(0, classes) for classes in (2, 10, 100)] == [1, 1, 110]
    assert complements(7, 100) == 7


# --- losses ---


@pytest.mark.parametrize("balance", ["balanced", "none"])
@pytest.mark.parametrize("selective", [False, True])
def test_negative_loss_and_gradient(selective, balance):
    settings = dataclasses.replace(NLNL, class_weights=balance)
    store = new_store(N, C)
    belief = torch.linspace(0, 0.6, N)
    Negative(settings, 0).begin(store, C, pass_(0))
    store.put("belief", belief)
    objective = Negative(settings, 8 if selective else 0)
    index, logits = batch()
    draws = Complements(draw_complements(pass_(1), store["given"], C, 3))
    given = store["given"].numpy()
    weight = weights_by_hand(given, np.ones(N, bool)) if balance == "balanced" else np.ones(C)
    rows = [r for r, i in enumerate(index.tolist()) if not selective or belief[i] >= 1 / C]
    assert 0 < len(rows) < 7 or not selective

    def reference(z):
        p = np.exp(log_softmax(z))
        total = 0.0
        for r in rows:
            i = int(index[r])
            total -= weight[given[i]] * sum(np.log(1 - p[r, c]) for c in draws.labels[i].tolist())
        return total / len(rows)

    loss, gradient, outcome = run(objective, store, index, logits, draws)
    check(loss, gradient, reference, logits)
    (write,) = outcome.writes
    assert write.column == "seen"
    p = np.exp(log_softmax(logits))
    assert write.values.numpy() == pytest.approx(p[np.arange(7), given[index.numpy()]], rel=1e-5)


def test_positive_loss_and_gradient():
    belief = torch.linspace(0, 1, N)
    store = begun(Positive(NLNL, 8), belief=belief)
    index, logits = batch()
    given = store["given"].numpy()
    weight = weights_by_hand(given, np.ones(N, bool))
    rows = [r for r, i in enumerate(index.tolist()) if belief[i] >= 0.5]
    assert 0 < len(rows) < 7

    def reference(z):
        log_p = log_softmax(z)
        w = [weight[given[int(index[r])]] for r in rows]
        return -sum(v * log_p[r, given[int(index[r])]] for v, r in zip(w, rows, strict=True)) / sum(w)

    check(*run(Positive(NLNL, 8), store, index, logits)[:2], reference, logits)


def test_kept_loss_and_gradient():
    labelled = torch.arange(N) % 3 > 0
    store = new_store(N, C, labelled=labelled)
    Negative(NLNL, 0).begin(store, C, pass_(0))
    LearnKept(NLNL).begin(store, C, pass_(0))
    index, logits = batch()
    given = store["given"].numpy()
    weight = weights_by_hand(given, labelled.numpy())
    rows = [r for r, i in enumerate(index.tolist()) if labelled[i]]

    def reference(z):
        log_p = log_softmax(z)
        w = [weight[given[int(index[r])]] for r in rows]
        return -sum(v * log_p[r, given[int(index[r])]] for v, r in zip(w, rows, strict=True)) / sum(w)

    loss, gradient, outcome = run(LearnKept(NLNL), store, index, logits)
    check(loss, gradient, reference, logits)
    (write,) = outcome.writes
    assert write.column == "prediction"  # of all samples, those that are not learnt too
    assert write.values.numpy() == pytest.approx(np.exp(log_softmax(logits)), rel=1e-4, abs=1e-7)


def test_predicted_loss_and_gradient():
    target = torch.softmax(torch.randn(N, C, generator=torch.Generator().manual_seed(1)) * 2, 1)
    store = new_store(N, C, target=target)
    LearnPredicted(NLNL).begin(store, C, pass_(0))
    index, logits = batch()
    soft = target.double().numpy()
    weight = weights_by_hand(soft.argmax(1), np.ones(N, bool))

    def reference(z):
        log_p, own = log_softmax(z), soft[index.numpy()]
        return float((-(own * log_p).sum(1) * weight[own.argmax(1)]).mean())

    check(*run(LearnPredicted(NLNL), store, index, logits)[:2], reference, logits)


def test_a_batch_of_which_nothing_is_selected_teaches_nothing():
    """Published code divides 0 by 0 there."""
    index, logits = batch()
    for objective in (Negative(NLNL, 8), Positive(NLNL, 8)):
        store = begun(objective, belief=torch.zeros(N))
        draws = Complements(draw_complements(pass_(1), store["given"], C, 2))
        loss, gradient, _ = run(objective, store, index, logits, draws)
        assert loss == 0
        assert not gradient.any()


def test_a_sure_network_leaves_the_negative_loss_finite():
    log_p = torch.log_softmax(torch.tensor([[200.0, 0, 0]]), 1).requires_grad_()
    loss = negative_loss(log_p, torch.tensor([[0, 0]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(-2 * np.log(1e-5), rel=1e-4)
    assert torch.isfinite(log_p.grad).all()


@pytest.mark.parametrize("kind", ["negative", "selective", "positive", "kept", "predicted"])
def test_parts_of_ranks_add_up(kind):
    belief = torch.linspace(0, 1, N)
    target = torch.softmax(torch.randn(N, C, generator=torch.Generator().manual_seed(1)), 1)
    objective = {
        "negative": Negative(NLNL, 0),
        "selective": Negative(NLNL, 8),
        "positive": Positive(NLNL, 8),
        "kept": LearnKept(NLNL),
        "predicted": LearnPredicted(NLNL),
    }[kind]
    store = new_store(N, C, labelled=belief > 0.3, target=target)
    Negative(NLNL, 0).begin(store, C, pass_(0))
    store.put("belief", belief)
    index, logits = batch(size=7)
    draws = Complements(draw_complements(pass_(1), store["given"], C, 3))
    whole, gradient, _ = run(objective, store, index, logits, draws)
    parts = on_ranks(7, lambda r, share: run(objective, store, index[r::2], logits[r::2], draws, share))
    assert sum(part[0] for part in parts) / 2 == pytest.approx(whole, rel=1e-5)
    for rank, (_, part, _) in enumerate(parts):
        assert part / 2 == pytest.approx(gradient[rank::2], rel=1e-4, abs=1e-7)


# --- what goes from epoch to epoch ---


def test_belief_is_the_mean_of_the_last_epochs_across_the_stages():
    store = begun(Negative(NLNL, 0))
    history = []
    for before, epochs in ((0, 6), (6, 3), (9, 5)):
        objective = Negative(NLNL, before) if before < 9 else Positive(NLNL, before)
        objective.begin(store, C, pass_(0))
        for epoch in range(1, epochs + 1):
            history.append(np.random.default_rng(len(history)).random(N).astype(np.float32))
            store.write("seen", torch.arange(N), torch.from_numpy(history[-1]))
            objective.refresh(store, pass_(epoch))
            assert store["belief"].numpy() == pytest.approx(np.mean(history[-4:], axis=0), rel=1e-5)


def test_pseudo_labels_are_the_mean_of_the_last_predictions_and_then_stay():
    store = new_store(N, C, labelled=torch.ones(N, dtype=torch.bool))
    Negative(NLNL, 0).begin(store, C, pass_(0))
    objective = LearnKept(NLNL)
    objective.begin(store, C, pass_(0))
    history = []
    for epoch in range(1, 8):
        history.append(np.random.default_rng(epoch).dirichlet(np.ones(C), N).astype(np.float32))
        store.write("prediction", torch.arange(N), torch.from_numpy(history[-1]))
        objective.refresh(store, pass_(epoch))
        assert store["target"].numpy() == pytest.approx(np.mean(history[-4:], axis=0), rel=1e-4)
    before = store["target"].clone()
    last = LearnPredicted(NLNL)
    last.begin(store, C, pass_(0))
    index, logits = batch()
    assert run(last, store, index, logits)[2].writes == ()
    last.refresh(store, pass_(1))
    assert torch.equal(store["target"], before)
    assert "ring" not in store


def test_class_weights_of_a_class_without_samples_are_zero():
    label, among = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([True, True, True, True, False])
    assert class_weights(NLNL, label, among, 4).tolist() == [1, 3, 0, 0]
    assert class_weights(NLNL, label, ~torch.ones(5, dtype=torch.bool), 4).tolist() == [0] * 4


# --- the plan ---


def config(scale=1.0, **changes):
    found = recipe_named("cifar10").config_for("nlnl")
    return dataclasses.replace(found, epochs_scale=scale, nlnl=dataclasses.replace(found.nlnl, **changes))


def test_the_plan_is_the_published_one():
    plan = plan_of(config())
    assert [(s.name, s.schedule.epochs, s.schedule.milestones, s.start) for s in plan] == [
        ("negative", 720, (), "fresh"),
        ("selective", 720, (), "previous"),
        ("positive", 720, (), "previous"),
        ("pseudo1", 480, (193, 289), "fresh"),
        ("pseudo2", 480, (193, 289), "fresh"),
    ]
    assert [None if s.optimiser is None else s.optimiser.lr for s in plan] == [0.02, 0.02, 0.02, None, None]
    assert [s.objective.before for s in plan[:3]] == [0, 720, 1440]
    assert [s.detector is not None for s in plan] == [False, False, True, False, False]
    assert plan[2].detector.threshold == 0.5


def test_the_scale_moves_every_epoch_number():
    plan = plan_of(config(scale=0.1))
    assert [s.schedule.epochs for s in plan] == [72, 72, 72, 48, 48]
    assert plan[3].schedule.milestones == (19, 29)
    assert [s.objective.before for s in plan[:3]] == [0, 72, 144]


def test_the_detector_keeps_what_the_network_believes():
    detector = plan_of(config(keep=0.75))[2].detector
    found = detector([torch.linspace(0, 1, 5)], np.zeros(5, np.int64), 2)
    assert found.labelled.tolist() == [False] * 3 + [True] * 2
    assert detector.adjustable == ("nlnl.keep",)


def test_one_class_is_refused():
    store = new_store(6, 1)
    with pytest.raises(UserError, match="at least 2 classes"):
        Negative(NLNL, 0).begin(store, 1, pass_(0))


def test_a_rate_of_zero_is_the_runs():
    assert [s.optimiser for s in plan_of(config(lr=0.0))] == [None] * 5
