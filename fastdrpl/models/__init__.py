"""The networks, by name."""

import difflib
from collections.abc import Callable

import torch
from torch import nn

from fastdrpl.loaders.errors import UserError
from fastdrpl.models.preact_resnet import preact_resnet18
from fastdrpl.models.resnet import resnet18

_RESNET18_WIDTH = 64
_LARGEST_SEED = 2**64 - 1


def _build_resnet18(num_classes: int, width: int) -> nn.Module:
    if width != _RESNET18_WIDTH:
        raise UserError(
            f"resnet18 has one width, {_RESNET18_WIDTH}; got {width}",
            where="model.width",
            fix="use preact_resnet18",
        )
    return resnet18(num_classes)


_MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "preact_resnet18": preact_resnet18,
    "resnet18": _build_resnet18,
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
