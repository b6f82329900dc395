"""The final network as ONNX: stored pixels in, logits and calibrated probabilities out, checked against the network."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdrpl import __version__
from fastdrpl.errors import DataError, UserError
from fastdrpl.exports.finished import Finished
from fastdrpl.files import write_atomic
from fastdrpl.kernels.augment import centre, normalise
from fastdrpl.kernels.crop import Crop
from fastdrpl.loaders.decode import decode_row, map_file
from fastdrpl.loaders.extras import require
from fastdrpl.opening import OpenRun

_OPSET = 18
_CHECKED = 64  # images that network and file must agree on
_TOLERANCE = 1e-3  # of the logits, absolute and relative: the two sum in other orders


class _FromPixels(nn.Module):
    """The network behind the centre crop and normalisation that it was trained with."""

    def __init__(self, network: nn.Module, crop: Crop, stored: int, temperature: float):
        super().__init__()
        self.network, self.crop, self.temperature = network, crop, temperature
        self.edge = (stored - crop.size) // 2

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, stored, stored, 3) uint8 -> logits (B, C), probabilities (B, C)."""
        window = slice(self.edge, self.edge + self.crop.size)
        inputs = normalise(image[:, window, window], mean=self.crop.mean, std=self.crop.std)
        logits = self.network(inputs)
        return logits, torch.softmax(logits / self.temperature, 1)


def write_onnx(run: Finished, out: Path) -> str:
    """One file. Raises `UserError` where it and the network differ."""
    onnx, runtime = require("onnx"), require("onnxruntime")
    opened = run.opened
    model = _exported(opened)
    onnx.helper.set_model_props(model, _properties(opened, run.facts.hash))
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    images, what = _images(opened)
    largest = _compare(runtime, content, opened, images)
    write_atomic(out, content)
    return f"agrees with the network on {len(images)} {what}: same classes, logits within {largest:.1g}"


@torch.no_grad()
def _exported(opened: OpenRun) -> Any:
    """The graph by torch's exporter, which is otherwise talkative; for any number of images at once."""
    stored, known = int(opened.description["stored_size"]), opened.calibration
    whole = _FromPixels(opened.network, opened.crop, stored, known.temperature if known else 1.0).eval()
    example = torch.zeros((2, stored, stored, 3), dtype=torch.uint8)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                whole,
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["logits", "probabilities"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                opset_version=_OPSET,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise RuntimeError("torch's exporter gave no program")
    return program.model_proto


def _properties(opened: OpenRun, run: str) -> dict[str, str]:
    """What goes along in the file, each as JSON."""
    said, known = opened.description, opened.calibration
    kept = ("class_names", "stored_size", "input_size", "resample", "mean", "std", "model")
    about = {name: said[name] for name in kept if name in said}
    about |= {"calibration": None if known is None else known.as_json(), "run": run, "fastdrpl": __version__}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}


def _images(opened: OpenRun) -> tuple[np.ndarray, str]:
    """Some stored training images, evenly spread: (n, H, W, 3) uint8; noise where the data are not there any more."""
    try:
        split = opened.data.split("train")
    except (UserError, DataError):
        if opened.moved is not None:
            raise
        size = int(opened.description["stored_size"])
        draw = np.random.default_rng(0)
        return draw.integers(
            0, 256, (_CHECKED, size, size, 3), np.uint8
        ), "images of noise (no data here: --data)"
    rows = np.flatnonzero(split.valid)
    rows = rows[np.linspace(0, len(rows) - 1, min(_CHECKED, len(rows))).astype(int)]
    file = map_file(split)
    return np.stack([decode_row(split, file, int(row)) for row in rows]), "training images"


@torch.no_grad()
def _compare(runtime: Any, content: bytes, opened: OpenRun, images: np.ndarray) -> float:
    """The largest difference of a logit. Raises `UserError` for more than rounding explains, or another class."""
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = session.run(["logits"], {"image": images})[0]
    inputs = centre(torch.from_numpy(images), torch.arange(len(images)), opened.crop)
    ours = opened.network(inputs).float().numpy()
    apart = np.abs(theirs - ours)
    allowed = _TOLERANCE * (1 + np.abs(ours).max())
    top = np.sort(ours, 1)
    clear = np.ones(len(ours), bool) if ours.shape[1] < 2 else top[:, -1] - top[:, -2] > 2 * allowed
    if not apart.max() <= allowed or (theirs.argmax(1) != ours.argmax(1))[clear].any():
        raise UserError(
            f"the ONNX file and the network differ by {apart.max():.3g} in their logits; it was not written",
            where=str(opened.folder.export),
            fix="try other versions of torch, onnxscript and onnxruntime",
        )
    return float(apart.max())
