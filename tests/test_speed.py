"""R25: compiled code keeps its distance to the reference, and stored rows are a gate.

Seconds mean nothing on a machine that others use as well, and instructions of compiled code cannot be counted there:
valgrind knows no AVX-512, so that it would count other code than runs. A ratio of two things that were measured in
turns in one process depends on neither, and falls when a twin gets slower; the floors are about half of what
was measured beside other work.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import check, throughput_bmm
from bench.rows import RESULTS
from fastdrpl.kernels import augment as public
from fastdrpl.kernels.augment import augment_uint8
from fastdrpl.kernels.beta_mixture import fit_beta_mixture
from fastdrpl.loaders.order import Pass, Purpose


def cpu_ratio(slow, fast, repeats: int, inner: int) -> float:
    """CPU time of the quickest call of one thing over that of another, called in turns (`inner` quick ones a turn)."""
    slow(), fast()
    times: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(repeats):
        for name, function, count in (("slow", slow, 1), ("fast", fast, inner)):
            began = time.process_time()
            for _ in range(count):
                function()
            times[name].append((time.process_time() - began) / count)
    return min(times["slow"]) / min(times["fast"])


def test_the_compiled_em_keeps_its_distance():
    """R25: percentiles, fit and posterior at 50,000 losses: 39 to 43 times the reference's speed were measured."""
    losses = throughput_bmm.make_losses(50_000)

    def run(backend):
        fit_beta_mixture(losses, backend=backend, iterations=10).posterior(losses, backend=backend)

    ratio = cpu_ratio(lambda: run("reference"), lambda: run("numba"), repeats=5, inner=20)
    print(f"the compiled mixture is {ratio:.0f} times as fast as the reference")
    assert ratio > 20


def test_the_compiled_crop_keeps_its_distance(monkeypatch):
    """R25: 128 images of 32 pixels, cropped and flipped: 25 times the reference's speed was measured."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8))
    rows, stream = torch.arange(128), Pass(1, 1, 1, Purpose.train).stream

    def run(how):
        monkeypatch.setattr(public, "choose", lambda *_: how)
        augment_uint8(pixels, rows, rows, stream, pad=4, size=32, flip=True)

    ratio = cpu_ratio(lambda: run("reference"), lambda: run("numba"), repeats=7, inner=20)
    print(f"the compiled crop is {ratio:.1f} times as fast as the reference")
    assert ratio > 10


def row(**changes):
    base = {"what": "x", "shape": [1], "dtype": "float64", "backend": "numba", "threads": 2, "p50": 1.0}
    return base | {"hardware": {"processor": "p", "accelerator": None}} | changes


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        ([row(p50=1.09)], 0),
        ([row(p50=1.11)], 1),
        ([row(p50=9.0, threads=1)], 0),  # another machine class: named, not judged
        ([row(p50=9.0), row(p50=1.0)], 0),  # the last of a kind counts
    ],
)
def test_a_row_that_is_a_tenth_slower_fails(tmp_path, capsys, new, slower):
    """R25: the gate over stored rows."""
    for name, rows in (("new", new), ("stored", [row(p50=5.0), row()])):
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert check.compare(check.read_rows(tmp_path / "new"), check.read_rows(tmp_path / "stored")) == slower
    assert ("no stored row" in capsys.readouterr().out) == (new[0]["threads"] == 1)


@pytest.mark.slow
def test_no_row_of_the_beta_mixture_is_slower_than_stored(tmp_path, capsys):
    """R25: measured anew against bench/results, on a quiet machine of the same kind; threads wait as in a run."""
    out = tmp_path / "rows.jsonl"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, throughput_bmm.__file__, "50000", "--device", "cpu", "--out", str(out)]
    subprocess.run(command, env=alone, check=True)
    new = check.read_rows(out)
    with capsys.disabled():
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        assert check.compare(new, check.read_rows(Path(RESULTS) / "throughput_bmm.jsonl")) == 0
