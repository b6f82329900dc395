"""Random resized crop: windows against torchvision's, pixels against torch's interpolation."""

import numpy as np
import pytest
import torch
from augment_cases import COLOURS, STREAM, images, normalise_slowly
from scipy import stats
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from fastdrpl.kernels.augment import (
    HALF_LOG_RATIO,
    ONE,
    TRIES,
    TRY_SHIFT,
    augment_resized,
    crop_window,
    exponential,
    gather_resized,
    resized_window,
)
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.philox import Stream
from fastdrpl.loaders.order import Purpose


def resize_slowly(pixels, rows, window, *, size) -> torch.Tensor:
    """One image at a time with torch's own interpolation in float64."""
    out = []
    for row, (top, left, h, w, flipped) in zip(rows.tolist(), torch.stack(window, 1).tolist(), strict=True):
        cut = pixels[row, top : top + h, left : left + w].permute(2, 0, 1)[None].double()
        resized = interpolate(cut, (size, size), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        out.append(resized.flip(1) if flipped else resized)
    return torch.stack(out)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (256, 256, 224),
        (64, 48, 17),
        (5, 7, 12),
        (1, 1, 1),
        (1, 9, 4),
        (3, 30, 7),
        (30, 3, 1),
        (400, 300, 299),
    ],
)
def test_a_resized_crop_is_torch_s_interpolation_of_the_cut(height, width, size):
    count = 3 if size > 100 else 30
    pixels, rows = images(4, height, width), torch.arange(count) % 4
    window = resized_window(STREAM, torch.arange(count), height=height, width=width, flip=True)
    expected = resize_slowly(pixels, rows, window, size=size)
    resized = gather_resized(pixels, rows, window, size=size)
    assert resized.dtype == torch.float32
    np.testing.assert_allclose(resized.numpy(), expected.numpy(), atol=1e-4, rtol=0)  # of 255
    floats = augment_resized(
        pixels, rows, torch.arange(count), STREAM, Crop(kind="resized", size=size, flip=True, **COLOURS)
    )
    assert floats.is_contiguous()
    np.testing.assert_allclose(floats.numpy(), normalise_slowly(expected.numpy()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 200), (90, 120), (17, 33)])
def test_resized_windows_are_distributed_like_torchvision_s(height, width):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)]
    )
    ours = torch.stack(resized_window(STREAM, torch.arange(20_000), height=height, width=width, flip=True), 1)
    ours, flipped = ours[:, :4].numpy(), ours[:, 4]
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    for name in ("area", "ratio"):
        one, other = ((w[:, 2] * w[:, 3] if name == "area" else w[:, 3] / w[:, 2]) for w in (ours, theirs))
        assert stats.ks_2samp(one, other).pvalue > 1e-4
    assert abs(flipped.double().mean() - 0.5) < 0.02


def test_resized_windows_lie_in_the_image():
    index = torch.arange(50_000)
    for height, width in ((256, 256), (40, 30), (2, 2), (1, 5)):
        top, left, h, w, _ = resized_window(STREAM, index, height=height, width=width, flip=False)
        assert top.min() >= 0 and left.min() >= 0 and h.min() >= 1 and w.min() >= 1
        assert (top + h).max() == height and (left + w).max() == width


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 300, (0, 143, 10, 13)), (300, 9, (144, 0, 12, 9)), (1, 1000, (0, 499, 1, 1))],
)
def test_an_image_of_an_odd_shape_gives_its_centre_as_in_torchvision(height, width, expected):
    fallback = tuple(
        RandomResizedCrop.get_params(torch.empty(3, height, width), [10.0, 10.0], [3 / 4, 4 / 3])
    )
    assert fallback == expected
    window = torch.stack(
        resized_window(STREAM, torch.arange(2000), height=height, width=width, flip=False)[:4], 1
    )
    assert (window == torch.tensor(expected)).all(1).any()


def test_the_root_and_the_power_are_exact_enough():
    x = torch.arange(-HALF_LOG_RATIO, HALF_LOG_RATIO + 1, 10_007)
    relative = exponential(x).double() / ONE / (x.double() / ONE).exp() - 1
    assert relative.abs().max() < 1e-9


def test_flips_of_resized_crops_are_those_of_padded_ones():
    index = torch.arange(1000)
    flipped = resized_window(STREAM, index, height=64, width=64, flip=True)[4]
    assert torch.equal(flipped, crop_window(STREAM, index, height=32, width=32, pad=4, size=32, flip=True)[2])
    assert not resized_window(STREAM, index, height=64, width=64, flip=False)[4].any()


def test_tries_of_a_resized_window_share_no_words_with_other_passes():
    """A try is counted above the purpose: no pass whose view or purpose is another has its words."""
    assert max(Purpose) << 16 < 1 << TRY_SHIFT and (TRIES << TRY_SHIFT) < 1 << 32
    window = {"height": 256, "width": 256, "flip": False}
    index = torch.arange(1000)
    drawn = [resized_window(Stream(5, 1, 2, view), index, **window)[0] for view in (0, 1, 1 << 8, 1 << 16)]
    for a in range(4):
        for b in range(a):
            assert (drawn[a] == drawn[b]).double().mean() < 0.1


def test_an_empty_batch_of_resized_crops():
    none = torch.empty(0, dtype=torch.int64)
    assert augment_resized(
        images(2), none, none, STREAM, Crop(kind="resized", size=9, flip=True, **COLOURS)
    ).shape == (0, 3, 9, 9)
