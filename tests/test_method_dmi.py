"""The determinant loss against numpy, and what it promises about label noise."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_steps import new_store, on_ranks, pass_, step_of

from fastdrpl.kernels.loss_head import Share
from fastdrpl.methods.dmi import RECIPES, Determinant, information_loss, joint_matrix
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named

N, C, B = 60, 4, 24
NONE, PUBLISHED = Determinant("none", B), Determinant("published", B)


def toy(seed=0, batch=B, classes=C):
    draw = torch.Generator().manual_seed(seed)
    store = new_store(N, classes, seed)
    return store, torch.randn(batch, classes, generator=draw), torch.randperm(N, generator=draw)[:batch]


def matrix_of(logits, given):
    """U = (1/n) Y^T P in numpy: rows = labels, columns = predictions."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.eye(p.shape[1])[np.asarray(given)].T @ p / len(p)


def written_out(logits, given, floor):
    u = matrix_of(logits, given)
    if floor == "published":
        return -np.log(abs(np.linalg.det(u * len(logits))) + 0.001)
    there = np.unique(given)
    return -np.log(abs(np.linalg.det(u[np.ix_(there, there)])))


@pytest.mark.parametrize("floor", ["none", "published"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_are_those_of_the_paper(floor, seed):
    store, logits, index = toy(seed)
    logits.requires_grad_()
    outcome = Determinant(floor, B).loss(step_of(store, lambda x: x, logits, index))
    outcome.loss.backward()
    given, z = store["given"][index].numpy(), logits.detach().double().numpy()
    assert len(set(given)) == C
    assert outcome.loss.dtype == torch.float32
    assert outcome.loss.item() == pytest.approx(written_out(z, given, floor), rel=1e-6)
    for place in [(0, 0), (3, 2), (B - 1, 1)]:
        shift = np.zeros_like(z)
        shift[place] = 1e-6
        difference = written_out(z + shift, given, floor) - written_out(z - shift, given, floor)
        assert logits.grad[place].item() == pytest.approx(difference / 2e-6, rel=1e-4, abs=1e-7)
    assert torch.equal(outcome.predicted, logits.argmax(1))
    assert torch.equal(outcome.wanted, store["given"][index])


def test_noise_moves_it_by_a_constant():
    """Ten copies of each image, their labels spread as an invertible T says: L' = L - log |det T|, for any network."""
    T = np.array([[0.7, 0.2, 0.0, 0.1], [0.0, 0.6, 0.4, 0.0], [0.1, 0.1, 0.8, 0.0], [0.3, 0.0, 0.0, 0.7]])
    draw = np.random.default_rng(0)
    truth = draw.permutation(np.arange(B) % C)
    copies = np.repeat(np.arange(B), 10)
    noisy = np.concatenate([np.repeat(np.arange(C), np.rint(10 * T[y]).astype(int)) for y in truth])
    share = Share(len(copies))
    shifts = []
    for scale in (0.1, 1.0, 5.0):
        p = torch.softmax(torch.from_numpy(draw.normal(0, scale, (B, C)) + 2 * scale * np.eye(C)[truth]), 1)[
            copies
        ]
        clean = information_loss(joint_matrix(p, torch.from_numpy(truth[copies]), share), len(copies))
        found = information_loss(joint_matrix(p, torch.from_numpy(noisy), share), len(copies))
        shifts.append((found - clean).item())
    assert shifts == pytest.approx([-np.log(abs(np.linalg.det(T)))] * 3, abs=1e-9)


def test_renaming_labels_changes_nothing():
    store, logits, index = toy()
    before = NONE.loss(step_of(store, lambda x: x, logits, index)).loss
    store.put("given", torch.tensor([2, 0, 3, 1])[store["given"]])
    assert NONE.loss(step_of(store, lambda x: x, logits, index)).loss.item() == pytest.approx(before.item())


def test_right_predictions_have_the_lowest_loss():
    store, _, index = toy()
    given = store["given"][index]
    right = 9.0 * torch.nn.functional.one_hot(given, C)
    share = np.bincount(given, minlength=C) / B
    losses = [
        NONE.loss(step_of(store, lambda x: x, logits.float(), index)).loss.item()
        for logits in (right, right / 4, right / 9)
    ]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(-np.log(share).sum(), abs=0.01)


# --- degenerate batches ---


@pytest.mark.parametrize("kept", [[0], [1, 3], [0, 1, 2]])
def test_classes_without_a_label_in_the_batch_are_left_out(kept):
    store, logits, index = toy()
    store.put("given", torch.tensor(kept)[torch.arange(N) % len(kept)])
    logits.requires_grad_()
    loss = NONE.loss(step_of(store, lambda x: x, logits, index)).loss
    loss.backward()
    expected = written_out(logits.detach(), store["given"][index].numpy(), "none")
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert logits.grad.isfinite().all() and logits.grad.abs().max() > 1e-3


def test_the_published_floor_takes_the_gradient_of_small_determinants():
    """Fewer images than classes, as with CIFAR-100 in batches of 64: -log 0.001, and nothing to learn from."""
    store, logits, index = toy(batch=12, classes=20)
    logits.requires_grad_()
    loss = Determinant("published", 12).loss(step_of(store, lambda x: x, logits, index)).loss
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(0.001))
    assert logits.grad.isfinite().all() and logits.grad.abs().max() < 1e-6
    logits.grad = None
    loss = Determinant("none", 12).loss(step_of(store, lambda x: x, logits, index)).loss
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.abs().max() > 1e-3


def test_a_hundred_classes_and_sure_predictions_stay_within_float64():
    draw = torch.Generator().manual_seed(0)
    store = new_store(400, 100)
    given = store["given"]
    logits = torch.randn(400, 100, generator=draw) + 12 * torch.nn.functional.one_hot(given, 100)
    logits.requires_grad_()
    loss = Determinant("none", 400).loss(step_of(store, lambda x: x, logits, torch.arange(400))).loss
    loss.backward()
    there = given.unique()
    u = matrix_of(logits.detach(), given)[np.ix_(there, there)]
    assert loss.item() == pytest.approx(-np.linalg.slogdet(u)[1], rel=1e-6)
    assert logits.grad.isfinite().all()


def test_more_classes_than_images_in_a_step_are_warned_of(capsys):
    store = new_store(N, 100)
    Determinant("none", 128).begin(store, 100, pass_(0))
    assert "60 images a step" in " ".join(capsys.readouterr().err.split())  # there are no more
    Determinant("none", 32).begin(store, 50, pass_(0))
    assert "50 classes and 32 images" in " ".join(capsys.readouterr().err.split())
    Determinant("none", 50).begin(store, 50, pass_(0))
    assert capsys.readouterr().err == ""


# --- ranks ---


@pytest.mark.parametrize("floor", ["none", "published"])
def test_ranks_share_one_determinant(floor):
    store, logits, index = toy()
    objective = Determinant(floor, B)
    whole = logits.clone().requires_grad_()
    loss = objective.loss(step_of(store, lambda x: x, whole, index)).loss
    loss.backward()

    def part(rank, share):
        own = logits[rank::2].clone().requires_grad_()
        value = objective.loss(step_of(store, lambda x: x, own, index[rank::2], share=share)).loss
        value.backward()
        return value.item(), own.grad

    parts = on_ranks(B, part)
    assert [value for value, _ in parts] == pytest.approx([loss.item()] * 2, rel=1e-6)
    for rank, (_, gradient) in enumerate(parts):
        assert torch.allclose(
            gradient / 2, whole.grad[rank::2], rtol=1e-4, atol=1e-8
        )  # averaged over two ranks


def test_a_rank_without_samples_takes_part():
    store, logits, index = toy()
    expected = NONE.loss(step_of(store, lambda x: x, logits, index)).loss.item()

    def part(rank, share):
        mine = slice(0, B) if rank == 0 else slice(0, 0)
        return NONE.loss(step_of(store, lambda x: x, logits[mine], index[mine], share=share)).loss.item()

    assert on_ranks(B, part) == pytest.approx([expected] * 2, rel=1e-6)


# --- stages ---


def plan(recipe="cifar10", settings=None, **changes):
    config = recipe_named(recipe).config_for("dmi")
    config = dataclasses.replace(config, dmi=dataclasses.replace(config.dmi, **(settings or {})), **changes)
    return config, plan_of(config)


def test_fine_tuning_goes_on_from_cross_entropy_at_a_rate_and_batch_of_its_own():
    config, (ce, dmi) = plan()
    assert (ce.start, ce.optimiser, ce.batch_size, ce.detector) == ("fresh", None, 0, None)
    assert (dmi.start, dmi.batch_size, dmi.objective.batch_size) == ("previous", 256, 256)
    assert dmi.optimiser == dataclasses.replace(config.optimiser, lr=1e-6)
    assert dmi.detector.adjustable == ("dmi.gamma",) and dmi.decides


def test_nought_is_what_the_run_has():
    config, (_, dmi) = plan(settings={"lr": 0.0, "batch_size": 0})
    assert dmi.optimiser is None
    assert dmi.batch_size == dmi.objective.batch_size == config.batch_size


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("recipe", ["cifar10", *RECIPES])
def test_every_schedule_is_scaled(recipe, scale):
    _, before = plan(recipe)
    _, after = plan(recipe, epochs_scale=scale)
    assert [stage.schedule for stage in after] == [stage.schedule.scaled(scale) for stage in before]
