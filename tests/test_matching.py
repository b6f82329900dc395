"""MixMatch's parts against their formulas in numpy, and over ranks."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import integrate, stats
from toy_steps import new_store, on_ranks, pass_

from fastdrpl.kernels.loss_head import Share
from fastdrpl.matching import (
    draw_matching,
    imbalance,
    matching_loss,
    ramp_up,
    refine_labels,
    share_of_copies,
    sharpen,
    squared_error,
)
from fastdrpl.mixing import draw_mixing

C = 5

distributions = arrays(
    np.float32, (4, C), elements=st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1e-30, 1.0]))
).filter(lambda p: (p.sum(1) > 1e-3).all())


def random_distributions(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(C), rows)


@settings(max_examples=200)
@given(values=distributions, temperature=st.sampled_from([0.01, 0.1, 0.5, 1.0, 3.0]))
def test_sharpening_keeps_the_largest_class_and_gives_a_distribution(values, temperature):
    probability = values.astype(np.float64) / values.sum(1, keepdims=True)
    sharp = sharpen(torch.from_numpy(probability).float(), temperature).numpy()
    assert np.isfinite(sharp).all()
    np.testing.assert_allclose(sharp.sum(1), 1.0, atol=1e-5)
    largest = sharp[np.arange(4), probability.argmax(1)]
    assert (largest >= sharp.max(1) - 1e-6).all()
    assert (sharp[probability == 0] == 0).all()


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
def test_sharpening_is_the_normalised_power(temperature):
    probability = random_distributions(50)
    power = probability ** (1 / temperature)
    expected = power / power.sum(1, keepdims=True)
    np.testing.assert_allclose(sharpen(torch.from_numpy(probability), temperature), expected, rtol=1e-9)


def test_a_lower_temperature_is_more_certain():
    probability = torch.from_numpy(random_distributions(50))
    largest = [sharpen(probability, t).amax(1) for t in (2.0, 1.0, 0.5, 0.1)]
    for weaker, stronger in itertools.pairwise(largest):
        assert (stronger > weaker).all()


def test_refined_labels_are_sharpened_mixtures():
    prediction, label = random_distributions(30), np.random.default_rng(1).integers(0, C, 30)
    weight = np.linspace(0, 1, 30)
    refined = refine_labels(
        torch.from_numpy(prediction), torch.from_numpy(label), torch.from_numpy(weight), 0.5
    )
    mixed = weight[:, None] * np.eye(C)[label] + (1 - weight[:, None]) * prediction
    np.testing.assert_allclose(refined, mixed**2 / (mixed**2).sum(1, keepdims=True), rtol=1e-9)
    np.testing.assert_array_equal(refined[-1], np.eye(C)[label[-1]])  # w = 1: the given label


def test_draws_are_the_larger_part_and_a_function_of_the_pass():
    store, weight = new_store(40, C), torch.linspace(0, 1, 3000)
    draws = draw_matching(store, pass_(3), weight, alpha=4.0, copies=4)
    again = draw_matching(store, pass_(3), weight, alpha=4.0, copies=4)
    assert torch.equal(draws.coefficient, again.coefficient)
    assert torch.equal(draws.keys, again.keys)
    assert not torch.equal(draws.keys, draw_matching(store, pass_(4), weight, alpha=4.0, copies=4).keys)
    beta = draw_mixing(store, pass_(3), 3000, 4.0).coefficient.numpy()
    np.testing.assert_array_equal(draws.coefficient, np.maximum(beta, 1 - beta))
    mean = integrate.quad(lambda x: max(x, 1 - x) * stats.beta.pdf(x, 4, 4), 0, 1)[0]
    assert draws.coefficient.mean() == pytest.approx(mean, abs=0.01)
    assert len({tuple(row.argsort().tolist()) for row in draws.keys}) == 4
    for item in dataclasses.fields(draws):  # an epoch's draws are copied tensor by tensor
        assert isinstance(getattr(draws, item.name), torch.Tensor)


def test_partners_are_a_permutation_of_all_rows_by_the_keys_of_their_copies():
    draws = draw_matching(new_store(40, C), pass_(1), torch.zeros(2), alpha=1.0, copies=4)
    x, u = torch.tensor([3, 7, 1]), torch.tensor([20, 2, 9, 30])
    partner = draws.partner([(0, x), (1, x), (2, u), (3, u)])
    keys = torch.cat([draws.keys[0][x], draws.keys[1][x], draws.keys[2][u], draws.keys[3][u]])
    np.testing.assert_array_equal(partner, np.argsort(keys.numpy(), kind="stable"))
    assert sorted(partner.tolist()) == list(range(14))


def test_weight_and_coefficient_are_those_of_the_step():
    draws = draw_matching(new_store(40, C), pass_(1), torch.tensor([5.0, 6.0, 7.0]), alpha=1.0, copies=1)
    for number in range(3):
        assert draws.weight_of(torch.tensor(number)) == 5.0 + number
        assert draws.coefficient_of(torch.tensor(number)) == draws.coefficient[number]


def test_ramp_up_is_linear_and_ends():
    positions = torch.tensor([-1.0, 0.0, 4.0, 8.5, 16.0, 300.0])
    np.testing.assert_allclose(ramp_up(positions, 16), [0, 0, 0.25, 8.5 / 16, 1, 1])


def test_squared_error_is_the_mean_over_classes():
    p, q = random_distributions(9), random_distributions(9, 1)
    got = squared_error(torch.from_numpy(np.log(p)), torch.from_numpy(q))
    np.testing.assert_allclose(got, ((p - q) ** 2).mean(1), rtol=1e-9)


def test_imbalance_is_the_divergence_from_uniform_and_zero_at_least():
    p = random_distributions(9)
    got = float(imbalance(torch.from_numpy(np.log(p)), Share(9)))
    assert got == pytest.approx(stats.entropy(np.full(C, 1 / C), p.mean(0)), rel=1e-9)
    cycle = np.stack([np.roll(p[0], k) for k in range(C)])  # every class as often as the others
    assert float(imbalance(torch.from_numpy(np.log(cycle)), Share(C))) == pytest.approx(0, abs=1e-9)


def expected_loss(logits: np.ndarray, target: np.ndarray, rows: int, weight: float) -> float:
    """Equations 9 to 12, the squared error as the published code has it."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -(target[:rows] * np.log(p[:rows])).sum(1).mean()
    if len(p) > rows:
        loss += weight * ((p[rows:] - target[rows:]) ** 2).mean()
    return loss + (np.log(1 / C / p.mean(0)) / C).sum()


