"""Augmentation: twin against reference, both against plain numpy, and the statistics of its draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from fastdrpl.kernels import augment as public
from fastdrpl.kernels.augment import (
    HALF_LOG_RATIO,
    ONE,
    TRIES,
    TRY_SHIFT,
    augment,
    augment_resized,
    augment_uint8,
    centre,
    crop_window,
    exponential,
    gather_crops,
    gather_resized,
    normalise,
    resized_window,
)
from fastdrpl.kernels.cpu import augment as twin
from fastdrpl.kernels.philox import Stream, words
from fastdrpl.loaders.order import Purpose

MEAN, STD = (0.49, 0.48, 0.44), (0.2, 0.25, 0.26)
COLOURS = {"mean": MEAN, "std": STD}
STREAM = Stream(5, 1, 2, 3)
CIFAR = {"pad": 4, "size": 32, "flip": True}


def images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    # No zeros: a black pixel in a crop is padding.
    return torch.randint(
        1, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def crop_slowly(pixels, rows, index, stream, *, pad, size, flip) -> np.ndarray:
    """One image at a time with np.pad and slices, the draws by hand from the words."""
    out = []
    for row, sample in zip(rows.tolist(), index.tolist(), strict=True):
        image = np.pad(pixels[row].numpy(), ((pad, pad), (pad, pad), (0, 0)))
        w0, w1, w2, _ = words(stream, sample)
        top, left = w0 * (image.shape[0] - size + 1) >> 32, w1 * (image.shape[1] - size + 1) >> 32
        crop = image[top : top + size, left : left + size]
        out.append(crop[:, ::-1] if flip and w2 >= 2**31 else crop)
    return np.stack(out) if out else np.empty((0, size, size, 3), np.uint8)


def normalise_slowly(crops: np.ndarray) -> np.ndarray:
    return ((crops / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)


def by_reference(pixels, rows, index, stream, *, pad, size, flip) -> torch.Tensor:
    _, height, width, _ = pixels.shape
    window = crop_window(stream, index, height=height, width=width, pad=pad, size=size, flip=flip)
    return gather_crops(pixels, rows, window, pad=pad, size=size)


@st.composite
def shapes(draw):
    height, width, pad = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 14))
    size = draw(st.integers(1, min(height, width) + 2 * pad))
    return height, width, pad, size


@given(shapes(), st.integers(0, 7), st.booleans(), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=300)
def test_twin_reference_and_plain_numpy_agree(shape, batch, flip, seed):
    height, width, pad, size = shape
    pixels = images(5, height, width)
    rows, index = torch.arange(batch) * 3 % 5, torch.arange(batch) + 2**32 - 7
    stream, crop = Stream(seed), {"pad": pad, "size": size, "flip": flip}
    slowly = crop_slowly(pixels, rows, index, stream, **crop)
    reference = by_reference(pixels, rows, index, stream, **crop)
    fast = augment_uint8(pixels, rows, index, stream, **crop)
    assert reference.dtype == fast.dtype == torch.uint8
    assert np.array_equal(reference.numpy(), slowly)
    assert np.array_equal(fast.numpy(), slowly)
    expected = normalise_slowly(slowly)
    floats = augment(pixels, rows, index, stream, **crop, **COLOURS)
    assert floats.dtype == torch.float32 and floats.shape == (batch, 3, size, size) and floats.is_contiguous()
    np.testing.assert_allclose(floats.numpy(), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(normalise(reference, **COLOURS).numpy(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "pad", "size"), [(32, 32, 4, 32), (256, 256, 0, 224), (64, 48, 3, 41), (7, 9, 0, 7)]
)
def test_the_parallel_twin_has_the_bits_of_the_serial_one(height, width, pad, size, monkeypatch):
    pixels, crop = images(37, height, width), {"pad": pad, "size": size, "flip": True}
    rows, index = torch.arange(64) * 7 % 37, torch.arange(64)
    results = []
    for threshold in (0, 1 << 40):  # always parallel, never parallel
        monkeypatch.setattr(twin, "PARALLEL_BYTES", threshold)
        results.append(
            (
                augment_uint8(pixels, rows, index, STREAM, **crop),
                augment(pixels, rows, index, STREAM, **crop, **COLOURS),
                centre(pixels, rows, size=min(size, height, width), **COLOURS),
            )
        )
    for parallel, serial in zip(*results, strict=True):
        assert torch.equal(parallel, serial)
    assert torch.equal(results[0][0], by_reference(pixels, rows, index, STREAM, **crop))


def test_padding_is_black_before_normalisation():
    pixels = images(1)
    crop = augment(
        pixels,
        torch.zeros(1, dtype=torch.int64),
        torch.arange(1),
        STREAM,
        pad=32,
        size=96,
        flip=False,
        **COLOURS,
    )
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    torch.testing.assert_close(
        crop[0, :, :32].flatten(1), black[:, None].expand(3, 32 * 96), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(crop[:, :, 32:64, 32:64], normalise(pixels, **COLOURS), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (256, 256, 224), (9, 7, 4), (5, 5, 1)])
def test_the_centre_is_cut_without_chance(height, width, size):
    pixels, rows = images(4, height, width), torch.tensor([3, 0, 3])
    top, left = (height - size) // 2, (width - size) // 2
    expected = normalise_slowly(pixels[rows].numpy()[:, top : top + size, left : left + size])
    np.testing.assert_allclose(
        centre(pixels, rows, size=size, **COLOURS).numpy(), expected, atol=1e-6, rtol=0
    )


def test_the_reference_serves_devices_without_a_twin(monkeypatch):
    pixels, rows, index = images(20), torch.arange(20), torch.arange(20)
    results = []
    for implementation in ("numba", "reference"):
        monkeypatch.setattr(public, "choose", lambda *_, implementation=implementation: implementation)
        out = torch.empty((20, 32, 32, 3), dtype=torch.uint8)
        assert augment_uint8(pixels, rows, index, STREAM, **CIFAR, out=out) is out
        floats = augment(pixels, rows, index, STREAM, **CIFAR, **COLOURS)
        results.append((out, floats, centre(pixels, rows, size=20, **COLOURS)))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_float_types_are_the_rounded_float32(dtype):
    pixels, rows = images(3), torch.arange(3)
    result = augment(pixels, rows, rows, STREAM, **CIFAR, **COLOURS, dtype=dtype)
    assert result.dtype == dtype
    assert torch.equal(result, augment(pixels, rows, rows, STREAM, **CIFAR, **COLOURS).to(dtype))
    assert centre(pixels, rows, size=32, **COLOURS, dtype=dtype).dtype == dtype


LAYOUTS = {
    "strided view": lambda p: torch.as_strided(
        torch.cat([p.flatten(), p.flatten()]), (9, 6, 5, 3), (10, 15, 3, 1), 7
    ),
    "every second": lambda p: p[::2],
    "cropped": lambda p: p[:, 1:5, 1:4],
    "channels first": lambda p: p.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "mirrored axes": lambda p: p.transpose(1, 2),
    "one repeated": lambda p: p[:1].expand(9, 6, 5, 3),
    "bytes of a slice": lambda p: p[3:],
    "one image": lambda p: p[4:5],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_pixels(layout):
    pixels = LAYOUTS[layout](images(10, 6, 5))
    rows = torch.tensor([0, len(pixels) - 1, 0, 0, len(pixels) // 2])
    index = torch.tensor([9, 8, 7, 6, 5])
    crop = {"pad": 1, "size": 4, "flip": True}
    expected = crop_slowly(pixels, rows, index, STREAM, **crop)
    assert np.array_equal(augment_uint8(pixels, rows, index, STREAM, **crop).numpy(), expected)
    floats = augment(pixels, rows, index, STREAM, **crop, **COLOURS)
    np.testing.assert_allclose(floats.numpy(), normalise_slowly(expected), atol=1e-6, rtol=0)


def test_rows_and_index_may_be_strided_views():
    pixels, rows, index = images(30), torch.arange(30), torch.arange(100, 130)
    whole = augment_uint8(pixels, rows, index, STREAM, **CIFAR)
    assert torch.equal(augment_uint8(pixels, rows[1::3], index[1::3], STREAM, **CIFAR), whole[1::3])


def test_a_crop_depends_on_its_sample_alone():
    """Neither on the batch around it nor on where its pixels lie."""
    pixels = images(30)
    whole = augment_uint8(pixels, torch.arange(30), torch.arange(30), STREAM, **CIFAR)
    order = torch.tensor([17, 3, 17, 29])
    assert torch.equal(augment_uint8(pixels, order, order, STREAM, **CIFAR), whole[order])
    moved = augment_uint8(pixels[order], torch.arange(4), order, STREAM, **CIFAR)
    assert torch.equal(moved, whole[order])


def test_views_of_a_sample_differ():
    pixels, rows = images(30), torch.arange(30)
    results = [
        augment_uint8(pixels, rows, rows, stream, **CIFAR)
        for stream in (
            STREAM,
            STREAM._replace(purpose_view=4),
            STREAM._replace(epoch=2),
            STREAM._replace(seed=6),
        )
    ]
    for a in range(4):
        for b in range(a):
            same = (results[a] == results[b]).flatten(1).all(1)
            assert same.sum() < 5  # one in 162 by chance


def test_an_empty_batch():
    for pixels in (images(3), images(0)):
        none = torch.empty(0, dtype=torch.int64)
        assert augment_uint8(pixels, none, none, STREAM, **CIFAR).shape == (0, 32, 32, 3)
        assert augment(pixels, none, none, STREAM, **CIFAR, **COLOURS).shape == (0, 3, 32, 32)
        assert centre(pixels, none, size=32, **COLOURS).shape == (0, 3, 32, 32)


def test_crops_and_flips_are_uniform():
    """Over a million draws: every place as often as any other, flips independent of it."""
    n = 1_000_000
    top, left, flipped = crop_window(STREAM, torch.arange(n), height=32, width=32, pad=4, size=32, flip=True)
    assert flipped.dtype == torch.bool
    cells = ((top * 9 + left) * 2 + flipped).numpy()
    counts = np.bincount(cells, minlength=162)
    assert counts.shape == (162,)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_without_flip_nothing_is_flipped():
    _, _, flipped = crop_window(STREAM, torch.arange(1000), height=32, width=32, pad=4, size=32, flip=False)
    assert not flipped.any()


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
    floats = augment_resized(pixels, rows, torch.arange(count), STREAM, size=size, flip=True, **COLOURS)
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
    assert augment_resized(images(2), none, none, STREAM, size=9, flip=True, **COLOURS).shape == (0, 3, 9, 9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 0}, "size: got 0"),
        ({"size": 16385}, "size: got 16385"),
        ({"pixels": torch.empty((4, 1, 16385, 3), dtype=torch.uint8)}, "want 1..16384 for both"),
        ({"pixels": torch.empty((4, 0, 5, 3), dtype=torch.uint8)}, "want 1..16384 for both"),
        ({"stream": Stream(1, 1, 1, 1 << 28)}, r"purpose_view: got 268435456, want less than 2\*\*28"),
        ({"dtype": torch.float64}, "dtype: got torch.float64"),
        ({"mean": (0.5, 0.5)}, "mean: got"),
    ],
)
def test_bad_arguments_of_a_resized_crop_are_named(change, text):
    good = {name: value for name, value in GOOD.items() if name != "pad"}
    with pytest.raises((ValueError, TypeError), match=text):
        augment_resized(**{**good, **change})


GOOD = {
    "pixels": images(4),
    "rows": torch.arange(2),
    "index": torch.arange(2),
    "stream": STREAM,
    **CIFAR,
    **COLOURS,
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"pixels": images(4).float()}, TypeError, "pixels"),
        ({"pixels": images(4)[0]}, TypeError, "pixels"),
        ({"pixels": images(4)[..., :2]}, TypeError, "pixels"),
        ({"rows": torch.arange(2).int()}, TypeError, "rows"),
        ({"rows": torch.zeros((2, 1), dtype=torch.int64)}, TypeError, "rows"),
        ({"rows": torch.tensor([0, 4])}, ValueError, r"rows\[1\] is 4"),
        ({"rows": torch.tensor([-1, 0])}, ValueError, r"rows\[0\] is -1"),
        ({"pixels": images(0)}, ValueError, "rows"),
        ({"index": torch.arange(3)}, TypeError, "index"),
        ({"index": torch.arange(2).float()}, TypeError, "index"),
        ({"index": torch.tensor([0, 2**32])}, ValueError, r"index\[1\]"),
        ({"index": torch.tensor([-1, 2])}, ValueError, r"index\[0\]"),
        ({"rows": torch.arange(2, device="meta")}, ValueError, "one device"),
        ({"index": torch.arange(2, device="meta")}, ValueError, "one device"),
        ({"stream": Stream(-1)}, ValueError, "seed"),
        ({"pad": -1}, ValueError, "pad"),
        ({"size": 0}, ValueError, "size"),
        ({"size": 41}, ValueError, "size"),
        ({"mean": (0.5, 0.5)}, ValueError, "mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, ValueError, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, ValueError, "std"),
        ({"std": (0.5, 0.5, float("inf"))}, ValueError, "std"),
        ({"memory_format": torch.channels_last}, ValueError, "channels_last"),
        ({"memory_format": torch.preserve_format}, ValueError, "memory_format: got"),
        ({"dtype": torch.float64}, TypeError, "dtype: got torch.float64"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text):
        augment(**{**GOOD, **change})
    if not {"mean", "std", "memory_format", "dtype"} & set(change):
        plain = {name: value for name, value in {**GOOD, **change}.items() if name not in COLOURS}
        with pytest.raises(error, match=text):
            augment_uint8(**plain)


@pytest.mark.parametrize(
    "out",
    [
        torch.empty((2, 32, 32, 3)),
        torch.empty((3, 32, 32, 3), dtype=torch.uint8),
        torch.empty((2, 3, 32, 32), dtype=torch.uint8).permute(0, 2, 3, 1),
    ],
)
def test_an_output_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match="out: got"):
        augment_uint8(images(4), torch.arange(2), torch.arange(2), STREAM, **CIFAR, out=out)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_crops_of_the_cpu():
    pixels, rows, index = images(50), torch.arange(50).flip(0), torch.arange(50)
    on_gpu = [tensor.cuda() for tensor in (pixels, rows, index)]
    assert torch.equal(
        augment_uint8(*on_gpu, STREAM, **CIFAR).cpu(), augment_uint8(pixels, rows, index, STREAM, **CIFAR)
    )
    result = augment(*on_gpu, STREAM, **CIFAR, **COLOURS, memory_format=torch.channels_last)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        result.cpu().contiguous(), augment(pixels, rows, index, STREAM, **CIFAR, **COLOURS), atol=1e-6, rtol=0
    )
