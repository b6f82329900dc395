"""The networks, by name."""

import difflib
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.extras import require
from fastdrpl.models.preact_resnet import preact_resnet18
from fastdrpl.models.resnet import resnet18

_ONLY_WIDTH = 64  # of networks that have one
_LARGEST_SEED = 2**64 - 1


def _build_resnet18(num_classes: int, width: int) -> nn.Module:
    _refuse_width("resnet18", width)
    return resnet18(num_classes)


def _build_inception_resnet_v2(num_classes: int, width: int) -> nn.Module:
    _refuse_width("inception_resnet_v2", width)
    return cast(nn.Module, require("timm").create_model("inception_resnet_v2", num_classes=num_classes))


def _refuse_width(name: str, width: int) -> None:
    if width != _ONLY_WIDTH:
        raise UserError(
            f"{name} has one width, {_ONLY_WIDTH}; got {width}", where="model.width", fix="leave it out"
        )


_MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "preact_resnet18": preact_resnet18,
    "resnet18": _build_resnet18,
    "inception_resnet_v2": _build_inception_resnet_v2,
}
MODEL_NAMES = tuple(_MODELS)


def build_model(name: str, num_classes: int, width: int, seed: int) -> nn.Module:
    """A network with fresh weights on the CPU: a pure function of its arguments.

    torch's global generator is left as it was. `width` is the width of the first stage.
    Raises UserError for an unknown name or a number out of range.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(_MODELS)}"
        raise UserError(f"unknown network {name!r}", where="model.name", fix=hint)
    for field, value, low, high in (
        ("num_classes", num_classes, 1, 2**31 - 1),
        ("width", width, 1, 2**31 - 1),
        ("seed", seed, 0, _LARGEST_SEED),
    ):
        if not low <= value <= high:
            raise UserError(f"{field} must be in {low}..{high}, got {value}", where=f"model.{field}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        with torch.device("cpu"):
            return _MODELS[name](num_classes, width)