@pytest.mark.parametrize("rows", [6, 14])
def test_the_loss_and_its_gradient_are_those_of_the_equations(rows):
    random = np.random.default_rng(2)
    logits, target, weight = random.normal(0, 2, (14, C)), random_distributions(14), 7.0
    leaf = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    shares = (Share(rows), Share(14 - rows) if rows < 14 else None)
    loss = matching_loss(leaf, torch.tensor(target).float(), *shares, rows, torch.tensor(weight))
    assert loss.item() == pytest.approx(expected_loss(logits, target, rows, weight), rel=1e-5)
    loss.backward()
    step = 1e-5
    for place in np.ndindex(14, C):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            ends.append(expected_loss(moved, target, rows, weight))
        assert leaf.grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-5), place


def test_over_ranks_the_parts_add_up():
    """Gradients are averaged over ranks: their mean must be the gradient of the whole batch."""
    random = np.random.default_rng(3)
    logits = torch.tensor(random.normal(0, 2, (16, C)), dtype=torch.float32)
    target, weight = torch.tensor(random_distributions(16)).float(), torch.tensor(3.0)
    whole = logits.clone().requires_grad_()
    loss = matching_loss(whole, target, Share(10), Share(6), 10, weight)
    loss.backward()
    x, u = torch.arange(10), torch.arange(10, 16)
    mine = [torch.cat([x[rank::2], u[rank::2]]) for rank in (0, 1)]

    def on_rank(rank, share):
        leaf = logits[mine[rank]].requires_grad_()
        unlabelled = dataclasses.replace(share, count=6)
        part = matching_loss(leaf, target[mine[rank]], share, unlabelled, 5, weight)
        part.backward()
        return part.item(), leaf.grad

    parts = on_ranks(10, on_rank)
    assert np.mean([part for part, _ in parts]) == pytest.approx(loss.item(), rel=1e-5)
    for rank, (_, gradient) in enumerate(parts):
        torch.testing.assert_close(gradient / 2, whole.grad[mine[rank]], rtol=1e-4, atol=1e-6)


def test_share_of_copies_counts_rows():
    share = Share(7, 3, lambda t: t, lambda t: t)
    twice = share_of_copies(share, 2)
    assert (twice.count, twice.world, twice.total) == (14, 3, share.total)
