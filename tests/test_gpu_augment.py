"""Augmentation on a GPU: the kernels against the reference, to the bit in what they draw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gpu_device import DEVICE, FLOAT_TYPES, either, needs_gpu, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from need import need

from fastdrpl.kernels import augment as public
from fastdrpl.kernels import dispatch
from fastdrpl.kernels.crop import Crop, pack_crop
from fastdrpl.kernels.philox import MASK, Stream

need("triton")
from gpu_window_kernel import window_kernel

from fastdrpl.kernels.gpu import augment as gpu
from fastdrpl.kernels.streams import stream_tensor

MEAN, STD = [0.49, 0.48, 0.44], [0.2, 0.25, 0.26]
COLOURS = {"mean": tuple(MEAN), "std": tuple(STD)}
STREAM = Stream(2**63 + 5, 1, 2, 3)
# Of a value up to 4 in size, in float32: a multiplication and an addition in another order; then half a digit or,
# where the interpreter cuts and does not round, a whole one.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}

augment = either(gpu.launch_augment, gpu.augment)
augment_uint8 = either(gpu.launch_augment_uint8, gpu.augment_uint8)
centre = either(gpu.launch_centre, gpu.centre)


def images(count: int, height: int, width: int) -> torch.Tensor:
    # No zeros: a black pixel in a crop is padding.
    return torch.randint(
        1, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def assert_close(result: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
    """Same type, shape and layout, and values within the type's tolerance."""
    assert result.dtype == expected.dtype and result.shape == expected.shape
    for layout in (torch.contiguous_format, torch.channels_last):
        assert result.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)
    tolerance = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(result.cpu().float(), expected.cpu().float(), atol=tolerance, rtol=0)


LAYOUTS = {
    "plain": lambda p: p,
    "every second": lambda p: torch.stack([p, p.flip(0)], 1).flatten(0, 1)[::2],
    "a window": lambda p: torch.nn.functional.pad(p, (0, 0, 2, 1, 1, 3))[:, 1:-3, 2:-1],
    "channels first": lambda p: p.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "transposed": lambda p: p.transpose(1, 2).contiguous().transpose(1, 2),
}


@st.composite
def cases(draw):
    """Arguments of `augment` as it takes them, and the layout of the pixels."""
    crop = draw(st.sampled_from(["pad", "resized"]))
    height, width, pad = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(0, 9))
    largest = 9 if crop == "resized" else min(height, width) + 2 * pad
    size = draw(st.integers(1, min(largest, 9)))
    batch = draw(st.integers(0, 3))
    rows = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch)), dtype=torch.int64)
    index = torch.tensor(
        draw(st.lists(st.integers(0, MASK), min_size=batch, max_size=batch)), dtype=torch.int64
    )
    stream = Stream(draw(st.integers(0, 2**64 - 1)), *draw(st.tuples(*[st.integers(0, 2**28 - 1)] * 3)))
    pixels = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](images(4, height, width))
    dtype, channels_last = draw(st.sampled_from(FLOAT_TYPES)), draw(st.booleans())
    return pixels, rows, index, stream, crop, pad, size, draw(st.booleans()), dtype, channels_last


@given(cases())
@settings(max_examples=100)
def test_the_kernel_gives_what_the_reference_gives(case):
    pixels, rows, index, stream, crop, pad, size, flip, dtype, channels_last = case
    how = (crop, pad, size, flip, MEAN, STD, dtype, channels_last)
    expected = public.augment_reference(pixels, rows, index, stream, pack_crop(*how))
    result = augment(*on_device(pixels, rows, index), stream_tensor(stream, DEVICE), *how)
    assert_close(result, expected)
    if crop == "pad":
        exact = torch.empty((len(rows), size, size, 3), dtype=torch.uint8)
        public.augment_uint8_reference(pixels, rows, index, stream, pad, size, flip, exact)
        (out,) = on_device(torch.full_like(exact, 77))
        moved = on_device(pixels, rows, index)
        assert augment_uint8(*moved, stream_tensor(stream, DEVICE), pad, size, flip, out) is None
        assert torch.equal(out.cpu(), exact)
    if size <= min(pixels.shape[1:3]):
        how = (size, MEAN, STD, dtype, channels_last)
        expected = public.centre_reference(pixels, rows, pack_crop("pad", 0, size, False, *how[1:]))
        assert_close(centre(*on_device(pixels, rows), *how), expected)


