"""Every kernel for GPUs compiles, on a machine without one too; each is known to torch under its operation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from need import need

need("triton")

TESTS = Path(__file__).resolve().parent
GPU = TESTS.parent / "kernels" / "gpu"
SIGNATURES = sorted(path.stem for path in (TESTS / "gpu_signatures").glob("[!_]*.py"))
MODULES = sorted(path.stem for path in GPU.glob("[!_]*.py"))
# What these hold is compiled with the launchers and kernels of other modules, which use it.
WITHOUT_KERNELS = {"integers", "launch", "loss_head", "loss_head_reference", "loss_head_tiles"}
WITHOUT_KERNELS |= {"beta_mixture_iterations", "beta_mixture_percentiles", "beta_mixture_results"}


def run_compiled(*words: str) -> str:
    """The output of a Python process in which kernels are compiled and not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_kernels_compile(name):
    output = run_compiled(str(TESTS / "gpu_compile.py"), name)
    compiled = {line.split()[0] for line in output.splitlines()}
    source = (GPU / f"{name}.py").read_text(encoding="utf-8")
    started = set(re.findall(r"wrap_triton\((\w+)", source))
    assert started <= compiled, f"no signature for {sorted(started - compiled)}"


def test_every_module_with_kernels_has_signatures():
    assert set(MODULES) - WITHOUT_KERNELS == set(SIGNATURES)


def test_torch_knows_the_kernels_behind_each_operation():
    """torch.compile keys what it keeps on disk by their source: a kernel it does not see would stay stale."""
    output = run_compiled(
        "-c",
        "import importlib\n"
        "from torch._library.triton import triton_ops_to_kernels\n"
        f"for name in {MODULES}: importlib.import_module('fastdrpl.kernels.gpu.' + name)\n"
        "for name, kernels in triton_ops_to_kernels.items():\n"
        "    if name.startswith('fastdrpl::'): print(name, *(kernel.__name__ for kernel in kernels))\n",
    )
    lines = [line.split() for line in output.splitlines()]
    assert lines, "no operation is registered"
    unseen = [name for name, *kernels in lines if not kernels]
    assert not unseen, f"{unseen}: start kernels by `wrap_triton(kernel)[grid](...)` in the launcher"
