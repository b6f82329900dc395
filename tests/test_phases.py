"""A schedule cut in two gives the learning rates of the whole."""

import pytest

from fastdrpl.config import OptimiserConfig
from fastdrpl.phases import first_phase, last_phase
from fastdrpl.settings import Schedule
from fastdrpl.stages import learning_rate


@pytest.mark.parametrize("milestones", [(), (4,), (5, 6), (2, 6, 9), (6,), (10,)])
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_every_epoch_has_the_rate_of_the_whole(milestones, cut):
    whole, optimiser = Schedule(epochs=10, milestones=milestones), OptimiserConfig(lr=0.2, drop=0.1)
    rates = [learning_rate(e, whole, lr=0.2, drop=0.1) for e in range(1, 11)]
    first, (last, later) = first_phase(whole, cut), last_phase(whole, cut, optimiser)
    assert (first.epochs, last.epochs) == (cut, 10 - cut)
    found = [learning_rate(e, first, lr=0.2, drop=0.1) for e in range(1, cut + 1)]
    found += [learning_rate(e, last, lr=later.lr, drop=later.drop) for e in range(1, last.epochs + 1)]
    assert found == pytest.approx(rates, rel=1e-12)
    assert (later.momentum, later.weight_decay) == (optimiser.momentum, optimiser.weight_decay)


def test_the_last_phase_has_an_epoch_whatever_the_cut():
    assert last_phase(Schedule(epochs=1), 1, OptimiserConfig())[0].epochs == 1
