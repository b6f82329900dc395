"""A schedule over two stages gives the learning rates of the whole."""

import pytest

from fastdrpl.phases import split_schedule
from fastdrpl.settings import Schedule
from fastdrpl.stages import learning_rate


def rates(schedule):
    return [learning_rate(epoch, schedule, lr=0.2, drop=0.1) for epoch in range(1, schedule.epochs + 1)]


@pytest.mark.parametrize("milestones", [(), (4,), (5, 6), (2, 6, 9), (1, 6), (10,), (3, 3)])
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_every_epoch_has_the_rate_of_the_whole(milestones, cut):
    whole = Schedule(epochs=10, milestones=milestones)
    first, last = split_schedule(whole, cut)
    assert (first.epochs, last.epochs) == (cut, 10 - cut)
    assert rates(first) + rates(last) == rates(whole)
    assert list(last.milestones) == sorted(last.milestones)


def test_something_is_left_whatever_the_cut():
    assert split_schedule(Schedule(epochs=1), 1)[1].epochs == 1
