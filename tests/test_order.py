"""The order of a pass: every sample once, whatever the ranks; a pure function; any step at once."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdrpl.loaders.order import ORDER_VIEW, SMALLEST_TAIL, Order, Pass, Purpose

PASS = Pass(seed=1, stage=2, epoch=3, purpose=Purpose.train)
SETS = st.sets(st.integers(0, 2**32 - 1), max_size=80).map(lambda chosen: np.array(list(chosen), np.int64))


def walk(order: Order) -> list[int]:
    return [int(sample) for step in range(len(order)) for sample in order[step]]


@given(SETS, st.integers(1, 40), st.booleans())
@settings(deadline=None)
def test_every_sample_once(index, batch_size, shuffle):
    order = Order(index, batch_size, PASS, shuffle)
    seen = walk(order)
    assert sorted(seen) == sorted(index.tolist())
    if not shuffle:
        assert seen == index.tolist()


def check_ranks(index, batch_size, world):
    alone = Order(index, batch_size, PASS, True)
    ranks = [Order(index, batch_size, PASS, True, rank, world) for rank in range(world)]
    assert {len(order) for order in ranks} == {len(alone)}
    for step in range(len(alone)):
        together = np.full(len(alone[step]), -1)
        for rank, order in enumerate(ranks):
            together[rank::world] = order[step]
            assert np.array_equal(order.batch(step), alone[step])
        assert np.array_equal(together, alone[step])


@given(SETS, st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None)
def test_ranks_together_are_one_rank(index, batch_size, world):
    """R10."""
    check_ranks(index, batch_size, world)


@pytest.mark.slow
@given(SETS, st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None, max_examples=2000)
def test_ranks_together_are_one_rank_in_two_thousand_cases(index, batch_size, world):
    """R10: the whole figure."""
    check_ranks(index, batch_size, world)


@pytest.mark.parametrize(
    ("samples", "batch_size", "lengths"),
    [
        (0, 4, []),
        (1, 4, [1]),
        (5, 8, [5]),
        (16, 8, [8, 8]),
        (21, 8, [8, 13]),
        (22, 8, [8, 8, 6]),
        (10, 4, [4, 6]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_short_tail_joins_the_batch_before_it(samples, batch_size, lengths):
    order = Order(np.arange(samples), batch_size, PASS, True)
    assert [len(order[step]) for step in range(len(order))] == lengths


@given(st.integers(1, 500), st.integers(SMALLEST_TAIL, 60))
def test_no_batch_is_shorter_than_the_smallest_tail(samples, batch_size):
    order = Order(np.arange(samples), batch_size, PASS, False)
    lengths = [len(order[step]) for step in range(len(order))]
    assert min(lengths) >= min(SMALLEST_TAIL, samples)
    assert max(lengths) < batch_size + SMALLEST_TAIL


def test_the_pass_keys_the_order():
    passes = [
        PASS,
        Pass(2, 2, 3, Purpose.train),
        Pass(1 + 2**32, 2, 3, Purpose.train),
        Pass(1, 3, 3, Purpose.train),
        Pass(1, 2, 4, Purpose.train),
        Pass(1, 3, 2, Purpose.train),
        Pass(1, 2, 3, Purpose.track_fit),
        Pass(1, 2, 3, Purpose.train, view=1),
    ]
    walks = [tuple(walk(Order(np.arange(100), 10, pass_, True))) for pass_ in passes]
    assert len(set(walks)) == len(passes)
    assert walks[0] == tuple(walk(Order(np.arange(100)[::-1].copy(), 10, PASS, True)))


def test_orders_are_pinned():
    """A change here changes every stored result: a resumed run would walk differently."""
    assert walk(Order(np.arange(10), 4, PASS, True)) == [9, 0, 4, 2, 3, 8, 6, 1, 7, 5]


def test_order_and_crops_do_not_share_words():
    """Were the shuffle keyed like the crops, samples sorted by their key would be sorted by their top, too."""
    from fastdrpl.kernels.philox import integers, words

    assert PASS.order_stream != PASS.stream
    order = Order(np.arange(10_000), 100, PASS, True)
    for word in words(PASS.stream, order.index)[:3]:
        drawn = integers(word, 1000)
        assert abs(np.corrcoef(drawn, np.arange(10_000))[0, 1]) < 0.05


def test_streams_of_all_purposes_and_views_differ():
    streams = [
        stream
        for purpose in Purpose
        for view in (0, 1, ORDER_VIEW - 1)
        for stream in (Pass(0, 0, 0, purpose, view).stream, Pass(0, 0, 0, purpose, view).order_stream)
    ]
    assert len(set(streams)) == len(streams)
    with pytest.raises(ValueError, match="view"):
        Pass(0, 0, 0, Purpose.train, ORDER_VIEW)


def test_steps_may_be_asked_for_in_any_order():
    """R10."""
    order = Order(np.arange(103), 10, PASS, True)
    forwards = [order[step].tolist() for step in range(len(order))]
    for step in np.random.default_rng(0).integers(0, len(order), 500):
        assert order[int(step)].tolist() == forwards[step]
    for step in (-1, len(order)):
        with pytest.raises(IndexError, match="step"):
            order[step]


def test_a_far_step_comes_at_once():
    """R10."""
    start = time.process_time()  # of this process: others may compute as well
    order = Order(np.arange(1_281_167), 1, PASS, True)
    assert len(order[1_000_000]) == 1
    ready = time.process_time()
    for step in range(1_000_000, 1_001_000):
        order[step]
    assert ready - start < 1
    assert time.process_time() - ready < 0.1


def test_the_walk_cannot_be_changed_from_outside():
    index = np.arange(20)
    order = Order(index, 5, PASS, False)
    index[:] = 0
    assert walk(order) == list(range(20))
    with pytest.raises(ValueError, match="read-only"):
        order[0][:] = 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"index": np.arange(3, dtype=np.int32)}, TypeError),
        ({"index": np.zeros((2, 2), np.int64)}, TypeError),
        ({"index": np.array([-1])}, ValueError),
        ({"index": np.array([2**32])}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"rank": 2, "world": 2}, ValueError),
        ({"rank": -1}, ValueError),
        ({"world": 0}, ValueError),
    ],
)
def test_bad_arguments_are_refused(arguments, error):
    with pytest.raises(error, match="want"):
        Order(**{"index": np.arange(3), "batch_size": 2, "pass_": PASS, "shuffle": True, **arguments})


def test_importing_the_order_needs_neither_torch_nor_numba():
    code = "import sys, fastdrpl.loaders.order, fastdrpl.loaders.batch; print({'torch', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