@pytest.mark.parametrize("crop", ["pad", "resized"])
@pytest.mark.parametrize("few", [0, 1 << 40])
@pytest.mark.parametrize(
    ("height", "width", "pad", "size"), [(32, 32, 4, 32), (45, 37, 2, 35), (9, 64, 4, 1)]
)
def test_either_way_to_deal_a_crop_to_programs(crop, few, height, width, pad, size, monkeypatch):
    """One program with a loop and several without; with whole and with cut blocks."""
    monkeypatch.setattr(gpu, "FEW_PROGRAMS", few)
    pixels, rows, index = images(3, height, width), torch.tensor([2, 0]), torch.tensor([7, MASK])
    for channels_last in (True, False):
        how = (crop, pad, size, True, MEAN, STD, torch.float32, channels_last)
        expected = public.augment_reference(pixels, rows, index, STREAM, pack_crop(*how))
        assert_close(augment(*on_device(pixels, rows, index), stream_tensor(STREAM, DEVICE), *how), expected)
    rows, columns, programs = gpu.blocks_of(size, 2, gpu.NUMBERS[crop])
    assert rows * programs >= size
    assert (columns > 32) == (few > 0 and (crop == "pad" or size == 1))


@pytest.mark.parametrize(
    ("height", "width"), [(256, 256), (256, 192), (1, 1), (3, 40), (40, 3), (7, 200), (16384, 16384)]
)
def test_a_resized_window_has_the_bits_of_the_reference(height, width):
    count = 30
    index = torch.cat([torch.arange(count - 2), torch.tensor([2**31, MASK])])
    expected = torch.stack(
        [
            value.long()
            for value in public.resized_window(STREAM, index, height=height, width=width, flip=True)
        ],
        1,
    )
    out = torch.full((count, 5), -1, dtype=torch.int64, device=DEVICE)
    window_kernel[(count,)](
        index.to(DEVICE),
        stream_tensor(STREAM, DEVICE),
        out,
        height,
        width,
        0,
        SIZE=8,
        CROP=gpu.CROPS["resized"],
        FLIP=True,
    )
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("flip", [True, False])
def test_a_padded_window_has_the_bits_of_the_reference(flip):
    index = torch.cat([torch.arange(60), torch.tensor([2**31, MASK])])
    top, left, flipped = public.crop_window(STREAM, index, height=33, width=30, pad=5, size=31, flip=flip)
    same = torch.tensor([33, 30]).expand(len(index), 2).unbind(1)
    expected = torch.stack([top - 5, left - 5, *same, flipped.long()], 1)
    out = torch.full((len(index), 5), -1, dtype=torch.int64, device=DEVICE)
    window_kernel[(len(index),)](
        index.to(DEVICE),
        stream_tensor(STREAM, DEVICE),
        out,
        33,
        30,
        5,
        SIZE=31,
        CROP=gpu.CROPS["pad"],
        FLIP=flip,
    )
    assert torch.equal(out.cpu(), expected)


def test_rows_and_index_may_be_strided():
    pixels, rows, index = images(6, 5, 5), torch.arange(12) % 6, torch.arange(100, 112)
    how = ("pad", 1, 5, True, MEAN, STD, torch.float32, False)
    moved = on_device(pixels, rows[1::3], index[1::3])
    expected = public.augment_reference(pixels, rows[1::3], index[1::3], STREAM, pack_crop(*how))
    assert_close(augment(*moved, stream_tensor(STREAM, DEVICE), *how), expected)


def test_a_row_beyond_four_gigabytes_is_found(tmp_path):
    """Offsets that 32 bits do not hold: the image lies at the end of a file that is one large hole."""
    if DEVICE.type == "cuda":
        pixels = torch.zeros((3, 2**31), dtype=torch.uint8, device=DEVICE)
    else:
        hole = np.memmap(tmp_path / "hole", np.uint8, "w+", shape=(3, 2**31))
        pixels = torch.from_numpy(hole)
    pixels = pixels[:, : 5 * 5 * 3].unflatten(1, (5, 5, 3))
    (pixels[2],) = on_device(images(1, 5, 5))
    (rows,) = on_device(torch.tensor([2]))
    out = torch.empty((1, 5, 5, 3), dtype=torch.uint8, device=DEVICE)
    augment_uint8(pixels, rows, rows, stream_tensor(STREAM, DEVICE), 0, 5, False, out)
    assert torch.equal(out.cpu(), images(1, 5, 5))


