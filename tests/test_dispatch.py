"""Which implementation runs: chosen in one place, by kind of device and by the environment."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from need import need

from fastdrpl.config import EngineConfig
from fastdrpl.errors import UserError
from fastdrpl.kernels import dispatch
from fastdrpl.machine import build_machine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Each test starts as a new process does, and leaves nothing behind."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv(dispatch.DEBUG_VARIABLE, raising=False)
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()


def test_the_cpu_has_a_compiled_twin_of_two():
    assert dispatch.describe(CPU) == {
        "augment": "numba",
        "mixup": "reference",
        "loss_head": "reference",
        "pseudo_label": "reference",
        "beta_mixture": "numba",
    }


def give_gpus(monkeypatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")


def test_a_gpu_has_a_twin_of_all(monkeypatch):
    need("triton")
    give_gpus(monkeypatch, (9, 0), (7, 0))
    assert dispatch.describe(torch.device("cuda", 1)) == dict.fromkeys(dispatch.OPERATIONS, "triton")


def test_an_old_gpu_runs_the_reference_and_says_why(monkeypatch):
    need("triton")
    give_gpus(monkeypatch, (9, 0), (6, 1))
    chosen = dispatch.describe(torch.device("cuda"))
    assert "GPU 1 is older" in chosen.pop("reason")
    assert chosen == dict.fromkeys(dispatch.OPERATIONS, "reference")


def test_without_triton_a_gpu_runs_the_reference_and_says_why(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    chosen = dispatch.describe(torch.device("cuda"))
    assert "triton is not installed" in chosen.pop("reason")
    assert chosen == dict.fromkeys(dispatch.OPERATIONS, "reference")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_environment_turns_the_twins_off(device, monkeypatch):
    give_gpus(monkeypatch, (9, 0))
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert {dispatch.choose(operation, device) for operation in dispatch.OPERATIONS} == {"reference"}


def test_another_device_runs_the_reference():
    assert dispatch.choose("augment", "meta") == "reference"


def test_a_choice_stands_for_the_process(monkeypatch):
    assert dispatch.choose("augment", "cpu") == "numba"
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.choose("augment", "cpu") == "numba"


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_a_compiled_step_takes_the_choice_as_it_stands(implementation, monkeypatch):
    """What the choice asks of the driver and of the environment is not traced: not even a warning comes of it."""
    if implementation == "triton":
        need("triton")
        give_gpus(monkeypatch, (9, 0))
    else:
        monkeypatch.setenv(dispatch.VARIABLE, "reference")

    def step(x):
        dispatch.check_range("rows", x, 5)
        return x + (3 if dispatch.choose("loss_head", "cuda") == "triton" else 7)

    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = torch.compile(step, fullgraph=True, backend="eager")(torch.zeros(2))
    assert out.tolist() == [3.0 if implementation == "triton" else 7.0] * 2


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="'blur'; there are augment, mixup"):
        dispatch.choose("blur", "cpu")


@pytest.mark.parametrize("value", ["", "triton", "Reference"])
def test_another_value_of_the_environment_is_refused(value, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, value)
    with pytest.raises(ValueError, match=f"FASTDRPL_KERNELS={value}; wanted auto or reference"):
        dispatch.choose("augment", "cpu")


def test_indices_are_looked_at_when_debugging_only(monkeypatch):
    values = torch.tensor([0, 4, 5, -1])
    dispatch.check_range("rows", values, 5)
    dispatch.forget()
    monkeypatch.setenv(dispatch.DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match=r"rows\[2\] is 5, want 0 <= rows < 5"):
        dispatch.check_range("rows", values, 5)
    with pytest.raises(ValueError, match=r"rows\[3\] is -1"):
        dispatch.check_range("rows", values, 6)
    dispatch.check_range("rows", values[:2], 5)
    dispatch.check_range("rows", values[:0], 5)
    dispatch.forget()
    monkeypatch.setenv(dispatch.DEBUG_VARIABLE, "yes")
    with pytest.raises(ValueError, match="FASTDRPL_KERNELS_DEBUG=yes; wanted 0 or 1"):
        dispatch.debugging()


def test_triton_is_not_loaded_on_a_cpu():
    """It takes a second, and its kernels compile for GPUs only."""
    program = (
        "import sys, torch\n"
        "from fastdrpl.kernels import augment, crop, dispatch, mixup\n"
        "dispatch.describe(torch.device('cpu'))\n"
        "pixels, rows = torch.zeros((2, 4, 4, 3), dtype=torch.uint8), torch.arange(2)\n"
        "augment.centre(pixels, rows, crop.Crop(size=4, mean=(0, 0, 0), std=(1, 1, 1)))\n"
        "print('triton' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_a_run_says_what_was_chosen_and_refuses_what_is_not_there(monkeypatch):
    assert build_machine(EngineConfig(device="cpu")).describe()["kernels"]["augment"] == "numba"
    for variable in (dispatch.VARIABLE, dispatch.DEBUG_VARIABLE):
        dispatch.forget()
        with monkeypatch.context() as patch:
            patch.setenv(variable, "perhaps")
            with pytest.raises(UserError, match=f"{variable}=perhaps; wanted"):
                build_machine(EngineConfig(device="cpu"))
