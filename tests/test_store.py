"""The label store: reads, writes, and what ranks tell each other."""

import pytest
import torch
from accelerate import debug_launcher

from fastdrpl import store as store_module
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


def test_state_comes_back():
    store = LabelStore(4, CPU)
    store.put("loss", torch.zeros(4))
    store.put("target", torch.ones(4, 2))
    store.put_shared("transition", torch.eye(7))
    other = LabelStore(4, CPU)
    other.load(store.state(), store.shared_state())
    assert other.state().keys() == {"loss", "target"}
    assert torch.equal(other["target"], torch.ones(4, 2))
    assert torch.equal(other.shared("transition"), torch.eye(7))
    other.drop("loss", "absent", "transition")
    assert "loss" not in other
    assert other.shared_state() == {}


def test_a_column_stays_where_it_is_and_is_its_own():
    store, values = LabelStore(4, CPU), torch.zeros(4)
    store.put("loss", values)
    place = store["loss"].data_ptr()
    assert place != values.data_ptr()
    store.put("loss", torch.ones(4))
    store.sync()
    assert store["loss"].data_ptr() == place
    assert store["loss"].tolist() == [1.0] * 4
    store.put("loss", torch.ones(4, 2))  # another shape is another column
    assert store["loss"].shape == (4, 2)


def test_a_write_that_must_not_be_leaves_the_rows_alone():
    store = LabelStore(4, CPU)
    store.put("loss", torch.arange(4.0))
    store.write("loss", torch.tensor([1, 2]), torch.full((2,), float("nan")), unless=torch.ones(()))
    assert store["loss"].tolist() == [0, 1, 2, 3]
    store.write("loss", torch.tensor([1, 2]), torch.tensor([7.0, 8.0]), unless=torch.zeros(()))
    assert store["loss"].tolist() == [0, 7, 8, 3]


def _two_ranks() -> None:
    import torch.distributed as dist

    rank = dist.get_rank()

    def total(values):
        values = values.clone()
        dist.all_reduce(values)
        return values

    store_module.SYNC_BYTES = 48  # three rows at a time
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
