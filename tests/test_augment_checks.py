"""What augmentation refuses, and how it says so."""

import pytest
import torch
from augment_cases import CIFAR, COLOURS, STREAM, images

from fastdrpl.kernels.augment import augment, augment_resized, augment_uint8
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.philox import Stream
from fastdrpl.kernels.streams import stream_tensor


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
        ({"pad": 2}, "pad: got 2 for a resized crop"),
    ],
)
def test_bad_arguments_of_a_resized_crop_are_named(change, text):
    with pytest.raises((ValueError, TypeError), match=text):
        augment_resized(*arguments({"kind": "resized", "pad": 0, **change}))


def test_a_resized_crop_is_asked_for_by_its_kind():
    with pytest.raises(ValueError, match="kind of a crop: got 'pad', want 'resized'"):
        augment_resized(*arguments({}))


GOOD = {
    "pixels": images(4),
    "rows": torch.arange(2),
    "index": torch.arange(2),
    "stream": STREAM,
    **CIFAR,
    **COLOURS,
}
TENSORS = ("pixels", "rows", "index", "stream")


def arguments(change: dict) -> tuple:
    """Arguments of `augment`: those of `GOOD`, some of them changed."""
    chosen = {**GOOD, **change}
    first = [chosen.pop(name) for name in TENSORS]
    return *first, Crop(**chosen)


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
        ({"stream": stream_tensor(STREAM, torch.device("cpu")).int()}, TypeError, "stream: got torch.int32"),
        ({"stream": torch.zeros(4, dtype=torch.int64)}, TypeError, r"stream: got torch.int64 \(4,\)"),
        ({"stream": torch.tensor([0, 0, 0, -1, 0])}, ValueError, r"stream\[3\] is -1"),
        ({"stream": torch.zeros(5, dtype=torch.int64, device="meta")}, ValueError, "one device"),
        ({"kind": "middle"}, ValueError, "kind of a crop: got 'middle'"),
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
        augment(*arguments(change))
    if not {"kind", "mean", "std", "memory_format", "dtype"} & set(change):
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
