"""ImageNet classifiers of torchvision with their published weights."""

import hashlib
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from fastdrpl.errors import DataError, UserError

_VERSION = "IMAGENET1K_V1"  # the weights of the paper's time, not later recipes for the same network
# The weights of Inception expect pixels in another range, which the network makes itself. Weights are loaded over
# what the constructor would draw, which takes seconds for the two that let us leave it out.
_OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "vgg16": {"init_weights": False},
}


def load_pretrained(
    names: Sequence[str], folder: Path | None
) -> dict[str, tuple[nn.Module, Callable[[Any], Tensor]]]:
    """Networks ready to use, and the preprocessing each was published with: PIL image -> (3, H, W) float32.

    Files are looked for in `folder` (default: torch's cache) under torchvision's names and downloaded where they
    are missing. Nothing but tensors is read from them. Raises UserError where a download fails, DataError for
    a file that is not the published one.
    """
    place = folder if folder is not None else Path(torch.hub.get_dir()) / "checkpoints"
    published = {name: get_model_weights(name)[_VERSION] for name in names}
    loaded = {}
    for name, weights in published.items():
        file = place / Path(weights.url).name
        if file.exists():
            _check_hash(file)
        try:
            state = weights.get_state_dict(model_dir=str(place), check_hash=True, weights_only=True)
        except OSError as error:
            missing = [w.url for w in published.values() if not (place / Path(w.url).name).exists()]
            raise UserError(
                f"cannot get the weights of {name}: {error}",
                where=str(file),
                fix=f"put these files into {place}: {', '.join(missing) or file.name}",
            ) from error
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise _other_file(file, str(error)) from error
        network = get_model(name, weights=None, **_OPTIONS.get(name, {}))
        network.load_state_dict({_current_key(key): value for key, value in state.items()})
        loaded[name] = (network.eval(), weights.transforms())
    return loaded


def _current_key(key: str) -> str:
    """The weights of DenseNet are older than its code: `norm.1` is `norm1` there."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)


def _check_hash(file: Path) -> None:
    """torchvision's file names end in the first digits of the file's sha256, `<name>-<digits>.pth`."""
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not digest.startswith(file.stem.rpartition("-")[2]):
        raise _other_file(file, f"its sha256 begins with {digest[:8]}")


def _other_file(file: Path, why: str) -> DataError:
    return DataError(
        f"not the published weights: {why}", where=str(file), fix="remove the file: it is downloaded again"
    )
