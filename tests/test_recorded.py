"""Toy runs of drpl and ce against those of the version before the core was rebuilt, and a run folder that it left.

Bits depend on the processor and on torch: where they are those of the recording every bit is compared, elsewhere
figures.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from fastdrpl.cli import main

FIXTURES = Path(__file__).resolve().parent / "fixtures"
RECORDED = json.loads((FIXTURES / "recorded.json").read_text())
CE = [
    *("train", "digits", "--limit", "160", "--limit_test", "60", "--batch_size", "32", "--model.width", "4"),
    *("--engine.threads", "1", "--engine.precision", "fp32", "--engine.eval_batch", "80"),
    *("--noise.ratio", "0.2", "--method", "ce"),
    *("--ce.schedule.epochs", "6", "--ce.schedule.milestones", "4", "--track", "every"),
]
RUNS = {"drpl": toy.WORDS, "ce": CE, "drpl-lookup": [*toy.WORDS, "--drpl.start_targets", "uniform"]}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_values(value) -> str:
    return digest(json.dumps(value, sort_keys=True, default=str).encode())


def same_machine() -> bool:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    here = {
        "processor": processor,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    return here == RECORDED["machine"]


def bits(tensors) -> dict[str, str]:
    return {
        name: digest(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())[:16]
        for name, value in sorted(tensors.items())
    }


@pytest.fixture(scope="module", params=sorted(RUNS))
def recorded(request, tmp_path_factory):
    """A finished run, and what was recorded of its like."""
    run = tmp_path_factory.mktemp("recorded") / "run"
    process = toy.FORKS.Process(target=toy.command, args=(RUNS[request.param], run))
    process.start()
    process.join(240)
    assert process.exitcode == 0, toy.log_of(run)
    return run, RECORDED[request.param]


def test_a_toy_run_has_the_figures_that_it_had(recorded):
    run, wanted = recorded
    metrics, _, _ = toy.outcome(run)
    assert [(m["stage"], m["epoch"], m["lr"]) for m in metrics] == [
        (m["stage"], m["epoch"], m["lr"]) for m in wanted["metrics"]
    ]
    assert metrics[0]["loss"] == pytest.approx(wanted["metrics"][0]["loss"], rel=1e-3)


def test_a_toy_run_has_the_bits_that_it_had(recorded):
    if not same_machine():
        pytest.skip("bits: recorded on another processor")
    run, wanted = recorded
    metrics, _, table = toy.outcome(run)
    assert metrics == wanted["metrics"]
    later = {"p_suggested", "rank", "score"}
    rows = [{name: value for name, value in row.items() if name not in later} for row in table]
    assert of_values(rows)[:16] == wanted["table"]
    assert digest((run / "export" / "model.safetensors").read_bytes())[:16] == wanted["export"]
    for position, stage in enumerate(sorted(wanted["stages"])):
        names = sorted(path.name for path in (run / "checkpoints").iterdir() if "-stage-" in path.name)
        at = next(k for k, path in enumerate(names) if path.endswith(stage))
        assert of_values(bits(toy.last_tensors(run, at))) == wanted["stages"][stage], (position, stage)


def test_a_run_folder_of_the_first_schema_goes_on(tmp_path):
    """R21: stopped in its second stage, with settings under their old names and those of every method."""
    run = tmp_path / "run"
    words = [word for word in toy.WORDS if word not in ("--engine.precision", "fp32")]  # it began with auto
    shutil.copytree(FIXTURES / "schema1", run)
    words[words.index("--model.width") + 1] = "2"
    before = (run / "metrics.jsonl").read_text().splitlines()
    assert main([*words, "--run", str(run)]) == 0
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert [json.loads(line)["stage"] for line in after] == ["relabel"] * 6 + ["semi1"] * 4 + ["semi2"] * 4
    result = json.loads((run / "result.json").read_text())
    assert [stage["name"] for stage in result["stages"]] == ["relabel", "semi1", "semi2"]
    assert np.isfinite([stage["accuracy"]["last"] for stage in result["stages"]]).all()
    assert main([*words, "--run", str(run), "--optimiser.lr", "0.01"]) == 2  # it still knows what it was
