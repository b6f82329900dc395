"""The objectives of DRPL against the procedure written out per sample."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import step_of as toy_step_of

from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.kernels.mixup import mix, partners
from fastdrpl.kernels.pseudo_label import redraw_uniform, ring_mean, ring_write
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.methods.drpl import Relabel, SemiSupervised, Settings
from fastdrpl.mixing import Mixing, one_hot
from fastdrpl.plan import plan_of
from fastdrpl.recipes import RECIPES, recipe_named
from fastdrpl.settings import Schedule, scale_epoch
from fastdrpl.stages import learning_rate
from fastdrpl.store import LabelStore

N, C = 40, 5
CPU = torch.device("cpu")


def new_store(labelled=None):
    torch.manual_seed(0)
    store = LabelStore(N, CPU)
    store.put("given", torch.randint(0, C, (N,)))
    if labelled is not None:
        store.put("labelled", labelled)
    return store


def pass_(epoch, stage=1):
    return Pass(7, stage, epoch, Purpose.train)


def random_predictions(epoch):
    generator = torch.Generator().manual_seed(epoch)
    return torch.softmax(torch.randn(N, C, generator=generator), 1)


def step_of(store, network, inputs, index, draws=None, number=0):
    return toy_step_of(store, network, inputs, index, draws=draws, number=number)


def refresh(store, objective, refresh_pass):
    store.sync()
    objective.refresh(store, refresh_pass)


def write(store, outcome):
    """What the step asked for, as the engine does it."""
    for item in outcome.writes:
        store.write(item.column, item.index, item.values)
    return outcome


@pytest.mark.parametrize("given_epochs", [3, 12])
def test_relabel_targets_are_given_up_to_q_and_then_the_mean_of_the_last_ten(given_epochs):
    objective = Relabel(Regulariser(0.8, 0.4), given_epochs, 10)
    store = new_store()
    given = store["given"].clone()
    objective.begin(store, C, pass_(0))
    history = []
    for epoch in range(1, 26):
        expected = one_hot(given, C) if epoch <= given_epochs else np.mean(history[-10:], axis=0)
        assert np.allclose(store["target"], expected, atol=1e-6), epoch
        assert np.allclose(store["target"].sum(1), 1.0, atol=1e-5)
        prediction = random_predictions(epoch)
        history.append(prediction.numpy())
        index = torch.randperm(N)
        store.write("prediction", index, prediction[index])
        refresh(store, objective, pass_(epoch))
    assert torch.equal(store["given"], given)


def test_relabel_stores_the_prediction_of_the_one_forward_pass():
    objective = Relabel(Regulariser(0.8, 0.4), 3, 10)
    store = new_store()
    objective.begin(store, C, pass_(0))
    index = torch.tensor([3, 9, 30])
    logits = torch.randn(3, C, requires_grad=True)
    calls = []
    outcome = write(
        store,
        objective.loss(step_of(store, lambda x: calls.append(x) or logits, torch.zeros(3, 3, 4, 4), index)),
    )
    assert len(calls) == 1
    assert torch.allclose(store["prediction"][index], torch.softmax(logits.detach(), 1))
    p = torch.softmax(logits.double(), 1)
    target = one_hot(store["given"][index], C)
    expected = (
        -(target * p.log()).sum(1).mean() - 0.8 * p.mean(0).log().mean() - 0.4 * (p * p.log()).sum(1).mean()
    )
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("start", ["random", "uniform"])
def test_semi_supervised_starts_with_labels_where_kept(start):
    labelled = torch.arange(N) % 3 == 0
    store = new_store(labelled)
    SemiSupervised(Regulariser(0.8, 0.4), Settings(start_targets=start)).begin(store, C, pass_(0, 2))
    target = store["target"]
    assert torch.equal(target[labelled], one_hot(store["given"], C)[labelled])
    rest = target[~labelled]
    if start == "uniform":
        assert torch.equal(rest, torch.full_like(rest, 1 / C))
    else:
        assert torch.equal(rest.max(1).values, torch.ones(len(rest)))
        assert len(rest.argmax(1).unique()) == C


@pytest.mark.parametrize("redraw", [0.0, 0.2, 0.29, 1.0])
def test_a_fresh_share_of_the_unlabelled_becomes_uniform_each_epoch(redraw):
    labelled = torch.arange(N) % 3 == 0
    store = new_store(labelled)
    objective = SemiSupervised(Regulariser(0.8, 0.4), Settings(redraw=redraw))
    objective.begin(store, C, pass_(0, 2))
    count = int(np.floor(np.round(redraw * int((~labelled).sum()), 6)))
    drawn_before = set()
    for epoch in range(1, 6):
        prediction = random_predictions(epoch)
        store.put("prediction", prediction)
        refresh(store, objective, pass_(epoch, 2))
        target = store["target"]
        assert torch.equal(target[labelled], one_hot(store["given"], C)[labelled])
        uniform = (target == 1 / C).all(1)
        assert int(uniform.sum()) == count
        assert not (uniform & labelled).any()
        kept = ~uniform & ~labelled
        assert torch.equal(target[kept], prediction[kept])  # this epoch's, not a mean
        drawn = frozenset(uniform.nonzero()[:, 0].tolist())
        if 0 < redraw < 1:
            assert drawn not in drawn_before
        drawn_before.add(drawn)


def test_semi_targets_mean_averages_epochs():
    labelled = torch.zeros(N, dtype=torch.bool)
    store = new_store(labelled)
    objective = SemiSupervised(Regulariser(0.8, 0.4), Settings(redraw=0.0, semi_targets="mean", average=3))
    objective.begin(store, C, pass_(0, 2))
    for epoch in range(1, 6):
        store.put("prediction", random_predictions(epoch))
        refresh(store, objective, pass_(epoch, 2))
    expected = sum(random_predictions(e) for e in (3, 4, 5)) / 3
    assert torch.allclose(store["target"], expected, atol=1e-6)


@pytest.mark.parametrize("semi_targets", ["current", "mean"])
def test_the_ring_may_be_kept_in_half_precision(semi_targets):
    """Targets move by less than half a unit in the last place of numbers below 1: 2^-12."""
    labelled = torch.zeros(N, dtype=torch.bool)
    targets = []
    for ring in ("fp32", "fp16"):
        config = Settings(ring=ring, given_epochs=2, redraw=0.0, semi_targets=semi_targets)
        relabel = plan_of(dataclasses.replace(recipe_named("cifar100").config_for("drpl"), drpl=config))[
            0
        ].objective
        objectives = [relabel, SemiSupervised(Regulariser(0.8, 0.4), config)]
        for objective in objectives if semi_targets == "mean" else objectives[:1]:
            store = new_store(labelled)
            objective.begin(store, C, pass_(0, 2))
            assert store["ring"].dtype == {"fp32": torch.float32, "fp16": torch.float16}[ring]
            for epoch in range(1, 13):
                store.put("prediction", random_predictions(epoch))
                refresh(store, objective, pass_(epoch, 2))
            assert store["target"].dtype == torch.float32
            targets.append(store["target"])
    full, half = torch.stack(targets).chunk(2)
    assert 0 < (full - half).abs().max() < 2.0**-12


def test_refreshed_targets_stay_where_they_are():
    """A captured step reads the column at its place in memory."""
    store = new_store(torch.arange(N) % 2 == 0)
    for objective in (
        Relabel(Regulariser(0.8, 0.4), 1, 3),
        SemiSupervised(Regulariser(0.8, 0.4), Settings()),
    ):
        objective.begin(store, C, pass_(0, 2))
        place, before = store["target"].data_ptr(), store["target"].clone()
        store.put("prediction", random_predictions(1))
        refresh(store, objective, pass_(1, 2))
        assert store["target"].data_ptr() == place
        assert not torch.equal(store["target"], before)


def mixed_step(coefficient):
    store = new_store(torch.ones(N, dtype=torch.bool))
    objective = SemiSupervised(Regulariser(0.8, 0.4), Settings())
    objective.begin(store, C, pass_(0, 2))
    index = torch.tensor([5, 8, 2, 31, 20, 11])
    torch.manual_seed(4)
    inputs, weight = torch.randn(6, 3, 4, 4), torch.randn(C, 48)
    draws = objective.draw(store, pass_(1, 2), 3)
    draws = Mixing(torch.full_like(draws.coefficient, coefficient), draws.keys)
    seen = []

    def network(x):
        seen.append(x)
        return x.flatten(1) @ weight.T

    outcome = write(store, objective.loss(step_of(store, network, inputs, index, draws)))
    order = np.argsort(draws.keys[index].numpy(), kind="stable")
    return store, index, inputs, weight, outcome, seen, order


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 0.9, 1.0])
def test_mixed_loss_is_the_paper_s_two_cross_entropies(coefficient):
    store, index, inputs, weight, outcome, seen, order = mixed_step(coefficient)
    x = inputs.double()
    mixed = coefficient * x + (1 - coefficient) * x[order]
    assert torch.allclose(seen[1].double(), mixed, atol=1e-6)
    log_p = torch.log_softmax(mixed.flatten(1) @ weight.double().T, 1)
    target = store["target"][index].double()
    ce = [-(t * log_p).sum(1).mean() for t in (target, target[order])]
    p = log_p.exp()
    expected = coefficient * ce[0] + (1 - coefficient) * ce[1]
    expected = expected - 0.8 * p.mean(0).log().mean() - 0.4 * (p * log_p).sum(1).mean()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # The pseudo-label comes from the un-mixed images.
    unmixed = torch.softmax(inputs.flatten(1) @ weight.T, 1)
    assert torch.allclose(store["prediction"][index], unmixed, atol=1e-6)


def test_draws_are_a_function_of_the_pass():
    store = new_store(torch.zeros(N, dtype=torch.bool))
    objective = SemiSupervised(Regulariser(0.8, 0.4), Settings())
    first, again = (objective.draw(store, pass_(3, 2), 500) for _ in range(2))
    assert torch.equal(first.coefficient, again.coefficient)
    assert torch.equal(first.keys, again.keys)
    other = objective.draw(store, pass_(4, 2), 500)
    assert not torch.equal(first.coefficient, other.coefficient)
    assert not torch.equal(partners(first.keys), partners(other.keys))
    assert abs(first.coefficient.mean() - 0.5) < 0.05  # Beta(1, 1)
    assert first.coefficient.max() < 1
    assert first.coefficient.min() >= 0


def test_mix_is_exact_at_both_ends():
    values, partner = torch.randn(5, 3), torch.tensor([4, 3, 2, 1, 0])
    assert torch.equal(mix(values, partner, torch.tensor(1.0)), values)
    assert torch.equal(mix(values, partner, torch.tensor(0.0)), values[partner])


def test_ring_keeps_the_last_epochs_only():
    ring = torch.zeros(2, 3, 1)
    for epoch in range(1, 8):
        ring_write(ring, epoch, torch.full((2, 1), float(epoch)))
        last = range(max(1, epoch - 2), epoch + 1)
        assert ring_mean(ring, epoch)[0, 0] == pytest.approx(sum(last) / len(last))


def test_redraw_of_more_than_there_are_takes_all():
    target, among = torch.eye(4), torch.tensor([True, False, True, False])
    drawn = redraw_uniform(target, among, torch.tensor([9, 1, 3, 2]), 3)
    assert torch.equal((drawn == 0.25).all(1), among)


def test_learning_rate_has_dropped_in_the_milestone_epoch():
    schedule = Schedule(epochs=100, milestones=(45, 80))
    rates = {e: learning_rate(e, schedule, lr=0.1, drop=0.1) for e in (1, 44, 45, 79, 80, 81, 100)}
    assert rates == pytest.approx({1: 0.1, 44: 0.1, 45: 0.01, 79: 0.01, 80: 0.001, 81: 0.001, 100: 0.001})


def test_stages_of_the_paper():
    """CIFAR-10: 130 + 175 + 300 epochs; CIFAR-100: 100 + 175 + 300."""
    ten, hundred = (plan_of(recipe_named(name).config_for("drpl")) for name in ("cifar10", "cifar100"))
    assert [
        (s.name, s.schedule.epochs, s.schedule.milestones, s.detector.gamma, s.decides, s.start) for s in ten
    ] == [
        ("relabel", 130, (75, 110), 0.1, True, "fresh"),
        ("semi1", 175, (100, 150), 0.5, True, "fresh"),
        ("semi2", 300, (150, 225), 0.5, False, "fresh"),
    ]
    assert [s.schedule.epochs for s in hundred] == [100, 175, 300]
    assert hundred[0].schedule.milestones == (45, 80)
    assert (ten[0].objective.given_epochs, hundred[0].objective.given_epochs) == (70, 40)
    assert ten[0].objective.regulariser == Regulariser(0.8, 0.4)


def test_warmup_load_continues_a_stage_on_the_labelled():
    config = recipe_named("cifar100").config_for("drpl")
    stages = plan_of(dataclasses.replace(config, drpl=Settings(warmup="load")))
    assert [
        (s.name, s.start, s.objective.only_labelled, s.looks[0].before if s.looks else None)
        for s in stages[1:3]
    ] == [
        ("semi1-warmup", "fresh", True, None),
        ("semi1", "previous", False, True),
    ]
    assert stages[1].schedule == Schedule(epochs=10)
    store = new_store(torch.arange(N) % 3 == 0)
    ((walk,),) = stages[1].objective.rounds(store, pass_(1, 2))
    assert walk.index.tolist() == list(range(0, N, 3))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_all_stages_scale_with_the_schedule(recipe):
    config = recipe_named(recipe).config_for("drpl")
    full = plan_of(config)
    scaled = plan_of(dataclasses.replace(config, epochs_scale=0.1))
    assert [s.schedule.epochs for s in scaled] == [scale_epoch(s.schedule.epochs, 0.1) for s in full]
    assert [s.schedule.milestones for s in scaled] == [
        tuple(max(2, scale_epoch(m, 0.1)) for m in s.schedule.milestones) for s in full
    ]
