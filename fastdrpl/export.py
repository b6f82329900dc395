"""The network that a finished run leaves: export/model.safetensors, and in model.json what it takes to use it."""

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastdrpl.calibration import Calibration
from fastdrpl.errors import DataError
from fastdrpl.files import read_json, write_atomic, write_json
from fastdrpl.loaders.dataset import Dataset
from fastdrpl.models import build_model
from fastdrpl.pixels import Transform
from fastdrpl.state import RunState
from fastdrpl.view import View

EXPORT_VERSION = 2  # 1 had no calibration
_FIELDS = {"model", "width", "class_names", "stored_size", "input_size", "mean", "std"}  # of model.json


class Ensemble(nn.Module):
    """Several networks as one, whose prediction is the mean of theirs."""

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): the log of the mean prediction, which is as good as logits."""
        log_p = torch.stack([torch.log_softmax(network(inputs).float(), 1) for network in self.networks])
        return torch.logsumexp(log_p, 0) - torch.log(torch.tensor(float(len(self.networks))))


def write_export(
    folder: Path,
    state: RunState,
    data: Dataset,
    train: View,
    transform: Transform,
    calibration: Calibration,
) -> None:
    """The final networks and their description; one network by its own names, several as `Ensemble` has them."""
    folder.mkdir(exist_ok=True)
    networks = state.learners.networks
    whole = networks[0] if len(networks) == 1 else Ensemble(list(networks))
    weights = {
        name: value.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, value in whole.state_dict().items()
    }
    write_atomic(folder / "model.safetensors", safetensors.torch.save(weights))
    several = {} if len(networks) == 1 else {"networks": len(networks)}
    write_json(
        folder / "model.json",
        {
            "schema": EXPORT_VERSION,
            "model": state.config.model.name,
            "width": state.config.model.width,
            **several,
            "class_names": list(train.labels.class_names),
            "stored_size": train.split.height,
            "resample": "box" if data.source.kind.startswith("imagenet") else "bilinear",
            "input_size": transform.size,
            "mean": list(transform.mean),
            "std": list(transform.std),
            "source": data.source.kind,
            "calibration": calibration.as_json(),
        },
    )


def read_export(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network, in evaluation mode, and what model.json says of it. Raises `DataError` for a damaged export."""
    description = read_json(folder / "model.json")
    missing = _FIELDS - description.keys() if isinstance(description, dict) else _FIELDS
    if missing:
        raise DataError(
            f"the description of the network has no {', '.join(sorted(missing))}",
            where=str(folder / "model.json"),
            fix="run the training again",
        )
    if description.get("schema", 1) > EXPORT_VERSION:
        raise DataError(
            f"the network was exported by a newer version (schema {description['schema']}, known: {EXPORT_VERSION})",
            where=str(folder / "model.json"),
            fix="update fastdrpl",
        )
    classes = len(description["class_names"])
    networks = [
        build_model(description["model"], classes, description["width"], seed=0)
        for _ in range(description.get("networks", 1))
    ]
    network = networks[0] if len(networks) == 1 else Ensemble(networks)
    weights = folder / "model.safetensors"
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(
            f"cannot load the network: {error}", where=str(weights), fix="run the training again"
        ) from error
    return network.eval(), description
