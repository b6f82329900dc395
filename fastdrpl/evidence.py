"""What a detection leaves in the folder of its stage: statistics, split, figures and a histogram."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastdrpl.detection import Detection, Detector, on_host
from fastdrpl.files import write_atomic, write_json
from fastdrpl.labels import Labels
from fastdrpl.report.histogram import draw_histogram


def keep_evidence(
    folder: Path,
    name: str,
    detector: Detector,
    found: Detection,
    figures: dict[str, Any],
    losses: Tensor | None,
    labels: Labels,
) -> None:
    """Write losses.npy (where there are losses), detection.npz, detection.json and histogram.png of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    if losses is not None:
        write_losses(folder / "losses.npy", losses)
    file = io.BytesIO()
    curves = {f"curve_{k}": [curve.x, curve.density] for k, curve in enumerate(found.evidence.curves())}
    np.savez(file, p_noisy=found.p_noisy, labelled=found.labelled, doubt=found.doubt, **curves)  # type: ignore[arg-type]
    write_atomic(folder / "detection.npz", file.getvalue())
    write_json(folder / "detection.json", _describe(detector, found, figures, labels))
    draw_histogram(folder / "histogram.png", found, labels, title=_title(name, found))


def write_losses(path: Path, losses: Tensor) -> None:
    """A column of losses as a .npy of float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.save(file, on_host(losses.float()), allow_pickle=False)
    write_atomic(path, file.getvalue())


def name_warnings(found: Detection, labels: Labels) -> list[str]:
    """The warnings of a detection, and the rescued classes by name."""
    names = [labels.class_names[c] for c in found.rescued_classes]
    rescued = [f"by name, the classes without a clean sample are {', '.join(names)}"] if names else []
    return [*found.warnings, *rescued]


def _title(name: str, found: Detection) -> str:
    what = "Loss to the given label" if found.measure == "loss" else "Doubt of the given label"
    return f"{what} after {name}"


def _describe(
    detector: Detector, found: Detection, figures: dict[str, Any], labels: Labels
) -> dict[str, Any]:
    per_class = np.bincount(labels.given[found.labelled], minlength=len(labels.class_names))
    return {
        "detector": re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(detector).__name__).lower(),
        "measure": found.measure,
        "curves": [curve.name for curve in found.evidence.curves()],
        **figures,
        **found.evidence.to_json(),
        "labelled_per_class": per_class.tolist(),
        "rescued_classes": [labels.class_names[c] for c in found.rescued_classes],
        "warnings": list(found.warnings),
    }
