"""The peers that an epoch is measured against do the same work: from the same weights to the same weights."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import epoch_limits
from bench.epoch_data import Peer, peer_of
from bench.epoch_idiomatic import Idiomatic
from bench.epoch_limits import flops_of
from bench.epoch_ours import FIRST, Ours, config_of
from bench.epoch_reference import Reference
from bench.synthetic import write_dataset
from bench.throughput_epoch import _is_wanted
from fastdrpl.config import AugmentConfig
from fastdrpl.kernels.mixup import partners
from fastdrpl.loaders.order import Order, Purpose
from fastdrpl.mixing import draw_mixing
from fastdrpl.models import build_model

N, SIZE = 24, 16
STILL = AugmentConfig(pad=0, flip="no")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "data"
    write_dataset(out, size=SIZE, train=N, test=10)
    return out


def one_step(task: str, data: Path, folder: Path) -> tuple[Ours, Peer, dict[str, torch.Tensor], np.ndarray]:
    """Ours before its only step of an epoch without augmentation: with its weights and targets from before."""
    config = config_of(
        data, width=4, batch_size=N, device="cpu", threads=1, precision="fp32", augment=STILL, test_every=1
    )
    ours = Ours(config, folder, task)
    before = {name: value.clone() for name, value in ours.network.state_dict().items()}
    return ours, peer_of(ours), before, ours.state.store["target"].numpy().copy()


def mixing_of(ours: Ours) -> tuple[float, np.ndarray]:
    """The coefficient of ours in that step, and the sample that each sample is mixed with."""
    pass_ = ours.state.pass_(FIRST, Purpose.train)
    mixing = draw_mixing(ours.state.store, pass_, 1, 1.0)
    index = Order(np.arange(N), N, pass_, shuffle=True).index
    place = partners(mixing.keys.index_select(0, torch.from_numpy(index.copy()))).numpy()
    partner = np.empty(N, np.int64)
    partner[index] = index[place]
    return float(mixing.coefficient[0]), partner


@pytest.mark.parametrize("task", ["relabel", "semi"])
@pytest.mark.parametrize("kind", ["reference", "plain torch"])
def test_a_peer_takes_the_step_that_ours_takes(
    task: str, kind: str, data: Path, tmp_path: Path, monkeypatch
) -> None:
    ours, peer, before, targets = one_step(task, data, tmp_path / "run")
    if kind == "reference":
        side = Reference(peer, workers=0)
        side.targets = targets.copy()
    else:
        side = Idiomatic(peer, bf16=False, compiled=None)
        side.targets = torch.from_numpy(targets.copy())
    for name, value in side.network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    if task == "semi":
        coefficient, partner = mixing_of(ours)
        assert 0.01 < coefficient < 0.99 and (partner != np.arange(N)).any()

        def draw(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            order = index.tolist()
            return torch.tensor(coefficient), torch.tensor([order.index(partner[i]) for i in order])

        monkeypatch.setattr(side, "draw_mixing", draw)
    loss = side.epoch()
    ours.epoch()
    assert loss == pytest.approx(ours.last_metrics()["loss"], rel=1e-5)
    moved = 0.0
    for name, value in ours.network.state_dict().items():
        torch.testing.assert_close(side.network.state_dict()[name], value, atol=2e-5, rtol=1e-4)
        moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-3  # a step was taken, and running statistics followed
    seen = ours.state.store["prediction"].numpy()
    if kind == "plain torch":
        np.testing.assert_allclose(side.seen.numpy(), seen, atol=1e-5)
    elif task == "relabel":
        np.testing.assert_allclose(side.ring[0], seen, atol=1e-5)
    else:
        uniform = (side.targets == np.float32(1 / 10)).all(1)
        kept = ~peer.labelled & ~uniform
        assert uniform.sum() == int(0.2 * (~peer.labelled).sum())
        np.testing.assert_allclose(side.targets[kept], seen[kept], atol=1e-5)
        np.testing.assert_array_equal(side.targets[peer.labelled], targets[peer.labelled])
    assert ours.last_metrics()["test_accuracy"] is not None
    ours.close()


def test_the_bare_loop_takes_as_many_steps_and_the_work_is_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps: forward passes of the bare loop. Work: published counts of the full network at 32 pixels."""
    config = config_of(data, width=4, batch_size=10, device="cpu", threads=1, precision="fp32")
    ours = Ours(config, tmp_path / "run", "semi")
    peer = peer_of(ours)
    steps: list[tuple[int, bool]] = []

    def watched(*words: Any) -> torch.nn.Module:
        network = build_model(*words)
        network.register_forward_hook(lambda _, args, out: steps.append((len(args[0]), out.requires_grad)))
        return network

    with monkeypatch.context() as patch:
        patch.setattr(epoch_limits, "build_model", watched)
        epoch_limits.bare_loop(ours, peer)()
    assert steps == [
        (10, False),
        (10, True),
        (14, False),
        (14, True),
    ]  # a tail of four joins the batch before
    full = dataclasses.replace(peer, width=64, pixels=np.zeros((1, 32, 32, 3), np.uint8))
    assert flops_of(dataclasses.replace(full, task="relabel")) == pytest.approx(3.3290e9, rel=1e-4)
    assert flops_of(full) == pytest.approx(3.3290e9 + 1.1108e9, rel=1e-4)
    ours.close()


def test_sides_are_chosen_by_words() -> None:
    names = ("ours", "ours, whole epoch", "bare loop", "reference", "reference, training", "plain torch")
    for words, wanted in (
        ((), {0, 1, 2, 3, 5}),
        (("bare", "plain"), {0, 2, 5}),
        (("reference",), {0, 3}),
        (("training",), {0, 4}),
    ):
        assert {k for k, name in enumerate(names) if _is_wanted(name, words)} == wanted


def test_losses_are_those_of_single_steps(data: Path, tmp_path: Path) -> None:
    config = config_of(data, width=4, batch_size=8, device="cpu", threads=1, precision="fp32")
    ours = Ours(config, tmp_path / "run", "relabel")
    losses = ours.losses(3)  # an epoch of three steps
    assert len(losses) == 3
    assert np.mean(losses) == pytest.approx(ours.last_metrics()["loss"], rel=1e-6)
    ours.close()
