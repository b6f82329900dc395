"""card.md: what a run's network is, what it was trained on, how well it does, and what nobody should expect of it."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdrpl.calibration import Calibration, calibration_from
from fastdrpl.config_file import read_table as read_toml
from fastdrpl.exports.finished import Finished
from fastdrpl.files import read_json, sha256_file, write_atomic
from fastdrpl.folder import RunFolder
from fastdrpl.loaders.printable import printable
from fastdrpl.report.facts import RunFacts, read_facts

CARD = "card.md"
_SHOWN = 30  # class names


def write_card(run: Path) -> None:
    """Write export/card.md of a finished run. Raises `UserError` or `DataError` as `read_facts`."""
    write_atomic(RunFolder(run).export / CARD, render_card(run).encode())


def export_card(run: Finished, out: Path) -> str:
    """The same, anywhere."""
    write_atomic(out, render_card(run.folder.path).encode())
    return "model card"


def render_card(run: Path) -> str:
    """The card as Markdown; every text of others is escaped."""
    folder, facts = RunFolder(run), read_facts(run)
    result, manifest = read_json(folder.result), read_json(folder.manifest)
    described = folder.export / "model.json"
    model, config = read_json(described), read_toml(folder.config)
    calibration = calibration_from(model, described)
    parts = [
        _HEAD,
        f"# Image classifier trained with wrong labels: {_text(facts.recipe)}, {_text(facts.method)}",
        _verdict(facts),
        "## Figures",
        _table(("", ""), _figures(facts, model, config, calibration)),
        "## Stages",
        _table(("stage", "epochs", "labels kept", "not kept", "AUC", "TPR", "FPR"), _stages(facts)),
        "AUC, TPR and FPR compare with the right labels, where these are known. TPR and FPR are the shares of the "
        "right and of the wrong labels that were kept.",
        "## Use",
        _USE,
        _input(model),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(facts, result, calibration)),
        "## Made by",
        _table(("", ""), _origin(folder, facts, manifest)),
    ]
    return "\n\n".join(parts) + "\n"


_HEAD = "---\npipeline_tag: image-classification\ntags:\n- image-classification\n- label-noise\n---"

_USE = """\
```console
$ fastdrpl predict RUN photos --out photos.csv
$ fastdrpl export RUN --to onnx
```

The weights are in `model.safetensors`, what it takes to use them in `model.json`; in Python
`fastdrpl.opening.open_run(Path("RUN")).network` is the network in evaluation mode. Suspects are in `labels.csv` of
the run (`labelled` is false), the most doubtful has `rank` 1."""


def _verdict(facts: RunFacts) -> str:
    known = f"; {facts.noise_rate:.1%} really are" if facts.noise_rate is not None else ""
    trial = ""
    if facts.epochs_scale != 1:
        trial = (
            f" Every schedule was {facts.epochs_scale:g} times as long as the method's: this is a trial, and its "
            "figures say nothing about the method."
        )
    return (
        f"{facts.suspects:,} of {facts.samples:,} labels look wrong ({facts.suspects / facts.samples:.1%}){known}."
        f"{trial}"
    )


def _figures(
    facts: RunFacts, model: Mapping[str, Any], config: Mapping[str, Any], calibration: Calibration | None
) -> list[tuple[str, str]]:
    noise = config.get("noise", {})
    added = "none added"
    if noise.get("kind", "none") != "none":
        added = f"{noise['kind']}, {noise.get('ratio', 0):g}"
    elif "file" in noise:
        added = f"labels of {Path(noise['file']).name}"
    names = model["class_names"]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    rows = [
        ("test accuracy, last epoch", _percent(facts.last)),
        ("test accuracy, best epoch (chosen on the test images, so it flatters)", _percent(facts.best)),
        ("training images", f"{facts.samples:,}, from `{_text(model.get('source', '?'))}`"),
        ("label noise", added),
        (
            "network",
            f"{_text(model['model'])}, width {model['width']}, {model.get('networks', 1)} network(s)",
        ),
        (f"{len(names):,} classes", ", ".join(map(_text, names[:_SHOWN])) + more),
    ]
    rows.append(("probabilities", "not calibrated" if calibration is None else calibration.describe()))
    if calibration is not None and calibration.error_before is not None:
        errors = f"{calibration.error_before:.3f} before, {calibration.error_after:.3f} after"
        rows.append(("expected calibration error, on the labels that the temperature was fitted to", errors))
    return rows


def _stages(facts: RunFacts) -> list[tuple[str, ...]]:
    rows = []
    for stage in facts.stages:
        found = stage.detection
        counts = [f"{found[name]:,}" if name in found else "-" for name in ("labelled", "unlabelled")]
        rates = ["-" if found.get(name) is None else f"{found[name]:.3f}" for name in ("auc", "tpr", "fpr")]
        rows.append((_text(stage.name), str(stage.epochs), *counts, *rates))
    return rows


def _input(model: Mapping[str, Any]) -> str:
    stored, size = model["stored_size"], model["input_size"]
    cut = "" if stored == size else f", of which the middle {size} x {size} are seen"
    return (
        f"Input: RGB, resized to {stored} x {stored} ({model.get('resample', 'bilinear')}){cut}, scaled to 0..1, less "
        f"the mean {_numbers(model['mean'])}, divided by {_numbers(model['std'])}."
    )


def _limits(facts: RunFacts, result: Mapping[str, Any], calibration: Calibration | None) -> list[str]:
    lines = [
        "It knows its classes only: an image of anything else gets one of them, perhaps with great certainty.",
        "A suspect is a network's opinion. Rare, difficult and unusual images look like wrong labels to it: look "
        "before you correct or drop one.",
        "Labels that are wrong in the same way throughout a class cannot be told from right ones.",
    ]
    if facts.last is None:
        lines.append("There was no test set: how well it does on new images is not known.")
    elif result["test_may_be_wrong"]:
        lines.append(
            "The test labels come from the same hands as the others and may be wrong too: its accuracy on right labels "
            "is not known."
        )
    if facts.noise_rate is None:
        lines.append("The right labels are not known: nobody has checked how many suspects are wrong.")
    if calibration is not None:
        lines.append(
            "The temperature makes probabilities honest on average, for images like those it was fitted on, not for "
            "single classes or other images."
        )
    return lines


def _origin(folder: RunFolder, facts: RunFacts, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions, machine = manifest["versions"], manifest["machine"]
    return [
        ("run", f"`{facts.hash}`, seed {facts.seed}"),
        *((f"sha256 of the {name}", f"`{digest}`") for name, digest in manifest["identity"].items()),
        ("sha256 of model.safetensors", f"`{sha256_file(folder.export / 'model.safetensors')}`"),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in ("fastdrpl", "torch", "python"))),
        ("machine", f"{machine.get('gpu') or 'CPU'}, {machine['precision']}, {machine['ranks']} rank(s)"),
        ("configuration", "`config.toml` of the run; `fastdrpl train --config config.toml` repeats it"),
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """A name of others' choice: no mark-up, no end of line, no end of cell."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(printable(str(text)), quote=False))


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2%}"


def _numbers(values: list[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
