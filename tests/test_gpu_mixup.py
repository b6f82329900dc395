"""Augmentation and mixup in one pass: the kernel against augmenting first and mixing then."""

from dataclasses import replace

import pytest
import torch
from gpu_device import DEVICE, FLOAT_TYPES, either, needs_gpu, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from need import need

from fastdrpl.kernels import mixup as public
from fastdrpl.kernels.augment import augment
from fastdrpl.kernels.crop import Crop, pack_crop
from fastdrpl.kernels.mixup import augment_pair_reference, mix
from fastdrpl.kernels.philox import MASK, Stream

need("triton")

from fastdrpl.kernels.gpu import augment as augmenting
from fastdrpl.kernels.gpu import mixup as gpu
from fastdrpl.kernels.streams import stream_tensor

MEAN, STD = [0.49, 0.48, 0.44], [0.2, 0.25, 0.26]
STREAM = Stream(2**63 + 5, 1, 2, 3)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}  # see test_gpu_augment.py

augment_pair = either(gpu.launch_augment_pair, gpu.augment_pair)


def images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(
        1, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def assert_pair(result: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(result, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        for layout in (torch.contiguous_format, torch.channels_last):
            assert one.is_contiguous(memory_format=layout) == other.is_contiguous(memory_format=layout)
        tolerance = TOLERANCE[other.dtype]
        torch.testing.assert_close(one.cpu().float(), other.cpu().float(), atol=tolerance, rtol=0)


@st.composite
def cases(draw):
    """Arguments of `augment_pair` as it takes them."""
    crop = draw(st.sampled_from(["pad", "resized"]))
    height, width, pad = draw(st.integers(1, 10)), draw(st.integers(1, 10)), draw(st.integers(0, 5))
    size = draw(st.integers(1, 10 if crop == "resized" else min(10, min(height, width) + 2 * pad)))
    batch = draw(st.integers(0, 2))

    def integers(high):
        return torch.tensor(draw(st.lists(st.integers(0, high), min_size=batch, max_size=batch))).long()

    rows, index, partner = integers(3), integers(MASK), integers(max(batch - 1, 0))
    coefficient = torch.tensor(draw(st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1, width=32)))
    how = (crop, pad, size, draw(st.booleans()), MEAN, STD, draw(st.sampled_from(FLOAT_TYPES)))
    return images(4, height, width), rows, index, partner, coefficient, (*how, draw(st.booleans()))


@given(cases())
@settings(max_examples=80)
def test_the_kernel_gives_what_the_reference_gives(case):
    pixels, rows, index, partner, coefficient, how = case
    expected = augment_pair_reference(pixels, rows, index, STREAM, partner, coefficient, pack_crop(*how))
    pixels, rows, index, partner, coefficient = on_device(pixels, rows, index, partner, coefficient)
    words = stream_tensor(STREAM, DEVICE)
    assert_pair(augment_pair(pixels, rows, index, words, partner, coefficient, *how), expected)


@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.parametrize("few", [0, 1 << 40])
@pytest.mark.parametrize("size", [32, 35])
def test_either_way_to_deal_a_crop_to_programs(crop, few, size, monkeypatch):
    monkeypatch.setattr(augmenting, "FEW_PROGRAMS", few)
    pixels, rows, index = images(3, 34, 33), torch.tensor([2, 0]), torch.tensor([7, MASK])
    partner, coefficient = torch.tensor([1, 0]), torch.tensor(0.3)
    how = (crop, 4, size, True, MEAN, STD, torch.float32, True)
    expected = augment_pair_reference(pixels, rows, index, STREAM, partner, coefficient, pack_crop(*how))
    pixels, rows, index, partner, coefficient = on_device(pixels, rows, index, partner, coefficient)
    words = stream_tensor(STREAM, DEVICE)
    assert_pair(augment_pair(pixels, rows, index, words, partner, coefficient, *how), expected)


def test_views_may_be_strided():
    pixels = images(9, 6, 6)[1::2, 1:, :5]
    rows, index, partner = torch.tensor([3, 9, 0, 9])[::2], torch.arange(8)[1::4], torch.tensor([1, 7, 0, 7])
    coefficient = torch.tensor([0.1, 0.7])[1]
    how = ("pad", 1, 5, True, MEAN, STD, torch.float32, False)
    given = (pixels, rows, index, STREAM, partner[::2], coefficient)
    expected = augment_pair_reference(*given, pack_crop(*how))
    assert not torch.allclose(expected[0], expected[1])
    pixels, rows, index, partner = on_device(pixels, rows, index, partner[::2])
    words = stream_tensor(STREAM, DEVICE)
    assert_pair(augment_pair(pixels, rows, index, words, partner, coefficient.to(DEVICE), *how), expected)


GOOD = {
    "pixels": images(4, 6, 7),
    "rows": torch.tensor([3, 0, 3]),
    "index": torch.tensor([5, 6, MASK]),
    "stream": STREAM,
    "partner": torch.tensor([2, 0, 1]),
    "coefficient": torch.tensor(0.3),
    "kind": "pad",
    "pad": 2,
    "size": 5,
    "flip": True,
    "mean": tuple(MEAN),
    "std": tuple(STD),
}
TENSORS = ("pixels", "rows", "index", "partner", "coefficient")
KINDS = ({"kind": "pad", "pad": 2}, {"kind": "resized", "pad": 0})


def arguments(change: dict) -> tuple:
    """Arguments of `augment_pair`: those of `GOOD`, some of them changed."""
    chosen = {**GOOD, **change}
    first = [chosen.pop(name) for name in ("pixels", "rows", "index", "stream", "partner", "coefficient")]
    return *first, Crop(**chosen)


def positional(crop="pad", dtype=torch.float32, channels_last=False):
    pixels, rows, index, partner, coefficient = on_device(*(GOOD[name] for name in TENSORS))
    words = stream_tensor(STREAM, DEVICE)
    return (
        pixels,
        rows,
        index,
        words,
        partner,
        coefficient,
        crop,
        2,
        5,
        True,
        MEAN,
        STD,
        dtype,
        channels_last,
    )


def test_the_operation_is_sound_for_torch():
    torch.library.opcheck(gpu.augment_pair, positional(dtype=torch.bfloat16))


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_torch_compile_sees_through(crop):
    arguments = positional(crop)

    def double(*tensors):
        plain, mixed = torch.ops.fastdrpl.augment_pair(*tensors, *arguments[6:])
        return plain * 2, mixed + plain

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")(*arguments[:6])
    assert_pair(compiled, double(*arguments[:6]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_on_the_cpu_it_is_augmenting_and_mixing_to_the_bit(kind, dtype):
    given = arguments({**kind, "dtype": dtype})
    plain, mixed = public.augment_pair(*given)
    expected = augment(*given[:4], replace(given[6], dtype=torch.float32))
    assert torch.equal(plain, expected.to(dtype))
    assert torch.equal(mixed, mix(expected, GOOD["partner"], GOOD["coefficient"]).to(dtype))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kind": "middle"}, ValueError, "kind of a crop: got 'middle'"),
        ({"kind": "resized"}, ValueError, "pad: got 2 for a resized crop"),
        ({"stream": torch.zeros(6, dtype=torch.int64)}, TypeError, "stream: got torch.int64"),
        ({"rows": torch.tensor([3, 0, 4])}, ValueError, r"rows\[2\] is 4"),
        ({"pixels": images(4, 6, 7).int()}, TypeError, "pixels: got torch.int32"),
        ({"index": torch.arange(2)}, TypeError, "index: got"),
        ({"size": 12}, ValueError, "size: got 12"),
        ({"std": [0.1, 0.1]}, ValueError, "std: got"),
        ({"dtype": torch.float64}, TypeError, "dtype: got torch.float64"),
        ({"memory_format": torch.channels_last}, ValueError, "channels_last is for CUDA"),
        ({"memory_format": torch.preserve_format}, ValueError, "memory_format: got"),
        ({"partner": torch.arange(2)}, TypeError, "partner: got"),
        ({"partner": torch.arange(3).int()}, TypeError, "partner: got torch.int32"),
        ({"partner": torch.arange(3, device="meta")}, ValueError, "want one device"),
        ({"coefficient": torch.ones(1)}, TypeError, r"coefficient: got torch.float32 \(1,\)"),
        ({"coefficient": torch.tensor(0.5).double()}, TypeError, "coefficient: got torch.float64"),
        ({"coefficient": torch.tensor(0.5, device="meta")}, ValueError, "want one device"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text):
        public.augment_pair(*arguments(change))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind):
    empty = {name: GOOD[name][:0] for name in ("rows", "index", "partner")}
    for made in public.augment_pair(*arguments({**empty, **kind})):
        assert made.shape == (0, 3, 5, 5)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_the_public_operation_runs_the_kernel(kind, dtype):
    moved = dict(zip(TENSORS, on_device(*(GOOD[name] for name in TENSORS)), strict=True))
    crop = {**kind, "dtype": dtype}
    laid_out = {**moved, **crop, "memory_format": torch.channels_last}
    made = public.augment_pair(*arguments(laid_out))
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in made)
    expected = public.augment_pair(*arguments(crop))
    assert_pair(tuple(tensor.contiguous() for tensor in made), expected)
    again = public.augment_pair(*arguments({**laid_out, "stream": stream_tensor(STREAM, DEVICE)}))
    assert all(torch.equal(one, other) for one, other in zip(again, made, strict=True))


@needs_gpu
def test_a_captured_graph_reads_partner_and_coefficient_from_memory():
    arguments = positional(dtype=torch.bfloat16, channels_last=True)
    partner, coefficient = arguments[4:6]
    gpu.augment_pair(*arguments)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = gpu.augment_pair(*arguments)
    for shift, part in ((1, 0.25), (2, 0.9)):
        partner.copy_(partner.roll(shift))
        coefficient.fill_(part)
        graph.replay()
        for one, other in zip(made, gpu.augment_pair(*arguments), strict=True):
            assert torch.equal(one, other)
