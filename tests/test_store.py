"""The label store: reads, writes, and what ranks tell each other."""

import pytest
import torch
from accelerate import debug_launcher

from fastdrpl.store import LabelStore

CPU = torch.device("cpu")


def test_what_is_written_is_read_by_sample_index():
    store = LabelStore(10, CPU)
    store.put("target", torch.zeros(10, 3))
    index = torch.tensor([7, 0, 3])
    values = torch.arange(9.0).view(3, 3)
    store.write("target", index, values)
    assert torch.equal(store.read("target", index), values)
    assert torch.equal(store.read("target", torch.tensor([1, 2])), torch.zeros(2, 3))


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ValueError, match="9 rows, the store 10"):
        LabelStore(10, CPU).put("loss", torch.zeros(9))


def test_commit_refreshes_and_state_comes_back():
    store = LabelStore(4, CPU)
    store.put("loss", torch.zeros(4))
    store.commit(lambda s: s.put("target", torch.ones(4, 2)))
    other = LabelStore(4, CPU)
    other.load(store.state())
    assert other.state().keys() == {"loss", "target"}
    assert torch.equal(other["target"], torch.ones(4, 2))
    other.drop("loss", "absent")
    assert "loss" not in other


def _two_ranks() -> None:
    import torch.distributed as dist

    rank = dist.get_rank()

    def total(values):
        values = values.clone()
        dist.all_reduce(values)
        return values

    torch.manual_seed(3)
    truth = torch.randn(11, 4)
    store = LabelStore(11, CPU, total)
    store.put("prediction", torch.full((11, 4), 9.0))
    store.put("count", torch.zeros(11, dtype=torch.int64))
    mine = torch.arange(rank, 10, 2)  # sample 10 is nobody's
    for part in mine.split(2):
        store.write("prediction", part, truth[part])
        store.write("count", part, part * 3)
    store.sync()
    assert torch.equal(store["prediction"][:10], truth[:10])  # to the bit
    assert torch.equal(store["prediction"][10], torch.full((4,), 9.0))
    assert torch.equal(store["count"][:10], torch.arange(10) * 3)
    store.sync()  # nothing new: nothing changes
    assert torch.equal(store["prediction"][:10], truth[:10])


def test_two_ranks_hold_every_row_once_after_sync():
    debug_launcher(_two_ranks, num_processes=2)
