"""R15: looks that tell nothing, or only one side, through the real loop: warned and trained on, or exit 5; never an
empty loader."""

import json
from collections.abc import Callable

import numpy as np
import pyarrow.parquet
import pytest
import torch

from fastdrpl.cli import main
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.methods import METHODS

BARE = 3  # the class without a clean sample

# Probability of each label, by a draw in [0, 1) and the labels.
PATTERNS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "no separation": lambda draw, given: torch.full_like(draw, 0.5),
    "all clean": lambda draw, given: 0.9 + 0.09 * draw,
    "all noisy": lambda draw, given: 0.001 + 0.01 * draw,
    "a class without a clean one": lambda draw, given: torch.where(given == BARE, 0.001, 0.9) + 0.05 * draw,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(PrepareConfig(kind="digits", out=folder), quiet=True)
    return folder


def look_as(pattern: str) -> Callable[..., torch.Tensor]:
    """In place of `eyes.take`: what the networks would have to see for the pattern."""

    def take(learners, eyes, look, given, pass_):
        draw = torch.from_numpy(np.random.default_rng(int(pass_.epoch)).random(len(given))).float()
        own = PATTERNS[pattern](draw, given)
        if look.read == "probability":
            classes = 10
            column = ((1 - own) / (classes - 1))[:, None].repeat(1, classes)
            column.scatter_(1, given[:, None], own[:, None])
        else:
            column = own if look.read == "given" else -own.log()
        return column if look.of == "mean" else torch.stack([column] * len(learners.networks), -1)

    return take


def check(method: str, pattern: str, digits, run, monkeypatch, capsys) -> int:
    """The exit code of a run that sees the pattern, after what it says and leaves was checked."""
    monkeypatch.setattr("fastdrpl.loop.take", look_as(pattern))
    monkeypatch.setattr("fastdrpl.evidence.draw_histogram", lambda *given, **named: None)
    words = [
        *("train", "digits", "--data", str(digits), "--run", str(run), "--method", method, "--limit", "80"),
        *("--limit_test", "20", "--batch_size", "40", "--model.width", "2", "--epochs_scale", "0.02"),
        *("--engine.threads", "1", "--engine.eval_batch", "80", "--test_every", "0"),
    ]
    code = main(words)
    said = " ".join(capsys.readouterr().err.split())
    assert code in (0, 5), said
    assert "Traceback" not in said
    if code == 5:
        assert "fewer than the 10 classes" in said and "no training is lost" in said
        return code
    table = pyarrow.parquet.read_table(run / "labels.parquet")
    labelled, given = table["labelled"].to_numpy(), table["given"].to_numpy()
    assert labelled.sum() >= 10
    warnings = " ".join(
        warning
        for stage in json.loads((run / "result.json").read_text())["stages"]
        for warning in stage["warnings"]
    )
    assert labelled.any() and (warnings or not labelled.all())
    if not set(given) <= set(given[labelled]):
        assert "no label of theirs" in warnings
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert np.isfinite(json.loads(line)["loss"])
    return code


@pytest.mark.parametrize("pattern", PATTERNS)
def test_two_methods_on_looks_that_tell_little(pattern, digits, tmp_path, monkeypatch, capsys):
    """R15: drpl, which splits between its stages, and dividemix, which splits before every epoch."""
    codes = {
        method: check(method, pattern, digits, tmp_path / method, monkeypatch, capsys)
        for method in ("drpl", "dividemix")
    }
    if pattern in ("all clean", "a class without a clean one"):
        assert codes["dividemix"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_looks_that_tell_little(method, digits, tmp_path, monkeypatch, capsys):
    """R15: all methods."""
    for number, pattern in enumerate(PATTERNS):
        code = check(method, pattern, digits, tmp_path / str(number), monkeypatch, capsys)
        with capsys.disabled():
            print(f"{method}, {pattern}: exit {code}")
