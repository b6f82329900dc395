"""The end of a stage that detects: look at the losses, split the samples, keep the evidence."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdrpl.detection import Detection, detect, detection_metrics
from fastdrpl.files import write_atomic, write_json
from fastdrpl.labels import Labels
from fastdrpl.report.histogram import draw_histogram


def split_labels(
    fit_losses: Tensor,
    score_losses: Tensor,
    labels: Labels,
    gamma: float,
    *,
    compat: Literal["exact", "lookup"],
) -> tuple[Detection, dict[str, Any]]:
    """Detect at a threshold: -> the detection, and its figures for result.json (fractions, None where unknown)."""
    classes = len(labels.class_names)
    detection = detect(fit_losses, score_losses, labels.given, classes, gamma, compat=compat)
    score = score_losses.cpu().numpy()
    return detection, {**detection_metrics(detection.labelled, score, labels.is_noisy)}


def name_warnings(detection: Detection, labels: Labels) -> list[str]:
    """The warnings of a detection, and the rescued classes by name."""
    names = [labels.class_names[c] for c in detection.rescued_classes]
    rescued = [f"by name, the classes without a clean sample are {', '.join(names)}"] if names else []
    return [*detection.warnings, *rescued]


def keep_evidence(
    folder: Path,
    name: str,
    detection: Detection,
    figures: dict[str, Any],
    losses: Tensor,
    labels: Labels,
    gamma: float,
) -> None:
    """Write losses.npy, detection.json and histogram.png of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    values = losses.float().cpu().numpy()
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    write_atomic(folder / "losses.npy", file.getvalue())
    fit = detection.fit
    write_json(
        folder / "detection.json",
        {
            "gamma": gamma,
            **figures,
            "mixture": {
                "alpha": list(map(float, fit.alpha)),
                "beta": list(map(float, fit.beta)),
                "weight": list(map(float, fit.weight)),
                "low": float(fit.low),
                "high": float(fit.high),
            },
            "labelled_per_class": np.bincount(
                labels.given[detection.labelled], minlength=len(labels.class_names)
            ).tolist(),
            "rescued_classes": [labels.class_names[c] for c in detection.rescued_classes],
            "warnings": list(detection.warnings),
        },
    )
    draw_histogram(
        folder / "histogram.png",
        values,
        detection,
        labels,
        title=f"Loss to the given label after {name}",
        gamma=gamma,
    )


def as_column(values: np.ndarray, device: torch.device) -> Tensor:
    """A numpy array as a column of the label store."""
    return torch.as_tensor(np.ascontiguousarray(values), device=device)
