"""Several networks, walks side by side, rounds one after another, and rows that learn."""

import dataclasses

import numpy as np
import pytest
import torch
import toy
from toy_engine import C, N, eyes, machine, new_learners, one_epoch, split  # noqa: F401 - fixtures

from fastdrpl.config import ModelConfig, OptimiserConfig
from fastdrpl.epochs import plan_rounds
from fastdrpl.eyes import probabilities, take
from fastdrpl.kernels.loss_head import loss_head
from fastdrpl.learners import Learners, fresh_networks
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.models import build_model
from fastdrpl.stages import Learnt, Look, Objective, Outcome, Walk, Write
from fastdrpl.store import LabelStore


def two_networks(machine, **settings):
    networks = [build_model("preact_resnet18", C, 4, seed=seed) for seed in (1, 2)]
    return Learners(networks, OptimiserConfig(**settings), machine)


def test_the_mean_of_two_networks_is_looked_at(machine, split, eyes):
    learners, given = two_networks(machine), torch.as_tensor(split.label)
    pass_ = Pass(1, 1, 3, Purpose.look)
    each = take(learners, eyes, Look(into="p", read="probability", of="each"), given, pass_)
    assert each.shape == (N, C, 2)
    assert not torch.allclose(each[..., 0], each[..., 1])
    mean = probabilities(learners, eyes, pass_, augmented=False)
    assert torch.allclose(mean, each.mean(-1), atol=1e-6)
    loss = take(learners, eyes, Look(into="l", read="loss"), given, pass_)
    assert torch.allclose(loss, -mean[torch.arange(N), given].log(), atol=1e-5)


@dataclasses.dataclass(frozen=True)
class TwoWalks(Objective):
    """Two rounds; in each a long walk beside a short one that starts again, and another network learns."""

    def begin(self, store, classes, stage_pass):
        store.put("seen", torch.zeros(N, dtype=torch.int64))

    def rounds(self, store, epoch_pass):
        short = Walk(np.arange(9, dtype=np.int64), batch_size=4)
        return ((Walk(np.arange(9, N)), short), (Walk(np.arange(40), batch_size=10), short))

    def loss(self, step):
        logits = step.networks[step.round](step.inputs)
        also = step.networks[step.round](step.batches[1].inputs)
        head = loss_head(logits, step.store["given"], step.index, share=step.share)
        second = loss_head(also, step.store["given"], step.batches[1].index, share=step.batches[1].share)
        losses = [None, None]
        losses[step.round] = head.loss + second.loss
        count = step.store.read("seen", step.index) + 1
        return Outcome(tuple(losses), head.predicted, head.wanted, (Write("seen", step.index, count),))


def test_walks_side_by_side_and_round_after_round(machine, split, eyes):
    learners, objective, store = two_networks(machine), TwoWalks(), LabelStore(N, machine.device)
    store.put("given", torch.as_tensor(split.label))
    objective.begin(store, C, None)
    pass_, after, images = Pass(1, 1, 1, Purpose.train), [], []

    def note(done, count):
        images.append(count)
        after.append([p.detach().clone() for n in learners.networks for p in (n.linear.weight,)])

    one_epoch(learners, objective, store, eyes, pass_, note)
    # 74 samples in batches of 16, the last of 10; 40 in batches of 10; 9 in batches of 4, the last of 5.
    assert images == [16 + 4, 16 + 5, 16 + 4, 16 + 5, 10 + 4, 10 + 4, 10 + 5, 10 + 4, 10 + 5]
    assert store["seen"].tolist() == [1] * 9 + [2] * 31 + [1] * (N - 40)
    for step in range(1, len(after)):
        first, second = (not torch.equal(after[step][k], after[step - 1][k]) for k in (0, 1))
        assert (first, second) == ((True, False) if step < 5 else (False, True))


def test_an_epoch_of_walks_goes_on_from_any_step(machine, split, eyes):
    pass_ = Pass(1, 1, 1, Purpose.train)

    def run(stop):
        learners, objective, store = two_networks(machine), TwoWalks(), LabelStore(N, machine.device)
        store.put("given", torch.as_tensor(split.label))
        objective.begin(store, C, None)

        class Enough(Exception):
            pass

        def after_step(done, images):
            if done == stop:
                raise Enough

        if stop:
            with pytest.raises(Enough):
                one_epoch(learners, objective, store, eyes, pass_, after_step)
        one_epoch(learners, objective, store, eyes, pass_, lambda *_: None, start_step=stop)
        return learners.tensors() | {"seen": store["seen"]}

    whole = run(0)
    for stop in (1, 4, 5, 8):
        assert toy.differing(whole, run(stop)) == [], stop


@dataclasses.dataclass(frozen=True)
class LearntBias(Objective):
    """Rows that learn beside the network."""

    rate: float

    def begin(self, store, classes, stage_pass):
        store.put("bias", torch.zeros(N, C))

    def loss(self, step):
        rows = step.store.read("bias", step.index).requires_grad_()
        logits = step.network(step.inputs).float().detach() + rows + 0 * step.network(step.inputs)
        log_p = torch.log_softmax(logits, 1)
        given = step.store.read("given", step.index)
        loss = step.share.mean(-log_p.gather(1, given[:, None])[:, 0])
        return Outcome(loss, log_p.argmax(1), given, learnt=(Learnt("bias", step.index, rows, self.rate),))


def test_rows_learn_by_gradient_descent_on_the_mean_loss(machine, split, eyes):
    learners, objective, store = new_learners(machine), LearntBias(5.0), LabelStore(N, machine.device)
    store.put("given", torch.as_tensor(split.label))
    objective.begin(store, C, None)
    one_epoch(learners, objective, store, eyes, Pass(1, 1, 1, Purpose.train), lambda *_: None)
    bias = store["bias"]
    given = store["given"]
    # The gradient of -log p[y] / n is (p - one_hot(y)) / n: negative at the label only, and it sums to 0.
    assert (bias[torch.arange(N), given] > 0).all()
    assert torch.allclose(bias.sum(1), torch.zeros(N), atol=1e-5)
    others = bias.scatter(1, given[:, None], 0)
    assert (others <= 0).all()
    largest = 5.0 / 16  # rate times 1 / n, a probability missing at most
    assert bias.max() <= largest


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_no_size_of_a_walk_is_too_small_for_the_ranks(machine, split, eyes, world):
    """From one batch on, whatever the tail."""

    @dataclasses.dataclass(frozen=True)
    class Sized(Objective):
        size: int

        def rounds(self, store, epoch_pass):
            return ((Walk(np.arange(self.size)),),)

    many = dataclasses.replace(machine, world=world)
    for size in range(32, N):
        rounds = plan_rounds(Sized(size), None, eyes, Pass(1, 1, 1, Purpose.train), 32, many)
        assert rounds.images() == size


def test_two_networks_start_with_different_weights(machine):
    one, other = fresh_networks(2, ModelConfig(width=4), C, 1, machine)
    alike = [
        torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True) if p.ndim > 1
    ]
    assert alike
    assert not any(alike)
    again = fresh_networks(1, ModelConfig(width=4), C, 1, machine)[0]
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), again.parameters(), strict=True))
