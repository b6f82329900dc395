"""Two batches through a network at once, beside two forward passes, in double precision where nothing is lost."""

import copy

import pytest
import torch
from torch import nn
from toy_engine import C, N, eyes, machine, one_epoch, split  # noqa: F401 - fixtures

from fastdrpl.config import OptimiserConfig
from fastdrpl.errors import UserError
from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.learners import Learners
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.methods.drpl import SemiSupervised, Settings
from fastdrpl.models import build_model
from fastdrpl.models.joined import forward_both
from fastdrpl.store import LabelStore


def two_passes(
    network: nn.Module, free: torch.Tensor, live: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        first = network(free)
    return first, network(live)


def assert_alike(network: nn.Module, free: torch.Tensor, live: torch.Tensor) -> None:
    """Logits, gradients, running statistics and counts of one step."""
    network.zero_grad()
    other = copy.deepcopy(network)
    expected, found = two_passes(network, free, live), forward_both(other, free, live)
    assert not found[0].requires_grad and found[1].requires_grad
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)
        assert a.dtype == b.dtype
    weight = torch.randn_like(expected[1])
    (expected[1] * weight).sum().backward()
    (found[1] * weight).sum().backward()
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        torch.testing.assert_close(b.grad, a.grad, msg=name)
    for (name, a), b in zip(network.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=name)


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_joined_is_two_passes(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    width = 4 if name == "preact_resnet18" else 64
    if layout == torch.channels_last and width < 16:
        width = 16  # `models.layout` says why
    network = build_model(name, 7, width, seed=3).double().to(memory_format=layout)  # type: ignore[call-overload]
    side = 16 if width < 64 else 64
    for free, live in ((5, 5), (2, 6)):
        assert_alike(
            network, torch.randn(free, 3, side, side).double(), torch.randn(live, 3, side, side).double()
        )


def test_a_network_of_every_sort_of_convolution() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).double()
    assert_alike(network, torch.randn(4, 3, 12, 12).double(), torch.randn(3, 3, 12, 12).double())


def test_in_bf16_both_ways_convert_alike() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    free, live = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    other = copy.deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = two_passes(network, free, live), forward_both(other, free, live)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        torch.testing.assert_close(b, a, atol=0.02, rtol=0.02)
    expected[1].float().sum().backward()
    found[1].float().sum().backward()
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert b.grad is not None and b.grad.dtype == torch.float32
        torch.testing.assert_close(b.grad, a.grad, atol=0.05, rtol=0.05)


def test_a_network_that_cannot_be_joined_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"))
    with pytest.raises(UserError, match="padding 'same' cannot take two batches"):
        forward_both(network, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))


def test_a_semi_supervised_epoch_ends_the_same_joined_or_apart(machine, split, eyes) -> None:
    """The plain path is the oracle: 5 steps, with the statistics and the predictions that become pseudo-labels."""
    ends = []
    for joins in (False, True):
        network = build_model("preact_resnet18", C, 4, seed=1)
        learners = Learners([network], OptimiserConfig(lr=0.01), machine, joins=joins)
        calls = []
        network.stem.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        store = LabelStore(N, machine.device)
        store.put("given", torch.as_tensor(split.label))
        store.put("labelled", torch.arange(N) % 3 > 0)
        objective = SemiSupervised(Regulariser(0.8, 0.4), Settings())
        objective.begin(store, C, Pass(1, 2, 0, Purpose.train))
        one_epoch(learners, objective, store, eyes, Pass(1, 2, 1, Purpose.train), lambda *_: None)
        assert len(calls) == (5 if joins else 10)
        ends.append({**learners.tensors(), "prediction": store["prediction"]})
    apart, joined = ends
    assert apart.keys() == joined.keys()
    for name, values in apart.items():
        torch.testing.assert_close(
            joined[name], values, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
