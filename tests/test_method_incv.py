"""INCV's selection against the algorithm written with sets, and co-teaching against its rule in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import ToyNetwork, minibatch, new_store, on_ranks, pass_

from fastdrpl.errors import UserError
from fastdrpl.kernels.philox import permutation
from fastdrpl.methods.incv import (
    CoTeaching,
    HalfTraining,
    Keep,
    Settings,
    divide,
    noise_rate,
    removed_count,
    wrong_among_selected,
)
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.stages import Step

N, C = 80, 4
INCV = Settings(iterations=3)


def predictions(seed, samples=N):
    return np.random.default_rng(seed).dirichlet(np.ones(C) * 0.7, samples).astype(np.float32)


# --- the noise rate ---


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_noise_rate_solves_the_accuracy_formula(classes):
    for rate in np.linspace(0, (classes - 1) / classes, 9):
        agreement = (1 - rate) ** 2 + rate**2 / (classes - 1)
        # Near the minimum of the formula agreement hardly depends on the rate.
        assert noise_rate(agreement, classes) == pytest.approx(rate, abs=1e-6)
    assert noise_rate(0.0, classes) == pytest.approx((classes - 1) / classes)
    assert noise_rate(1.0, classes) == 0
    assert noise_rate(1.0, 1) == 0


def test_the_formula_is_that_of_two_independent_symmetric_draws():
    """A network that has fitted such labels errs as they do: simulated agreement, precision of what agrees."""
    generator, rate, classes, draws = np.random.default_rng(0), 0.4, 5, 400_000
    label, prediction = (
        np.where(generator.random(draws) < rate, generator.integers(1, classes, draws), 0) for _ in range(2)
    )
    agrees = label == prediction
    assert noise_rate(agrees.mean(), classes) == pytest.approx(rate, abs=5e-3)
    assert wrong_among_selected(rate, classes) == pytest.approx((label[agrees] != 0).mean(), abs=3e-3)


def test_what_is_removed_is_bounded_and_nothing_where_nothing_agreed():
    assert [removed_count(rate, 10) for rate in (0.0, 0.2, 0.5, 0.6, 0.99, 1.0)] == [0, 2, 10, 15, 20, 20]
    assert removed_count(0.9, 0) == 0
    assert wrong_among_selected(0.0, 1) == 0
    assert wrong_among_selected(1.0, 3) == 1


# --- halves ---


def test_halves_are_a_keyed_partition_of_the_candidates():
    candidates = np.random.default_rng(0).random(N) < 0.6
    half = divide(candidates, pass_(0))
    assert np.array_equal(half >= 0, candidates)
    sizes = [(half == number).sum() for number in (0, 1)]
    assert sizes[0] == candidates.sum() // 2
    assert sum(sizes) == candidates.sum()
    assert np.array_equal(half, divide(candidates, pass_(0)))
    assert not np.array_equal(half, divide(candidates, pass_(0, stage=3)))
    index = np.flatnonzero(candidates)
    by_crops = index[
        permutation(pass_(0).stream, index)
    ]  # what keys other draws of the pass divides otherwise
    assert set(by_crops[: sizes[0]].tolist()) != set(np.flatnonzero(half == 0).tolist())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_candidates_have_defined_halves(count):
    half = divide(np.arange(5) < count, pass_(0))
    assert [(half == number).sum() for number in (0, 1)] == [count // 2, count - count // 2]


# --- the iterations ---


def carry_out(store, settings, looked, epochs=1, rate=None):
    """The stages of all iterations with made-up predictions; -> what each stage was trained on."""
    trained, stage = [], 0
    for iteration in range(1, settings.iterations + 1):
        for half in (0, 1):
            stage += 1
            objective = HalfTraining(settings, iteration, half, epochs)
            objective.begin(store, C, pass_(0, stage))
            if rate is not None and stage == 2:
                store.put_shared("noise_rate", torch.tensor(rate, dtype=torch.float64))
            ((walk,),) = objective.rounds(store, pass_(1, stage))
            trained.append(walk.index)
            for epoch in range(1, epochs + 1):
                store.put("probability", torch.from_numpy(looked(stage, epoch)))
                objective.refresh(store, pass_(epoch, stage))
    return trained


@pytest.mark.parametrize("remove", ["yes", "no"])
@pytest.mark.parametrize("seed", range(4))
def test_the_selection_is_the_algorithms(seed, remove):
    settings = dataclasses.replace(INCV, remove=remove)
    store = new_store(N, C, seed)
    given = store["given"].numpy()
    trained = carry_out(store, settings, lambda stage, epoch: predictions((seed, stage)))

    selected, pool, rate = set(), set(range(N)), 0.0
    for iteration in range(3):
        halves = [set(trained[2 * iteration + k].tolist()) - selected for k in (0, 1)]
        assert halves[0] | halves[1] == pool
        assert not halves[0] & halves[1]
        assert selected <= set(trained[2 * iteration].tolist()) & set(trained[2 * iteration + 1].tolist())
        agreeing, removed = set(), set()
        for k in (0, 1):  # the network of half k judges the other one
            p, other = predictions((seed, 2 * iteration + k + 1)), sorted(halves[1 - k])
            agree = {i for i in other if p[i].argmax() == given[i]}
            if iteration == 0 and k == 0:
                most = (C - 1) / C
                rate = most * (1 - np.sqrt(max(0.0, 1 - (1 - len(agree) / len(other)) / most)))
            count = int(min(2, rate / (1 - rate)) * len(agree))
            by_loss = sorted(other, key=lambda i: (p[i, given[i]], i))
            agreeing |= agree
            removed |= set(by_loss[:count]) if remove == "yes" else set()
        selected |= agreeing
        pool -= agreeing | removed
    assert float(store.shared("noise_rate")) == pytest.approx(rate)

    detector = plan_of(config(iterations=3))[-2].detector
    found = detector([store[name] for name in detector.reads], given, C)
    assert set(np.flatnonzero(found.labelled).tolist()) == selected
    store.put("labelled", torch.from_numpy(found.labelled))
    CoTeaching(settings, 5, 5, 16).begin(store, C, pass_(0, 7))
    assert set(np.flatnonzero(store["candidate"].numpy()).tolist()) == pool
    assert "held_out" not in store


def test_nobody_judges_what_it_was_trained_on():
    store = new_store(N, C)
    settings = dataclasses.replace(INCV, iterations=1)
    objective = HalfTraining(settings, 1, 0, 1)
    objective.begin(store, C, pass_(0))
    ((walk,),) = objective.rounds(store, pass_(1))
    store.put("probability", torch.from_numpy(predictions(1)))
    objective.refresh(store, pass_(1))
    assert not store["held_out"][walk.index].any()
    others = np.setdiff1d(np.arange(N), walk.index)
    assert torch.equal(store["held_out"][others], store["probability"][others])


@pytest.mark.parametrize(("which", "expected"), [("best", 2), ("last", 4)])
def test_the_predictions_are_those_of_the_best_or_of_the_last_epoch(which, expected):
    store = new_store(N, C)
    given = store["given"].numpy()
    right = np.random.default_rng(5).random(N)

    def looked(stage, epoch):
        wanted = np.where(right < (0.2, 0.7, 0.7, 0.4)[epoch - 1], given, (given + 1) % C)
        rest = np.full((N, C), 0.1 * epoch / (C - 1), dtype=np.float32)
        rest[np.arange(N), wanted] = 1 - 0.1 * epoch
        return rest

    carry_out(store, dataclasses.replace(INCV, iterations=1, epoch=which), looked, epochs=4)
    assert np.array_equal(store["held_out"].numpy(), looked(1, expected))


def test_nothing_agreeing_removes_nothing_and_everything_agreeing_ends_the_division():
    store = new_store(N, C)
    given = store["given"].numpy()
    never = np.eye(C, dtype=np.float32)[(given + 1) % C]
    carry_out(store, INCV, lambda stage, epoch: never)
    assert not store["selected"].any()
    assert not store["removed"].any()

    store = new_store(N, C)
    always = np.eye(C, dtype=np.float32)[given]
    trained = carry_out(store, INCV, lambda stage, epoch: always)
    assert store["selected"].all()
    assert (store["half"] == -1).all()
    assert [len(index) for index in trained] == [N // 2, N // 2, N, N, N, N]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_next_to_no_samples_do_not_crash(samples):
    store = new_store(samples, C)
    given = store["given"].numpy()
    trained = carry_out(store, INCV, lambda stage, epoch: np.eye(C, dtype=np.float32)[given])
    assert all(len(index) for index in trained)
    store.put("labelled", store["selected"].clone())
    objective = CoTeaching(INCV, 2, 2, 8)
    objective.begin(store, C, pass_(0))
    assert objective.rounds(store, pass_(1))


# --- co-teaching ---


def coteaching(labelled, candidate, rate=0.3, **changes):
    """The objective, and a store in which its stage has begun."""
    store = new_store(N, C, labelled=labelled)
    for name, values in (("selected", labelled), ("removed", ~(labelled | candidate))):
        store.put(name, values.clone())
    store.put("half", torch.full((N,), -1, dtype=torch.int8))
    store.put("held_out", torch.zeros(N, C))
    store.put_shared("noise_rate", torch.tensor(rate, dtype=torch.float64))
    objective = CoTeaching(dataclasses.replace(INCV, **changes), 10, 6, 16)
    objective.begin(store, C, pass_(0))
    return objective, store


def test_the_kept_share_falls_to_that_of_the_right_labels():
    objective, store = coteaching(torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool))
    forget = 0.3**2 / (0.3**2 + (C - 1) * 0.7**2)
    for epoch, passed in ((1, 0), (2, 0.1), (6, 0.5), (11, 1), (40, 1)):
        share = objective.draw(store, pass_(epoch), 5).share
        assert share.item() == pytest.approx(1 - passed * forget, rel=1e-6)
        assert share is not store.shared("forget")


@pytest.mark.parametrize(("rate", "joins"), [(0.3, 7), (0.7, 12)])
def test_candidates_join_later_in_proportion(rate, joins):
    labelled = torch.arange(N) < 48
    objective, store = coteaching(labelled, torch.arange(N) >= 68, rate)
    for epoch in range(1, 16):
        ((first, *others),) = objective.rounds(store, pass_(epoch))
        assert np.array_equal(first.index, np.arange(48))
        assert [(walk.batch_size, walk.index.tolist()) for walk in others] == (
            [(4, list(range(68, 80)))] if epoch >= joins else []
        )
    none, store = coteaching(labelled, torch.arange(N) >= 68, rate, candidates="no")
    assert len(none.rounds(store, pass_(99))[0]) == 1
    few, store = coteaching(labelled, torch.arange(N) >= 78, rate)  # a batch of them would hardly hold one
    assert len(few.rounds(store, pass_(99))[0]) == 1
    many, store = coteaching(torch.arange(N) < 10, torch.arange(N) >= 10, rate)
    assert many.rounds(store, pass_(99))[0][1].batch_size == 8


def teach(objective, store, parts, share, shares=None):
    """A step of two networks on one or two walks of (index, images); loss, gradients, outcome."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(C, 12, generator=generator, requires_grad=True) for _ in range(2)]
    networks = tuple(ToyNetwork(lambda x, w=w: x.flatten(1) @ w.T) for w in weights)
    shares = shares or [None] * len(parts)
    batches = tuple(minibatch(images, index, s) for (index, images), s in zip(parts, shares, strict=True))
    step = Step(networks, batches, store, torch.tensor(0), torch.tensor(1), Keep(torch.tensor(share)))
    outcome = objective.loss(step)
    (outcome.loss[0] + outcome.loss[1]).backward()
    return outcome, weights


