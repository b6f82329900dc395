"""The order along shards: every sample once, shard after shard, the same number of steps on every rank."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdrpl.kernels.philox import permutation
from fastdrpl.loaders.dataset import Split
from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.loaders.shard_order import ShardWalk
from fastdrpl.loaders.shards import Shard, count_samples, deal_rows

PASS = Pass(seed=1, stage=2, epoch=3, purpose=Purpose.train)


def split_of(counts: list[int], bad: int = 0) -> Split:
    """A split whose shards hold so many samples; as many rows as `bad` says, from the last on, are quarantined."""
    rows = sum(counts) + bad
    valid = np.ones(rows, bool)
    valid[rows - bad :] = False
    zeros = np.zeros(rows, np.int64)
    shards = tuple(Shard(Path("s.tar"), Path("s.idx"), dealt) for dealt in deal_rows(valid, counts))
    return Split("train", Path("train.beton"), 8, 8, "raw", zeros, valid, zeros, zeros, 1 << 21, shards)


def walk_plainly(split: Split, source_row: np.ndarray, index: np.ndarray, shuffle: bool) -> list[int]:
    """What the order must be: lists and dictionaries only."""
    sample_of = {int(row): sample for sample, row in enumerate(source_row)}
    wanted = set(index.tolist())
    shards = list(range(len(split.shards)))
    if shuffle:
        shards = permutation(PASS.order_stream, len(shards)).tolist()
    return [
        sample_of[row]
        for shard in shards
        for row in split.shards[shard].rows.tolist()
        if row in sample_of and sample_of[row] in wanted
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Split, np.ndarray, np.ndarray]:
    """A split, a view that shows some of its rows in some order, and a subset of the samples."""
    split = split_of(draw(st.lists(st.integers(1, 30), min_size=1, max_size=6)), draw(st.integers(0, 2)))
    rows = draw(st.permutations(np.flatnonzero(split.valid).tolist()))
    source_row = np.array(rows[: draw(st.integers(0, len(rows)))], np.int64)
    chosen = draw(st.permutations(range(len(source_row))))
    return split, source_row, np.array(chosen[: draw(st.integers(0, len(chosen)))], np.int64)


@given(cases(), st.integers(1, 40), st.booleans(), st.integers(1, 4))
def test_ranks_walk_once_over_all_in_the_order_of_shards(case, batch_size, shuffle, world):
    split, source_row, index = case
    walk = ShardWalk(split, source_row)
    ranks = [walk(index, batch_size, PASS, shuffle, rank, world) for rank in range(world)]
    usual = [Order(index, batch_size, PASS, shuffle, rank, world) for rank in range(world)]
    wanted = walk_plainly(split, source_row, index, shuffle)
    assert [int(s) for order in ranks for step in range(len(order)) for s in order[step]] == wanted
    for order, other in zip(ranks, usual, strict=True):
        assert order.index.tolist() == wanted
        assert [len(order[step]) for step in range(len(order))] == [
            len(other[step]) for step in range(len(other))
        ]
        for step in range(len(order)):
            assert np.array_equal(order.index[order.own(step)], order[step])
            together = np.concatenate([rank[step] for rank in ranks])
            assert np.array_equal(order.batch(step), together) and len(together) == len(other.batch(step))


def test_a_rank_reads_few_shards():
    split = split_of([50] * 12)
    walk = ShardWalk(split, np.arange(600))
    shard_of = np.empty(600, int)
    for number, shard in enumerate(split.shards):
        shard_of[shard.rows] = number
    for rank in range(4):
        order = walk(np.arange(600), 40, PASS, True, rank, 4)
        rows = np.concatenate([order[step] for step in range(len(order))])
        assert len(set(shard_of[rows])) == 3


def test_a_pass_shuffles_the_shards():
    walk = ShardWalk(split_of([20] * 10), np.arange(200))
    passes = [PASS, Pass(2, 2, 3, Purpose.train), Pass(1, 2, 4, Purpose.train), Pass(1, 2, 3, Purpose.test)]
    walks = [tuple(walk(np.arange(200), 10, pass_, True).index) for pass_ in passes]
    assert len(set(walks)) == 4
    assert walks[0] == tuple(walk(np.arange(200)[::-1].copy(), 10, PASS, True).index)
    plain = {tuple(walk(np.arange(200), 10, pass_, False).index) for pass_ in passes}
    assert len(plain) == 1 and not plain & set(walks)


def test_the_order_is_pinned():
    """A change here changes stored results: a resumed run would walk differently."""
    order = ShardWalk(split_of([4, 4, 3]), np.arange(11))(np.arange(11), 4, PASS, True)
    assert order.index.tolist() == [6, 5, 7, 4, 1, 9, 3, 0, 8, 10, 2]


def test_a_row_that_is_shown_twice_is_refused():
    source_row = np.arange(20)
    source_row[7] = 3
    with pytest.raises(UserError, match=r"(?s)row 3 is shown by the samples 3 and 7.*order = index"):
        ShardWalk(split_of([10, 10]), source_row)


def test_a_set_without_shards_is_refused():
    with pytest.raises(UserError, match=r"(?s)no train shards.*--format shards"):
        ShardWalk(split_of([]), np.arange(0))


def test_a_quarantined_row_is_refused():
    with pytest.raises(UserError, match="row 20 is quarantined"):
        ShardWalk(split_of([10, 10], bad=1), np.arange(21))


def test_rows_that_are_not_there_are_refused():
    with pytest.raises(UserError, match=r"want 0..19"):
        ShardWalk(split_of([10, 10]), np.array([20]))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"index": np.arange(3, dtype=np.int32)}, TypeError),
        ({"index": np.zeros((2, 2), np.int64)}, TypeError),
        ({"index": np.array([-1])}, ValueError),
        ({"index": np.array([20])}, ValueError),
        ({"index": np.array([4, 4])}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"rank": 2, "world": 2}, ValueError),
        ({"world": 0}, ValueError),
    ],
)
def test_bad_arguments_are_refused(arguments, error):
    walk = ShardWalk(split_of([10, 10]), np.arange(20))
    with pytest.raises(error, match="want"):
        walk(**{"index": np.arange(3), "batch_size": 2, "pass_": PASS, "shuffle": True, **arguments})


def test_steps_beyond_the_end_and_a_global_span():
    walk = ShardWalk(split_of([10, 10]), np.arange(20))
    order = walk(np.arange(20), 5, PASS, True, 0, 2)
    for step in (-1, 4):
        with pytest.raises(IndexError, match="step"):
            order[step]
        with pytest.raises(IndexError, match="step"):
            order.batch(step)
    with pytest.raises(ValueError, match="apart"):
        order.span(0)
    assert walk(np.arange(20), 5, PASS, True).span(1) == slice(5, 10)
    with pytest.raises(ValueError, match="read-only"):
        order[0][:] = 0


def test_a_pass_over_imagenet_is_arranged_at_once():
    rows = 1_281_167
    split = split_of(count_samples(rows, rows * 15_000))
    walk = ShardWalk(split, np.arange(rows))
    start = time.perf_counter()
    order = walk(np.arange(rows), 128, PASS, True, 1, 2)
    order[len(order) - 1]
    assert time.perf_counter() - start < 0.5


def test_it_needs_neither_torch_nor_numba():
    code = "import sys, fastdrpl.loaders.shard_order; print({'torch', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
