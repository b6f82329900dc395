"""DivideMix against the procedure written out in numpy: the warm-up, the splits, one step, and what it depends on."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from toy_steps import CPU, ToyNetwork, minibatch, new_store, pass_

from fastdrpl.config import ModelConfig
from fastdrpl.errors import NonFiniteError, UserError
from fastdrpl.kernels.gaussian_mixture import fit_gaussian_mixture, min_max
from fastdrpl.learners import fresh_networks
from fastdrpl.loaders.order import SMALLEST_TAIL
from fastdrpl.methods import load_method
from fastdrpl.methods.dividemix import CoDivide, Settings, WarmUp
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.settings import Schedule
from fastdrpl.stages import Step
from fastdrpl.store import LabelStore

N, C, PIXELS = 60, 4, 12
DEFAULT = Settings()


def losses_of_two_networks(seed=0):
    random = np.random.default_rng(seed)
    wrong = random.random(N) < 0.4
    columns = [np.where(wrong, random.gamma(9, s, N), random.gamma(1, 0.2, N)) for s in (0.5, 0.3)]
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def divided(settings=DEFAULT, losses=None, given=None):
    """The objective and a store after the look before the first epoch."""
    objective = CoDivide(settings, 16)
    store = new_store(N, C)
    if given is not None:
        store.put("given", given)
    objective.begin(store, C, pass_(0, 2))
    store.put("losses", losses_of_two_networks() if losses is None else losses)
    objective.refresh(store, pass_(0, 2))
    return objective, store


def softmax(logits):
    power = np.exp(logits - logits.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


# --- the plan ---


def test_stages_of_the_paper():
    """300 epochs with a warm-up of 10 or 30, and the drop after 150; two networks, the second stage goes on."""
    for recipe, warm in (("cifar10", 10), ("cifar100", 30)):
        warmup, codivide = plan_of(recipe_named(recipe).config_for("dividemix"))
        assert (warmup.schedule, warmup.networks, warmup.start) == (Schedule(epochs=warm), 2, "fresh")
        assert codivide.schedule == Schedule(epochs=300 - warm, milestones=(151 - warm,))
        assert (codivide.networks, codivide.start) == (2, "previous")
        assert (warmup.batch_size, codivide.batch_size) == (128, 64)
        assert (codivide.optimiser.lr, codivide.optimiser.weight_decay) == (0.02, 5e-4)
        assert warmup.optimiser == codivide.optimiser  # momentum goes on


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_every_epoch_number_moves_with_the_scale(scale):
    full = recipe_named("cifar10").config_for("dividemix")
    plan = plan_of(dataclasses.replace(full, epochs_scale=scale))
    assert [stage.schedule.epochs for stage in plan] == [10 * scale, 290 * scale]
    assert plan[1].schedule.milestones == (round(141 * scale),)
    assert plan[1].objective.rampup == round(16 * scale)


def test_the_run_s_optimiser_may_be_taken():
    config = recipe_named("cifar10").config_for("dividemix")
    config = dataclasses.replace(config, dividemix=Settings(optimiser="run"))
    for stage in plan_of(config):
        assert (stage.optimiser, stage.batch_size) == (None, 0)


def test_looks_come_before_the_first_epoch_and_after_each():
    each = [
        look
        for look in plan_of(recipe_named("cifar10").config_for("dividemix"))[1].looks
        if look.of == "each"
    ]
    assert all(look.into == "losses" and not look.augmented for look in each)
    assert [sum(look.due(epoch, 290) for look in each) for epoch in (0, 1, 2, 150, 290)] == [1] * 5


@pytest.mark.parametrize(
    "changed",
    [
        {"warmup_epochs": 300},
        {"warmup_epochs": 151},
        {"schedule": Schedule(epochs=20, milestones=(11,))},
    ],
)
def test_settings_that_contradict_are_refused(changed):
    with pytest.raises(UserError, match=r"--dividemix\.(warmup_epochs|schedule)"):
        Settings(**changed)


def test_every_number_has_a_source():
    method = load_method("dividemix")
    for recipe in ("cifar10", "cifar100", "imagenet32", "webvision", "folder", "digits"):
        assert all(method.sources_for(recipe).values()), recipe


# --- the warm-up ---


def test_two_networks_start_with_different_weights_and_the_first_as_it_would_alone():
    machine = types.SimpleNamespace(device=CPU)
    alone, *_ = fresh_networks(1, ModelConfig(width=4), C, 1, machine)
    first, second = fresh_networks(2, ModelConfig(width=4), C, 1, machine)
    for name, weight in alone.named_parameters():
        assert torch.equal(weight, first.state_dict()[name])
        if weight.ndim > 1:
            assert not torch.equal(weight, second.state_dict()[name]), name


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_warm_up_is_cross_entropy_for_both_with_a_penalty_on_confidence(penalty):
    store, index = new_store(N, C), torch.tensor([4, 9, 33, 2])
    leaves = [
        torch.randn(4, C, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in (1, 2)
    ]
    networks = tuple(ToyNetwork(lambda _, leaf=leaf: leaf) for leaf in leaves)
    batch = minibatch(torch.zeros(4, 3), index)
    outcome = WarmUp(penalty).loss(Step(networks, (batch,), store, torch.tensor(0), torch.tensor(1), None))
    label = store["given"][index].numpy()
    for leaf, loss in zip(leaves, outcome.loss, strict=True):
        p = softmax(leaf.detach().double().numpy())
        expected = (-np.log(p[np.arange(4), label]) + penalty * (p * np.log(p)).sum(1)).mean()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    outcome.loss[0].backward()
    assert leaves[0].grad is not None
    assert leaves[1].grad is None


# --- the splits ---


def test_w_is_the_posterior_of_each_networks_normalised_losses():
    _, store = divided()
    for network in (0, 1):
        normalised = min_max(store["losses"][:, network].numpy())
        clean = fit_gaussian_mixture(normalised).posterior(normalised)
        np.testing.assert_allclose(store["clean"][:, network], clean, atol=1e-4)
        np.testing.assert_array_equal(store["kept"][:, network], clean > 0.5)


def test_a_network_walks_over_the_split_of_the_other():
    objective, store = divided()
    assert (store["kept"][:, 0] != store["kept"][:, 1]).any()
    rounds = objective.rounds(store, pass_(1, 2))
    for network, (labelled, unlabelled) in enumerate(rounds):
        kept = store["kept"][:, 1 - network].numpy()
        np.testing.assert_array_equal(labelled.index, np.flatnonzero(kept))
        np.testing.assert_array_equal(unlabelled.index, np.flatnonzero(~kept))
        assert labelled.index.dtype == np.int64


def test_losses_may_be_averaged_over_epochs():
    objective, store = divided(Settings(average=3))
    history = [min_max(column) for column in store["losses"].numpy().T]
    history = [np.stack(history, 1)]
    for epoch in range(1, 6):
        losses = losses_of_two_networks(epoch)
        store.put("losses", losses)
        objective.refresh(store, pass_(epoch, 2))
        history.append(np.stack([min_max(column) for column in losses.numpy().T], 1))
        np.testing.assert_allclose(store["normalised"], np.mean(history[-3:], 0), atol=1e-6)


def test_without_an_unlabelled_sample_there_is_no_such_walk():
    objective, store = divided(losses=torch.full((N, 2), 2.0))
    for (walk,) in objective.rounds(store, pass_(1, 2)):
        np.testing.assert_array_equal(walk.index, np.arange(N))


@pytest.mark.parametrize("noisy", [SMALLEST_TAIL - 1, SMALLEST_TAIL])
def test_unlabelled_samples_too_few_for_a_batch_are_left_out(noisy):
    losses = torch.linspace(0, 0.1, N)[:, None].repeat(1, 2)
    losses[:noisy] += 5
    objective, store = divided(losses=losses)
    assert (~store["kept"]).sum(0).tolist() == [noisy, noisy]
    walks = [len(walks) for walks in objective.rounds(store, pass_(1, 2))]
    assert walks == ([2, 2] if noisy == SMALLEST_TAIL else [1, 1])


@pytest.mark.parametrize("classes", [1, C])
def test_one_labelled_sample_is_not_all_there_is(classes):
    """A split with one labelled sample, over all classes or with labels of a single one."""
    losses = torch.linspace(4.9, 5, N)[:, None].repeat(1, 2)
    losses[7] = 0
    objective, store = divided(losses=losses, given=torch.arange(N) % classes)
    assert (store["clean"] > 0.5).sum(0).tolist() == [1, 1]
    for labelled, unlabelled in objective.rounds(store, pass_(1, 2)):
        assert len(labelled.index) >= SMALLEST_TAIL
        assert set(store["given"][labelled.index].tolist()) == set(range(classes))
        assert sorted([*labelled.index, *unlabelled.index]) == list(range(N))
    assert store["by_rule"].sum() > 0


def test_the_epochs_that_needed_a_rule_are_counted():
    losses = torch.linspace(4.9, 5, N)[:, None].repeat(1, 2)
    losses[7] = 0
    objective, store = divided(losses=losses)
    first = store["by_rule"].clone()
    objective.refresh(store, pass_(1, 2))
    assert torch.equal(store["by_rule"], 2 * first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_stop_the_run(bad):
    losses = losses_of_two_networks()
    losses[:, 1] = bad
    with pytest.raises(NonFiniteError, match="no finite numbers"):
        divided(losses=losses)


def test_all_state_is_in_the_store():
    """What a checkpoint keeps of the store gives the same walks and the same draws."""
    objective, store = divided(Settings(average=2))
    again = LabelStore(N, CPU)
    again.load(store.state(), store.shared_state())
    for one, other in zip(
        objective.rounds(store, pass_(3, 2)), objective.rounds(again, pass_(3, 2)), strict=True
    ):
        for walk, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(walk.index, same.index)
    draws, same = (objective.draw(s, pass_(3, 2), 9) for s in (store, again))
    assert torch.equal(draws.keys, same.keys)
    assert torch.equal(draws.weight, same.weight)


@pytest.mark.parametrize("epoch", [1, 5, 17, 200])
def test_the_unlabelled_weight_grows_within_each_round(epoch):
    objective, store = divided()
    first, second = (len(walks[0].index) for walks in objective.rounds(store, pass_(epoch, 2)))
    steps = (-(-first // 4), -(-second // 4))  # of batches of 4
    weight = objective.draw(store, pass_(epoch, 2), sum(steps)).weight.numpy()
    within = np.concatenate([np.arange(n) / n for n in steps])
    expected = 25 * np.clip((epoch - 1 + within) / 16, 0, 1)
    np.testing.assert_allclose(weight, expected, atol=25 / 16 / min(steps) + 1e-5)
    assert weight[0] == pytest.approx(25 * min(1, (epoch - 1) / 16))
