"""Weighted means over a batch that is spread over ranks, and the lowest of a batch."""

import numpy as np
import pytest
import torch
from toy_steps import on_ranks

from fastdrpl.kernels.loss_head import Share
from fastdrpl.weighting import lowest, weighted_mean


@pytest.mark.parametrize("seed", range(3))
def test_weighted_mean_is_numpys_and_its_gradient_the_normalised_weights(seed):
    generator = np.random.default_rng(seed)
    values, weight = generator.normal(size=9), generator.random(9) * (generator.random(9) < 0.6)
    leaf = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    mean = weighted_mean(leaf, torch.tensor(weight, dtype=torch.float32), Share(9))
    assert mean.item() == pytest.approx(np.average(values, weights=weight), rel=1e-5)
    mean.backward()
    assert leaf.grad.numpy() == pytest.approx(weight / weight.sum(), rel=1e-5)


def test_no_weight_at_all_is_zero_with_a_zero_gradient():
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = weighted_mean(leaf, torch.zeros(2), Share(2))
    mean.backward()
    assert mean.item() == 0
    assert leaf.grad.tolist() == [0, 0]


@pytest.mark.parametrize("weight", [[1.0, 0, 2, 0, 0.5], [0.0, 1, 0, 3, 0], [0.0] * 5])
def test_parts_of_ranks_add_up(weight):
    """Also where one rank has no weight, or none has."""
    values, weight = torch.tensor([3.0, -1, 2, 7, 4]), torch.tensor(weight)
    whole = weighted_mean(values, weight, Share(5))
    parts = on_ranks(5, lambda rank, share: weighted_mean(values[rank::2], weight[rank::2], share))
    assert sum(parts) / 2 == pytest.approx(whole.item())


def test_lowest_marks_as_many_and_the_earlier_of_equals():
    values = torch.tensor([2.0, 1.0, 2.0, 0.5, 2.0])
    for count in range(7):
        chosen = lowest(values, torch.tensor(float(count)))
        order = sorted(range(5), key=lambda i: (values[i].item(), i))
        assert chosen.tolist() == [float(i in order[:count]) for i in range(5)]
