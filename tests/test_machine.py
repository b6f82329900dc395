"""What a run takes from the machine it is on: precision, the layout of networks, the batch of passes that look."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastdrpl import machine
from fastdrpl.config import EngineConfig
from fastdrpl.eyes import choose_look_batch
from fastdrpl.models import build_model
from fastdrpl.models.layout import choose_layout

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "computes"),
    [
        ("fpu sse2 avx512f avx512_vnni", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        (None, None),
    ],
)
def test_the_precision_is_what_the_processor_computes_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str | None,
    computes: bool | None,
) -> None:
    """It is kept where a run goes on with another processor, which says so if it only emulates it.

    Runs of one process may have different precisions.
    """

    def precision(asked: Any = "auto", before: dict[str, Any] | None = None) -> str:
        return machine.build_machine(EngineConfig(device="cpu", precision=asked), before).precision

    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nmodel name\t: any\nflags\t\t: {flags}\nbugs\t\t: amx_bf16x\n")
    monkeypatch.setattr(machine, "CPU_FLAGS", file)
    assert machine.cpu_computes_bf16() is computes
    assert precision() == ("bf16" if computes else "fp32")
    assert precision(before={"precision": "fp32"}) == precision("fp32") == "fp32"
    assert "emulates" not in capsys.readouterr().err
    assert precision(before={"precision": "bf16"}) == precision("bf16") == "bf16"
    assert ("only emulates bf16" in capsys.readouterr().err) is (computes is False)


@pytest.mark.parametrize(
    ("name", "width", "safe"),
    [
        ("preact_resnet18", 4, False),
        ("preact_resnet18", 15, False),
        ("preact_resnet18", 16, True),
        ("preact_resnet18", 64, True),
        ("resnet18", 64, True),
    ],
)
def test_maps_lie_channels_last_where_that_is_safe(name: str, width: int, safe: bool) -> None:
    network = build_model(name, 10, width, seed=0)
    network.to(memory_format=choose_layout(network, CPU))  # type: ignore[call-overload]
    last: list[bool] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, __, out: last.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    network(torch.randn(4, 3, 64, 64))
    assert last and all(last) is any(last) is safe
    assert choose_layout(network, torch.device("cuda")) == torch.channels_last


def test_only_a_strided_kernel_of_one_pixel_is_not_safe() -> None:
    for kernel, stride, channels, groups, safe in (
        (1, 2, 15, 1, False),
        (1, 2, 16, 1, True),
        (1, 2, 32, 4, False),
        (1, 1, 8, 1, True),
        (3, 2, 8, 1, True),
    ):
        layer = nn.Conv2d(channels, 32, kernel, stride, groups=groups)
        assert (choose_layout(nn.Sequential(layer), CPU) == torch.channels_last) is safe


TRAIN = """
import sys, torch
from fastdrpl.models import build_model
from fastdrpl.models.layout import choose_layout
torch.set_num_threads(2)
for width in map(int, sys.argv[2:]):
    network = build_model("preact_resnet18", 10, width, seed=0)
    network.to(memory_format=choose_layout(network, torch.device("cpu")))
    for step in range(int(sys.argv[1])):
        network(torch.randn(33, 3, 16, 16)).sum().backward()
        torch.empty(step % 97 * 8)
print("whole")
"""


def train_beside_a_watching_allocator(steps: int, *widths: int) -> None:
    """glibc's own watch over what is written beyond an allocation ends the process."""
    environment = os.environ | {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-c", TRAIN, str(steps), *map(str, widths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "cannot be preloaded" in done.stderr:
        pytest.skip("glibc's malloc debugging is not installed")
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-2000:]


def test_the_chosen_layouts_write_within_their_memory() -> None:
    train_beside_a_watching_allocator(6, 8, 16)


@pytest.mark.slow
def test_the_chosen_layouts_write_within_their_memory_at_length() -> None:
    train_beside_a_watching_allocator(20, 4, 10, 15, 16, 17, 24, 33)


FILL = """
import resource, sys, torch
from fastdrpl.machine import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def fill():
    tensors = [torch.ones(10_000_000) for _ in range(3)]
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_is_freed_is_kept_for_the_next_step() -> None:
    """Ten times three tensors of 40 MB, in pages of 4 KB: 293,000 of them, unless they are there already."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FILL, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 30_000 < 200_000 < faults["given back"], faults


def test_the_batch_of_passes_that_look() -> None:
    def chosen(
        device: str,
        size: int,
        width: int,
        world: int = 1,
        precision: str = "fp32",
        asked: int = 0,
        before: int | None = None,
    ) -> int:
        here = SimpleNamespace(device=torch.device(device), world=world, precision=precision)
        return choose_look_batch(asked, here, size, width, before)  # type: ignore[arg-type]

    assert chosen("cpu", 32, 16) > chosen("cpu", 32, 64) > chosen("cpu", 224, 64) >= 16
    assert chosen("cpu", 32, 16, precision="bf16") == 2 * chosen("cpu", 32, 16)
    assert chosen("cpu", 8, 4) == 512
    assert chosen("cpu", 32, 16, world=2) == 2 * chosen("cpu", 32, 16)
    assert chosen("cuda", 32, 64) == 2048 and chosen("cuda", 224, 64) == 64
    assert chosen("cpu", 32, 16, asked=7, before=500) == 7
    assert chosen("cpu", 32, 16, before=500) == 500