def walk_of(index, seed):
    return torch.tensor(index), torch.randn(
        len(index), 3, 2, 2, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("share", [1.0, 0.6, 0.01])
def test_each_network_learns_from_what_the_other_chose(share):
    objective, store = coteaching(torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool))
    parts = [walk_of([3, 60, 17, 44, 9, 21, 70, 5], 0), walk_of([1, 2, 4], 1)]
    outcome, weights = teach(objective, store, parts, share)
    index = torch.cat([p[0] for p in parts]).numpy()
    images = torch.cat([p[1] for p in parts]).flatten(1).double().numpy()
    given = store["given"].numpy()[index]

    def losses(w):
        z = images @ w.T
        z = z - z.max(1, keepdims=True)
        return -(z - np.log(np.exp(z).sum(1, keepdims=True)))[np.arange(11), given]

    plain = [w.detach().double().numpy() for w in weights]
    count = max(1, round(8 * share))  # of the first walk's size, chosen among both
    chosen = [np.argsort(losses(w), kind="stable")[:count] for w in plain]
    assert share == 1.0 or set(chosen[0].tolist()) != set(chosen[1].tolist())
    for k in (0, 1):
        peer = chosen[1 - k]
        assert outcome.loss[k].item() == pytest.approx(losses(plain[k])[peer].mean(), rel=1e-5)
        numeric = np.zeros((C, 12))
        for place in np.ndindex(C, 12):
            nudge = np.zeros((C, 12))
            nudge[place] = 1e-5
            up, down = losses(plain[k] + nudge)[peer].mean(), losses(plain[k] - nudge)[peer].mean()
            numeric[place] = (up - down) / 2e-5
        assert weights[k].grad.numpy() == pytest.approx(numeric, rel=1e-3, abs=1e-5)
    assert len(outcome.predicted) == len(outcome.wanted) == 8
    assert outcome.writes == ()


