"""A random stream as a value and as a tensor: the same words either way, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdrpl.kernels import dispatch
from fastdrpl.kernels.philox import MASK, Stream, words
from fastdrpl.kernels.streams import check_stream, draw_words, stream_of, stream_tensor, words_on

CPU, META = torch.device("cpu"), torch.device("meta")
WORD = st.integers(0, MASK) | st.sampled_from([0, 2**31, MASK])
STREAMS = st.builds(Stream, st.integers(0, 2**64 - 1) | st.sampled_from([MASK, MASK + 1]), WORD, WORD, WORD)


@given(STREAMS)
def test_there_and_back(stream):
    tensor = stream_tensor(stream, CPU)
    assert tensor.dtype == torch.int64 and tensor.shape == (5,)
    assert stream_of(tensor) == stream and stream_of(stream) is stream
    assert check_stream(tensor, CPU) == check_stream(stream, CPU) == stream
    assert words_on(tensor, CPU) is tensor and words_on(stream, CPU) is tensor


@given(STREAMS, st.lists(WORD, min_size=1, max_size=9))
def test_either_form_draws_the_words_of_the_reference(stream, index):
    index = torch.tensor(index)
    for form in (stream, stream_tensor(stream, CPU)):
        for drawn, expected in zip(draw_words(form, index), words(stream, index), strict=True):
            assert torch.equal(drawn, expected)


def test_a_tensor_that_changes_is_another_stream():
    tensor = stream_tensor(Stream(7, 1), CPU).clone()
    assert stream_of(tensor) == Stream(7, 1)
    tensor[2] = 9
    assert stream_of(tensor) == check_stream(tensor, CPU) == Stream(7, 9)


@pytest.mark.parametrize(
    ("tensor", "error", "text"),
    [
        (torch.zeros(4, dtype=torch.int64), TypeError, r"stream: got torch.int64 \(4,\)"),
        (torch.zeros((1, 5), dtype=torch.int64), TypeError, r"stream: got torch.int64 \(1, 5\)"),
        (torch.zeros(5, dtype=torch.int32), TypeError, "stream: got torch.int32"),
        (torch.tensor([0, 0, 0, 0, 2**32]), ValueError, r"stream\[4\] is 4294967296"),
        (torch.tensor([-1, 0, 0, 0, 0]), ValueError, r"stream\[0\] is -1"),
    ],
)
def test_tensors_that_are_no_stream_are_refused(tensor, error, text):
    for run in (stream_of, lambda tensor: check_stream(tensor, CPU)):
        with pytest.raises(error, match=text):
            run(tensor)


def test_a_stream_out_of_range_is_refused():
    with pytest.raises(ValueError, match="seed of a random stream"):
        check_stream(Stream(2**64), CPU)


def test_on_another_device_a_tensor_stays_there(monkeypatch):
    """Nothing reads its values, as that would wait for the device; unless one debugs."""
    tensor = torch.zeros(5, dtype=torch.int64, device=META)
    assert check_stream(tensor, META) is tensor and words_on(tensor, META) is tensor
    with pytest.raises(ValueError, match="stream is on meta, its samples on cpu"):
        check_stream(tensor, CPU)
    looked = []
    monkeypatch.setattr(dispatch, "debugging", lambda: looked.append(True))
    check_stream(tensor, META)
    assert looked