ARGUMENTS = (images(4, 6, 7), torch.tensor([3, 0, 3]), torch.tensor([5, 6, MASK]))
CROPS = (["pad", 2, 5, True], ["resized", 0, 4, True])


def test_the_operations_are_sound_for_torch():
    words = stream_tensor(STREAM, DEVICE)
    arguments = (*on_device(*ARGUMENTS), words, *CROPS[0], MEAN, STD, torch.bfloat16, False)
    torch.library.opcheck(gpu.augment, arguments)
    pixels, rows, index = on_device(*ARGUMENTS)
    torch.library.opcheck(gpu.centre, (pixels, rows, 4, MEAN, STD, torch.float32, False))
    out = torch.empty((3, 5, 5, 3), dtype=torch.uint8, device=DEVICE)
    torch.library.opcheck(gpu.augment_uint8, (pixels, rows, index, words, 2, 5, True, out))


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_sees_through(crop, backend):
    words = stream_tensor(STREAM, DEVICE)

    def double(pixels, rows, index):
        out = torch.empty((3, 5, 5, 3), dtype=torch.uint8, device=pixels.device)
        torch.ops.fastdrpl.augment_uint8(pixels, rows, index, words, 2, 5, True, out)
        made = torch.ops.fastdrpl.augment(pixels, rows, index, words, *crop, MEAN, STD, torch.float32, False)
        return made * 2, out + 1

    arguments = on_device(*ARGUMENTS)
    compiled = torch.compile(double, fullgraph=True, backend=backend)(*arguments)
    for result, expected in zip(compiled, double(*arguments), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


@needs_gpu
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_public_operations_run_the_kernels(memory_format):
    assert dispatch.choose("augment", "cuda") == "triton"
    pixels, rows, index = images(50, 40, 36), torch.arange(200) * 7 % 50, torch.arange(200)
    moved = on_device(pixels, rows, index)
    padded = Crop(pad=4, size=32, flip=True, **COLOURS)
    resized = Crop(kind="resized", size=24, flip=True, **COLOURS)
    words = stream_tensor(STREAM, DEVICE)
    for crop, tolerance in ((padded, None), (resized, 1e-5)):
        laid_out = replace(crop, memory_format=memory_format)
        expected = public.augment(pixels, rows, index, STREAM, crop)
        result = public.augment(*moved, STREAM, laid_out)
        assert_close(result.contiguous(), expected, tolerance)
        assert torch.equal(public.augment(*moved, words, laid_out), result)
        expected = public.centre(pixels, rows, crop)
        assert_close(public.centre(*moved[:2], laid_out).contiguous(), expected)
    crop = {"pad": 4, "size": 32, "flip": True}
    out = torch.empty((200, 32, 32, 3), dtype=torch.uint8, device=DEVICE)
    assert public.augment_uint8(*moved, STREAM, **crop, out=out) is out
    assert torch.equal(out.cpu(), public.augment_uint8(pixels, rows, index, STREAM, **crop))


@needs_gpu
def test_a_captured_graph_follows_its_stream():
    """Replayed after the words of the stream have changed in place, it draws as the new stream does."""
    pixels, rows, index = on_device(images(50, 32, 32), torch.arange(128) % 50, torch.arange(128))
    words = stream_tensor(STREAM, DEVICE).clone()
    how = ("pad", 4, 32, True, MEAN, STD, torch.bfloat16, True)
    gpu.augment(pixels, rows, index, words, *how)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gpu.augment(pixels, rows, index, words, *how)
    for epoch in (3, 4):
        words.copy_(stream_tensor(STREAM._replace(epoch=epoch), DEVICE))
        graph.replay()
        expected = gpu.augment(pixels, rows, index, words, *how)
        assert torch.equal(out, expected)