def test_parts_of_ranks_add_up():
    """Each rank chooses in its own part: the mean is over all that the two chose."""
    objective, store = coteaching(torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool))
    index, images = walk_of([3, 60, 17, 44, 9, 21, 70, 5], 0)
    parts = on_ranks(8, lambda r, share: teach(objective, store, [(index[r::2], images[r::2])], 0.5, [share]))
    alone = [teach(objective, store, [(index[r::2], images[r::2])], 0.5) for r in (0, 1)]
    for k in (0, 1):
        together = sum(part[0].loss[k].item() for part in parts) / 2
        assert together == pytest.approx(sum(part[0].loss[k].item() for part in alone) / 2, rel=1e-5)
        gradient = sum(part[1][k].grad for part in parts) / 2
        assert torch.allclose(gradient, sum(part[1][k].grad for part in alone) / 2, atol=1e-6)


# --- the plan ---


def config(scale=1.0, **changes):
    found = recipe_named("cifar10").config_for("incv")
    return dataclasses.replace(found, epochs_scale=scale, incv=dataclasses.replace(found.incv, **changes))


def test_the_plan_is_eight_trainings_and_two_networks():
    plan = plan_of(config())
    assert [s.name for s in plan] == [f"half{i}{h}" for i in (1, 2, 3, 4) for h in "ab"] + ["coteach"]
    assert {s.schedule.epochs for s in plan[:-1]} == {50}
    assert [s.networks for s in plan] == [1] * 8 + [2]
    assert {s.start for s in plan} == {"fresh"}
    assert [s.detector is not None for s in plan] == [False] * 7 + [True, False]
    assert all(look.every == 1 for s in plan[:-1] for look in s.looks if look.into == "probability")
    assert not any(look.every for s in plan_of(config(epoch="last")) for look in s.looks)
    assert plan[-1].objective.batch_size == 128


def test_the_scale_moves_every_epoch_number():
    plan = plan_of(config(scale=0.1))
    assert plan[0].schedule.epochs == plan[0].objective.epochs == 5
    assert plan[0].schedule.milestones == (4,)
    last = plan[-1]
    assert (last.schedule.epochs, last.schedule.milestones) == (20, (8, 12, 16))
    assert (last.objective.forget_epochs, last.objective.candidates_after) == (1, 4)


def test_candidates_that_would_never_join_are_refused():
    with pytest.raises(UserError, match=r"--incv\.candidates_after"):
        Settings(candidates_after=200)
    assert Settings(candidates_after=200, candidates="no").candidates_after == 200
