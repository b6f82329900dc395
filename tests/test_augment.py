"""Augmentation: twin against reference, both against plain numpy, and the statistics of its draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from augment_cases import CIFAR, COLOURS, MEAN, STD, STREAM, images, normalise_slowly
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdrpl.kernels import augment as public
from fastdrpl.kernels.augment import augment, augment_uint8, centre, crop_window, gather_crops, normalise
from fastdrpl.kernels.cpu import augment as twin
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.philox import Stream, words
from fastdrpl.kernels.streams import stream_tensor


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
    floats = augment(pixels, rows, index, stream, Crop(**crop, **COLOURS))
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
                augment(pixels, rows, index, STREAM, Crop(**crop, **COLOURS)),
                centre(pixels, rows, Crop(size=min(size, height, width), **COLOURS)),
            )
        )
    for parallel, serial in zip(*results, strict=True):
        assert torch.equal(parallel, serial)
    assert torch.equal(results[0][0], by_reference(pixels, rows, index, STREAM, **crop))


def test_padding_is_black_before_normalisation():
    pixels = images(1)
    rows = torch.zeros(1, dtype=torch.int64)
    crop = augment(pixels, rows, torch.arange(1), STREAM, Crop(pad=32, size=96, **COLOURS))
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
        centre(pixels, rows, Crop(size=size, **COLOURS)).numpy(), expected, atol=1e-6, rtol=0
    )


def test_the_reference_serves_devices_without_a_twin(monkeypatch):
    pixels, rows, index = images(20), torch.arange(20), torch.arange(20)
    results = []
    for implementation in ("numba", "reference"):
        monkeypatch.setattr(public, "choose", lambda *_, implementation=implementation: implementation)
        out = torch.empty((20, 32, 32, 3), dtype=torch.uint8)
        assert augment_uint8(pixels, rows, index, STREAM, **CIFAR, out=out) is out
        floats = augment(pixels, rows, index, STREAM, Crop(**CIFAR, **COLOURS))
        results.append((out, floats, centre(pixels, rows, Crop(size=20, **COLOURS))))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_float_types_are_the_rounded_float32(dtype):
    pixels, rows = images(3), torch.arange(3)
    result = augment(pixels, rows, rows, STREAM, Crop(**CIFAR, **COLOURS, dtype=dtype))
    assert result.dtype == dtype
    assert torch.equal(result, augment(pixels, rows, rows, STREAM, Crop(**CIFAR, **COLOURS)).to(dtype))
    assert centre(pixels, rows, Crop(size=32, **COLOURS, dtype=dtype)).dtype == dtype


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
    floats = augment(pixels, rows, index, STREAM, Crop(**crop, **COLOURS))
    np.testing.assert_allclose(floats.numpy(), normalise_slowly(expected), atol=1e-6, rtol=0)


def test_rows_and_index_may_be_strided_views():
    pixels, rows, index = images(30), torch.arange(30), torch.arange(100, 130)
    whole = augment_uint8(pixels, rows, index, STREAM, **CIFAR)
    assert torch.equal(augment_uint8(pixels, rows[1::3], index[1::3], STREAM, **CIFAR), whole[1::3])


@pytest.mark.parametrize("implementation", ["numba", "reference"])
def test_a_stream_may_come_as_a_tensor(implementation, monkeypatch):
    """Its words draw what the stream draws, also a seed of 64 bits."""
    monkeypatch.setattr(public, "choose", lambda *_: implementation)
    pixels, rows, stream = images(20), torch.arange(20), Stream(2**64 - 3, 2**32 - 1, 7, 2**28 - 1)
    words = stream_tensor(stream, pixels.device)
    assert torch.equal(
        augment_uint8(pixels, rows, rows, words, **CIFAR), augment_uint8(pixels, rows, rows, stream, **CIFAR)
    )
    for crop in (Crop(**CIFAR, **COLOURS), Crop(kind="resized", size=9, flip=True, **COLOURS)):
        drawn = augment(pixels, rows, rows, words, crop)
        assert torch.equal(drawn, augment(pixels, rows, rows, stream, crop))
        assert not torch.equal(drawn, augment(pixels, rows, rows, stream._replace(seed=5), crop))


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
        assert augment(pixels, none, none, STREAM, Crop(**CIFAR, **COLOURS)).shape == (0, 3, 32, 32)
        assert centre(pixels, none, Crop(size=32, **COLOURS)).shape == (0, 3, 32, 32)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_crops_of_the_cpu():
    pixels, rows, index = images(50), torch.arange(50).flip(0), torch.arange(50)
    on_gpu = [tensor.cuda() for tensor in (pixels, rows, index)]
    assert torch.equal(
        augment_uint8(*on_gpu, STREAM, **CIFAR).cpu(), augment_uint8(pixels, rows, index, STREAM, **CIFAR)
    )
    crop = Crop(**CIFAR, **COLOURS)
    result = augment(*on_gpu, STREAM, replace(crop, memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        result.cpu().contiguous(), augment(pixels, rows, index, STREAM, crop), atol=1e-6, rtol=0
    )
