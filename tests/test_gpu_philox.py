"""Random numbers inside kernels: bit for bit those of the reference."""

import pytest
import torch
from gpu_device import DEVICE
from hypothesis import example, given, settings
from hypothesis import strategies as st
from need import need

from fastdrpl.kernels.philox import MASK, Stream, integers, shuffle_keys, uniform, words

need("triton")
from gpu_philox_kernel import draw_kernel

from fastdrpl.kernels.streams import stream_tensor

WORD = st.integers(0, MASK) | st.sampled_from([0, 1, 2**31 - 1, 2**31, MASK])
STREAMS = st.builds(
    Stream, st.integers(0, 2**64 - 1) | st.sampled_from([0, MASK, MASK + 1]), WORD, WORD, WORD
)
EXTREME = Stream(2**64 - 1, MASK, MASK, MASK)


@given(STREAMS, st.lists(WORD, min_size=1, max_size=80), st.integers(1, 2**31 - 1))
@example(EXTREME, [0, 1, 2**31 - 1, 2**31, MASK], 2**31 - 1)
@example(Stream(0), [0, MASK], 1)
@settings(max_examples=200)
def test_the_same_bits_as_the_reference(stream, index, n):
    index = torch.tensor(index, dtype=torch.int64)
    count = len(index)
    out = torch.full((6, count), -1, dtype=torch.int64, device=DEVICE)
    units = torch.full((count,), -1.0, device=DEVICE)
    block = 64
    draw_kernel[(-(-count // block),)](
        stream_tensor(stream, DEVICE), index.to(DEVICE), out, units, count, n, BLOCK=block
    )
    drawn = words(stream, index)
    expected = torch.stack([*drawn, integers(drawn[0], n), shuffle_keys(drawn[0], drawn[1])])
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(units.cpu(), uniform(drawn[0]).float())


def test_a_stream_on_the_device_is_kept():
    assert stream_tensor(EXTREME, DEVICE) is stream_tensor(EXTREME, DEVICE)
    assert stream_tensor(EXTREME, DEVICE).tolist() == [MASK] * 5
    assert stream_tensor(Stream(2**32 + 5, 1, 2, 3), DEVICE).tolist() == [5, 1, 1, 2, 3]


def test_a_stream_out_of_range_is_refused():
    with pytest.raises(ValueError, match="random stream"):
        stream_tensor(Stream(2**64), DEVICE)
