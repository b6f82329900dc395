"""One epoch: bad numbers, the update, statistics, passes that only look, walks beside walks."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import toy
from torch import nn
from toy_engine import C, N, eyes, machine, new_learners, one_epoch, split  # noqa: F401 - fixtures
from toy_steps import minibatch

from fastdrpl.config import OptimiserConfig
from fastdrpl.errors import NonFiniteError
from fastdrpl.eyes import accuracy, probabilities, take
from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.learners import Learners
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.order import Order, Pass, Purpose
from fastdrpl.methods.drpl import Relabel, SemiSupervised, Settings
from fastdrpl.mixing import Mixing
from fastdrpl.pixels import Transform
from fastdrpl.stages import Look, Objective, Step
from fastdrpl.store import LabelStore


def bits(learners):
    """Weights and momentum, copied."""
    network = learners.networks[0]
    return {
        name: value.clone()
        for name, value in learners.tensors().items()
        if name.startswith("momentum.") or name.removeprefix("network.") in dict(network.named_parameters())
    }


def new_objective(split, machine):
    store = LabelStore(N, machine.device)
    store.put("given", torch.as_tensor(split.label))
    objective = Relabel(Regulariser(0.8, 0.4), 1, 2)
    objective.begin(store, C, Pass(1, 1, 0, Purpose.train))
    return objective, store


# --- (a) numbers that are not finite ---


@dataclasses.dataclass(frozen=True)
class BadLoss(Objective):
    """An objective whose loss is not finite in one step."""

    objective: Relabel
    step: int
    value: float

    def loss(self, step):
        outcome = self.objective.loss(step)
        return (
            dataclasses.replace(outcome, loss=outcome.loss * self.value)
            if step.number == self.step
            else outcome
        )


@dataclasses.dataclass
class BadInput:
    """A transform that spoils one value of one batch."""

    transform: Transform
    step: int
    value: float
    calls: int = 0

    def train(self, batch, stream):
        inputs = self.transform.train(batch, stream)
        if self.calls == self.step:
            inputs[1, 2, 3, 4] = self.value
        self.calls += 1
        return inputs


def spoil_gradient(learners, step, value):
    """One element of the gradient of one layer is not finite, while the loss is."""
    calls = []

    def hook(gradient):
        calls.append(1)
        gradient = gradient.clone()
        if len(calls) == step + 1:
            gradient.view(-1)[0] = value
        return gradient

    learners.networks[0].linear.bias.register_hook(hook)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["loss", "gradient", "input"])
@pytest.mark.parametrize("bad", [0, 1, 4])
def test_a_bad_number_stops_all_updates_and_names_its_batch(machine, split, eyes, place, value, bad):
    """R14."""
    learners = new_learners(machine)
    objective, store = new_objective(split, machine)
    if place == "loss":
        objective = BadLoss(objective, bad, value)
    elif place == "input":
        eyes = dataclasses.replace(eyes, transform=BadInput(eyes.transform, bad, value))
    else:
        spoil_gradient(learners, bad, value)
    pass_ = Pass(1, 1, 1, Purpose.train)
    order = Order(np.arange(N), 16, pass_, True)
    assert [len(order[step]) for step in range(len(order))] == [16, 16, 16, 16, 19]
    after, written = [bits(learners)], [store["prediction"].clone()]

    def note(*_):
        after.append(bits(learners))
        written.append(store["prediction"].clone())

    one_epoch(learners, objective, store, eyes, pass_, note)
    for step in range(len(order)):
        assert torch.equal(written[step], written[step + 1]) == (step >= bad), "nothing is written any more"
    for step in range(bad):
        assert toy.differing(after[step], after[step + 1]), "a sound step changes the weights"
    for step in range(bad, len(order)):
        assert toy.differing(after[bad], after[step + 1]) == []
    with pytest.raises(NonFiniteError) as caught:
        learners.meter.refuse_bad(machine)
    assert caught.value.exit_code == 4
    assert f"sample ids {order[bad].tolist()}" in str(caught.value)


# --- (b) the update ---


def test_a_step_is_sgd_written_out(machine):
    settings = OptimiserConfig(lr=0.1, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    learners = Learners([network], settings, machine)
    learners.meter.reserve(8)
    twin = copy.deepcopy(network)
    parameters, others = dict(network.named_parameters()), dict(twin.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in others.items()}
    assert {"1.weight", "1.bias", "3.bias"} <= others.keys()  # weight decay acts on these as well
    for rate in (0.1, 0.1, 0.01, 0.5, 0.001):
        inputs, wanted = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
        learners.set_learning_rate(rate)
        learners.step(nn.functional.cross_entropy(network(inputs), wanted), torch.arange(8))
        loss = nn.functional.cross_entropy(twin(inputs), wanted)
        gradients = torch.autograd.grad(loss, list(others.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(others.items(), gradients, strict=True):
                momentum[name] = 0.9 * momentum[name] + gradient + 0.01 * weight
                weight -= rate * momentum[name]
                assert torch.allclose(parameters[name], weight, rtol=1e-11, atol=1e-13)
                state = learners.tensors()[f"momentum.{name}"]
                assert torch.allclose(state, momentum[name], rtol=1e-11, atol=1e-13)


# --- (c), (d) running statistics ---


def statistics(learners):
    norms = [m for m in learners.networks[0].modules() if isinstance(m, nn.BatchNorm2d)]
    return torch.cat([m.running_mean.clone() for m in norms]), [int(m.num_batches_tracked) for m in norms]


def alike(one, other):
    return torch.equal(one[0], other[0]) and one[1] == other[1]


def test_a_frozen_forward_pass_leaves_the_statistics_alone(machine):
    learners, images = new_learners(machine), torch.randn(8, 3, 8, 8)
    trainee = learners.trainees[0]
    trainee.network.train()
    before = statistics(learners)
    frozen = trainee.frozen(images)
    assert alike(statistics(learners), before)
    trainee.frozen(images * float("inf"))  # nor does an image that is none spoil them
    assert alike(statistics(learners), before)
    normal = trainee(images)
    assert not alike(statistics(learners), before)
    assert torch.equal(frozen, normal)  # both normalise by the batch
    seen = trainee.evaluated(images)
    assert trainee.network.training
    assert not torch.equal(seen, normal)
    assert not seen.requires_grad


@pytest.mark.parametrize(("label_forward", "updates"), [("update", 2), ("freeze", 1)])
def test_how_often_a_semi_supervised_step_updates_the_statistics(machine, split, label_forward, updates):
    learners = new_learners(machine)
    store = LabelStore(N, machine.device)
    store.put("given", torch.as_tensor(split.label))
    store.put("labelled", torch.arange(N) % 2 == 0)
    objective = SemiSupervised(Regulariser(0.8, 0.4), Settings(label_forward=label_forward))
    objective.begin(store, C, Pass(1, 2, 0, Purpose.train))
    images = torch.randn(16, 3, 8, 8)
    network = learners.networks[0].train()
    batch_mean = network.stem(images).mean((0, 2, 3))
    before = network.stem_bn.running_mean.clone()
    # Coefficient 1: nothing is mixed in, so that both passes see the same images.
    draws = Mixing(torch.ones(1), torch.arange(N))
    batches = (minibatch(images, torch.arange(16)),)
    step = Step(learners.trainees, batches, store, torch.tensor(0), torch.tensor(1), draws)
    learners.meter.reserve(16)
    learners.step(objective.loss(step).loss, torch.arange(16))
    kept = 0.9**updates
    expected = kept * before + (1 - kept) * batch_mean
    assert torch.allclose(network.stem_bn.running_mean, expected, atol=1e-6)
    assert not torch.allclose(
        expected, 0.9 ** (3 - updates) * before + (1 - 0.9 ** (3 - updates)) * batch_mean
    )


# --- (e) passes that only look ---


def one_by_one(learners, eyes, split, pass_, augmented):
    """log probabilities of every image, walked singly, straight from the file."""
    pixels = np.fromfile(split.path, np.uint8)[: N * 192].reshape(N, 8, 8, 3)
    network = learners.networks[0].eval()
    rows = []
    for i in range(N):
        batch = Batch(torch.tensor(pixels[i : i + 1]), torch.tensor([0]), torch.tensor([i]))
        inputs = eyes.transform.train(batch, pass_.stream) if augmented else eyes.transform.plain(batch)
        with torch.no_grad():
            rows.append(torch.log_softmax(network(inputs), 1)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 7, 41, 80, 83, 500])  # tails of 6 and 1, of 3 (joined), none
@pytest.mark.parametrize("augmented", [True, False])
def test_looking_sees_each_sample_once(machine, split, eyes, batch_size, augmented):
    learners, given = new_learners(machine), torch.as_tensor(split.label)
    learners.networks[0].train()(torch.randn(64, 3, 8, 8))  # statistics that are not those of a fresh network
    pass_ = Pass(1, 1, 3, Purpose.track_fit)
    eyes = dataclasses.replace(eyes, batch_size=batch_size)
    before = statistics(learners)
    log_p = one_by_one(learners, eyes, split, pass_, augmented)
    losses = losses_to(learners, eyes, given, pass_, augmented)
    assert losses.shape == (N,)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, -log_p[torch.arange(N), given], atol=1e-5)
    found = probabilities(learners, eyes, pass_, augmented=augmented)
    assert torch.allclose(found, log_p.exp(), atol=1e-5)
    of_given = take(learners, eyes, Look(into="p", read="given", augmented=augmented), given, pass_)
    assert torch.allclose(of_given, log_p.exp()[torch.arange(N), given], atol=1e-5)
    if not augmented:
        right = int((log_p.argmax(1) == given).sum())
        assert 0 < right < N
        assert accuracy(learners, eyes, given, pass_) == right / N
    assert alike(statistics(learners), before)


def losses_to(learners, eyes, given, pass_, augmented):
    return take(learners, eyes, Look(into="loss", read="loss", augmented=augmented), given, pass_)


def test_the_two_passes_for_detection_draw_other_crops(machine, split, eyes):
    learners, given = new_learners(machine), torch.as_tensor(split.label)
    fit, score, again = (
        losses_to(learners, eyes, given, Pass(1, 1, 3, purpose), True)
        for purpose in (Purpose.track_fit, Purpose.track_score, Purpose.track_fit)
    )
    assert torch.equal(fit, again)
    assert (fit != score).float().mean() > 0.9
    plain = [
        losses_to(learners, eyes, given, Pass(1, 1, 3, purpose), False)
        for purpose in (Purpose.track_fit, Purpose.track_score)
    ]
    assert torch.equal(*plain)
