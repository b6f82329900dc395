"""The networks: sizes, a block against plain arithmetic, initialisation and its seed."""

import numpy as np
import pytest
import torch
import torchvision
from scipy import stats
from torch import nn

from fastdrpl.loaders.errors import UserError
from fastdrpl.models import MODEL_NAMES, build_model
from fastdrpl.models.preact_resnet import PreActBlock, preact_resnet18
from fastdrpl.models.resnet import resnet18


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("classes", "expected"), [(10, 11_171_274), (100, 11_217_444)])
def test_preact_resnet18_has_the_published_size(classes: int, expected: int):
    assert parameters(preact_resnet18(classes)) == expected


@pytest.mark.parametrize(("side", "last"), [(32, 4), (64, 8), (20, 3)])
def test_sizes_of_the_stages(side: int, last: int):
    model = preact_resnet18(7, width=8).eval()
    maps = model.stage_maps(torch.zeros(2, 3, side, side))
    assert [tuple(m.shape[:2]) for m in maps] == [(2, 8), (2, 16), (2, 32), (2, 64)]
    assert maps[0].shape[2:] == (side, side)
    assert maps[-1].shape[2:] == (last, last)
    assert [tuple(f.shape) for f in model.stage_features(torch.zeros(2, 3, side, side))] == [
        (2, 8),
        (2, 16),
        (2, 32),
        (2, 64),
    ]


def convolve(x: np.ndarray, weight: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """Cross-correlation by its definition: x (B, I, H, W), weight (O, I, k, k), float64."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    k = weight.shape[2]
    size = (x.shape[2] - k) // stride + 1
    out = np.zeros((len(x), len(weight), size, size))
    for row in range(size):
        for column in range(size):
            window = x[:, :, row * stride : row * stride + k, column * stride : column * stride + k]
            out[:, :, row, column] = np.einsum("bihw,oihw->bo", window, weight)
    return out


def normalise(x: np.ndarray, norm: nn.BatchNorm2d) -> np.ndarray:
    """Batch normalisation with the statistics of the batch, then ReLU."""
    mean, variance = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
    scale = norm.weight.detach().numpy()[:, None, None]
    return np.maximum(
        (x - mean) / np.sqrt(variance + 1e-5) * scale + norm.bias.detach().numpy()[:, None, None], 0
    )


@pytest.mark.parametrize(("width_in", "width_out", "stride"), [(3, 3, 1), (3, 5, 1), (3, 6, 2), (4, 4, 2)])
def test_block_against_plain_arithmetic(width_in: int, width_out: int, stride: int):
    torch.manual_seed(0)
    block = PreActBlock(width_in, width_out, stride).double()
    for norm in (block.bn1, block.bn2):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    x = torch.randn(4, width_in, 6, 6, dtype=torch.float64)
    h = normalise(x.numpy(), block.bn1)
    middle = convolve(h, block.conv1.weight.detach().numpy(), stride, 1)
    out = convolve(normalise(middle, block.bn2), block.conv2.weight.detach().numpy(), 1, 1)
    same_shape = width_in == width_out and stride == 1
    assert isinstance(block.shortcut, nn.Identity) == same_shape
    out += h if same_shape else convolve(h, block.shortcut.weight.detach().numpy(), stride, 0)
    np.testing.assert_allclose(block(x).detach().numpy(), out, atol=1e-12)


def test_whole_network_is_stem_blocks_mean_linear():
    model = preact_resnet18(5, width=8).eval()
    x = torch.randn(3, 3, 32, 32)
    y = torch.relu(model.stem_bn(model.stem(x)))
    for block in (block for stage in model.stages for block in stage):
        y = block(y)
    assert y.min() < 0  # nothing after the last block
    torch.testing.assert_close(model.features(x), y.mean(dim=(2, 3)))
    torch.testing.assert_close(model(x), y.mean(dim=(2, 3)) @ model.linear.weight.T + model.linear.bias)
    assert torch.equal(model.stage_features(x)[-1], model.features(x))


def test_initialisation_is_normal_by_fan_out():
    model = build_model("preact_resnet18", 10, 32, seed=3)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 16 + 3 and all(conv.bias is None for conv in convolutions)
    for conv in convolutions:
        spread = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        values = conv.weight.detach().numpy().ravel() / spread
        assert stats.kstest(values, "norm").pvalue > 1e-4
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 16
    for norm in norms:
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
    bound = (8 * 32) ** -0.5  # torch's default for a linear layer: uniform up to 1/sqrt(inputs)
    assert 0.9 * bound < model.linear.weight.abs().max() <= bound


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_weights_are_a_function_of_the_seed_and_nothing_else(name: str):
    torch.manual_seed(1)
    first = build_model(name, 3, 64, seed=5).state_dict()
    torch.rand(7)
    before = torch.get_rng_state()
    again = build_model(name, 3, 64, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = build_model(name, 3, 64, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    last = next(key for key in reversed(first) if key.endswith("weight"))
    assert first[last].shape[0] == 3
    assert not torch.equal(first[last], other[last])


def test_inception_resnet_v2_takes_photos_of_299_pixels():
    model = build_model("inception_resnet_v2", 50, 64, seed=1).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 299, 299)).shape == (1, 50)
    with pytest.raises(UserError, match="one width"):
        build_model("inception_resnet_v2", 50, 32, 0)


def test_resnet18_is_that_of_torchvision():
    ours, theirs = resnet18(50).eval(), torchvision.models.resnet18(weights=None, num_classes=50).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(ours(x), theirs(x))
    torch.testing.assert_close(ours.fc(ours.features(x)), ours(x))
    assert [f.shape[1] for f in ours.stage_features(x)] == [64, 128, 256, 512]


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(UserError, match="did you mean preact_resnet18"):
        build_model("preactresnet18", 10, 64, 0)
    with pytest.raises(UserError, match="use one of"):
        build_model("zzz", 10, 64, 0)
    for numbers in ((0, 64, 0), (10, 0, 0), (10, 64, -1), (10, 64, 2**64)):
        with pytest.raises(UserError, match="must be in"):
            build_model("preact_resnet18", *numbers)
    with pytest.raises(UserError, match="one width"):
        build_model("resnet18", 10, 32, 0)
    build_model("preact_resnet18", 2, 1, 2**64 - 1)
