"""The ring of predictions: wherever it lies, the same bits, also after a kill; and nothing of it is left."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import toy

from fastdrpl.errors import UserError
from fastdrpl.kernels import pseudo_label
from fastdrpl.kernels.pseudo_label import ring_update
from fastdrpl.rings import map_zeros, ring_maker
from fastdrpl.store import LabelStore

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = tmp_path_factory.mktemp("rings") / "unbroken"
    assert toy.train(run, "--engine.ring", "device") == 0, toy.log_of(run)
    return run


def assert_same(run, unbroken):
    for position in range(3):
        assert toy.differing(toy.last_tensors(run, position), toy.last_tensors(unbroken, position)) == []
    assert toy.outcome(run) == toy.outcome(unbroken)


def maps_of(folder) -> list[str]:
    """What this process has mapped of a folder."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def killed(fault, run):
    os.environ["FASTDRPL_FAULT"] = fault
    toy.command([*toy.WORDS, "--engine.ring", "file", "--checkpoint.every", "0"], run)


@pytest.mark.parametrize("later", ["file", pytest.param("device", marks=pytest.mark.slow)])
def test_killed_with_a_ring_in_a_file_it_ends_in_the_same_bits(unbroken, tmp_path, later):
    """Steps and an epoch's end come after the last checkpoint: what they wrote into the file must not count."""
    run = tmp_path / "run"
    process = toy.FORKS.Process(target=killed, args=("checkpoint.folder-made:22", run))
    process.start()
    process.join(240)
    assert process.exitcode == 9, toy.log_of(run)
    newest = max((run / "checkpoints").glob("0*"))
    state = json.loads((newest / "state.json").read_text())
    assert state["rings"] == ["ring"] and state["position"]["stage"] == 0 and state["position"]["epoch"] > 3
    assert json.loads((run / "manifest.json").read_text())["memory"]["ring"] == "file"
    extra = () if later == "file" else ("--engine.ring", "device")
    assert toy.train(run, *extra) == 0, toy.log_of(run)
    assert f"ring: {later}" in toy.log_of(run).rpartition("continuing from")[0]
    assert_same(run, unbroken)


def test_a_ring_in_a_file_has_no_name_and_is_what_was_written(tmp_path):
    ring = map_zeros(tmp_path, (6, 2, 3), torch.float16)
    assert list(tmp_path.iterdir()) == []
    assert ring.sum() == 0
    ring[4, 1] = torch.tensor([1.0, 2.0, 3.0])
    assert ring[4, 1].tolist() == [1, 2, 3] and ring.sum() == 6
    mapped = maps_of(tmp_path)
    assert len(mapped) == 1 and "(deleted)" in mapped[0]
    del ring
    assert maps_of(tmp_path) == []


def test_a_disk_without_room_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left") as error:
        ring_maker("file", CPU, tmp_path)((4, 2, 3), torch.float32)
    assert "free some space" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("place", ["host", "file"])
@pytest.mark.parametrize("shape", [(97, 3, 5), (100, 10, 1), (7, 12, 33)])
def test_in_pieces_and_elsewhere_a_mean_has_the_same_bits(tmp_path, monkeypatch, shape, dtype, place):
    """Against the plain tensor, averaged as a whole with torch's own mean."""
    samples, length, classes = shape
    plain, store = (
        torch.zeros(shape, dtype=dtype),
        LabelStore(samples, CPU, None, ring_maker(place, CPU, tmp_path)),
    )
    store.put_ring("ring", length, classes, dtype)
    mean = torch.empty(samples, classes)
    monkeypatch.setattr(pseudo_label, "PIECE_BYTES", 200)
    torch.manual_seed(0)
    for epoch in range(1, 2 * length):
        prediction = torch.rand(samples, classes)
        ring_update(store["ring"], epoch, prediction, mean)
        plain[:, (epoch - 1) % length] = prediction.to(dtype)
        assert torch.equal(store["ring"], plain)
        assert torch.equal(mean, plain[:, : min(epoch, length)].mean(1, dtype=torch.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_beside_a_gpu_a_ring_in_main_memory_has_the_bits_of_one_on_the_device(dtype):
    draw = torch.Generator().manual_seed(0)
    rings = [torch.zeros(1000, 10, 37, dtype=dtype, device=device) for device in ("cuda", "cpu")]
    means = [torch.empty(1000, 37, device="cuda") for _ in rings]
    for epoch in range(1, 25):
        prediction = torch.rand(1000, 37, generator=draw).cuda()
        for ring, mean in zip(rings, means, strict=True):
            ring_update(ring, epoch, prediction, mean)
        assert torch.equal(rings[0].cpu(), rings[1])
        assert torch.equal(*means)


def test_a_ring_comes_back_where_rings_lie_and_is_dropped(tmp_path):
    maker = ring_maker("file", CPU, tmp_path)
    store, other = LabelStore(5, CPU, None, maker), LabelStore(5, CPU, None, maker)
    store.put("target", torch.ones(5, 2))
    store.put_ring("ring", 3, 2)
    store["ring"].copy_(torch.arange(30.0).view(5, 3, 2))
    assert store.rings == ("ring",)
    other.load(store.state(), {}, store.rings)
    assert other.rings == ("ring",) and torch.equal(other["ring"], store["ring"])
    assert len(maps_of(tmp_path)) == 2
    other.put_ring("ring", 3, 2)
    assert other["ring"].sum() == 0
    other.drop("ring")
    del store
    assert other.rings == () and "ring" not in other
    assert maps_of(tmp_path) == []


def test_a_checkpoint_of_before_has_no_list_of_rings():
    store = LabelStore(2, CPU)
    store.load({"ring": torch.ones(2, 3, 1)}, {}, ())
    assert store.rings == () and torch.equal(store["ring"], torch.ones(2, 3, 1))
