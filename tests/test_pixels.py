"""What a configuration of the augmentation means, and the images of a step."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from fastdrpl.config import AugmentConfig
from fastdrpl.errors import UserError
from fastdrpl.kernels.augment import augment, centre
from fastdrpl.kernels.crop import Crop
from fastdrpl.kernels.mixup import mix
from fastdrpl.kernels.streams import stream_tensor
from fastdrpl.loaders.batch import Batch
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.pixels import Augmented, Transform, resolve_transform

COLOURS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
PASS = Pass(1, 2, 3, Purpose.train)


def dataset(height=40, width=36, pad=4):
    split = SimpleNamespace(height=height, width=width)
    return SimpleNamespace(path="there", pad=pad, flip=True, split=lambda name: split, **COLOURS)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (9, 40, 36, 3), dtype=torch.uint8, generator=generator)
    return Batch(pixels, torch.tensor([8, 0, 3, 3]), torch.tensor([70, 80, 90, 91]))


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_a_step_sees_each_image_as_it_is_and_mixed(batch, crop):
    transform = resolve_transform(AugmentConfig(size=32, crop=crop), dataset())
    words = stream_tensor(PASS.stream, torch.device("cpu"))
    images = Augmented(transform, batch, words)
    wanted = Crop(kind=crop, pad=0 if crop == "resized" else 4, size=32, flip=True, **COLOURS)
    expected = augment(*batch, PASS.stream, wanted)
    assert torch.equal(images(), expected)
    assert torch.equal(images.plain(), transform.plain(batch))
    other = dataclasses.replace(PASS, view=3)
    assert torch.equal(images(3), augment(*batch, other.stream, wanted))
    assert not torch.equal(images(3), expected)
    assert torch.equal(words, stream_tensor(PASS.stream, torch.device("cpu"))), "views leave the words alone"
    with pytest.raises(ValueError, match="view of a minibatch: got 16"):
        images(16)
    assert torch.equal(transform.train(batch, words), expected)
    partner, coefficient = torch.tensor([2, 0, 1, 3]), torch.tensor(0.3)
    plain, mixed = images.pair(partner, coefficient)
    assert torch.equal(plain, expected)
    assert torch.equal(mixed, mix(expected, partner, coefficient))
    for one, other in zip(transform.pair(batch, words, partner, coefficient), (plain, mixed), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_test_images_get_the_centre(batch, crop):
    transform = resolve_transform(AugmentConfig(size=32, crop=crop), dataset())
    assert torch.equal(transform.plain(batch), centre(*batch[:2], Crop(size=32, **COLOURS)))


def test_by_default_the_data_set_decides():
    assert resolve_transform(AugmentConfig(), dataset()) == Transform(36, 4, True, *COLOURS.values(), "pad")
    plain = resolve_transform(AugmentConfig(pad=0, flip="no", size=8), dataset())
    assert plain == Transform(8, 0, False, *COLOURS.values())


@pytest.mark.parametrize(
    ("config", "stored", "text"),
    [
        (AugmentConfig(size=37), {}, "--augment.size 37, but the images are stored at 40x36"),
        (AugmentConfig(crop="resized", pad=2), {}, "--augment.pad 2 with --augment.crop resized"),
        (AugmentConfig(crop="resized"), {"height": 16385}, "resized, but the images are stored at 16385x36"),
    ],
)
def test_what_cannot_be_is_refused(config, stored, text):
    with pytest.raises(UserError, match=text):
        resolve_transform(config, dataset(**stored))
