"""`fastdrpl doctor`: what it finds here, and what it says where something is missing."""

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from fastdrpl import doctor as module
from fastdrpl.doctor import (
    Finding,
    Trial,
    check_disk,
    check_extras,
    check_gpus,
    check_packages,
    doctor,
    try_python,
)
from fastdrpl.loaders.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
H200 = json.dumps({"cuda": "13.0", "usable": True, "gpus": [["NVIDIA H200", 150 * 2**30]]})
BLIND = json.dumps({"cuda": "13.0", "usable": False, "gpus": []})
CPU_BUILD = json.dumps({"cuda": None, "usable": False, "gpus": []})


def printed(findings: list[Finding], monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[int, str]:
    monkeypatch.setattr(module, "examine", lambda _: findings)
    text = io.StringIO()
    return doctor(folder, Console(file=text, width=60)), text.getvalue()


def test_commands_install_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {f"{package}>={oldest}" for package, oldest in module.CORE.items()} <= set(project["dependencies"])
    assert project["optional-dependencies"]["ffcv"] == [module.FFCV]
    assert project["optional-dependencies"]["dali"][0].split(";")[0] == module.DALI


def test_importing_it_imports_nothing_slow():
    code = "import sys, fastdrpl.doctor; print([name for name in ('torch', 'numba', 'ffcv') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_trials_report_success_failure_and_crashes():
    assert try_python("print('hello')") == Trial(True, "hello")
    assert try_python("import no_such_package") == Trial(
        False, "ModuleNotFoundError: No module named 'no_such_package'"
    )
    assert try_python("import os; os._exit(7)") == Trial(False, "ended with code 7")


def test_all_is_found_on_this_machine(tmp_path: Path):
    """The real thing, once: the packages of the tests are there, so nothing is missing."""
    text = io.StringIO()
    assert doctor(tmp_path, Console(file=text, width=200)) == 0
    for word in ("torch", "GPU", "ffcv", "cores", "memory", "GB free", "compiled kernels"):
        assert word in text.getvalue()
    assert "[bold" not in text.getvalue() and list(tmp_path.iterdir()) == []


def test_missing_and_old_packages_come_with_their_command(monkeypatch: pytest.MonkeyPatch):
    versions = {"torch": "2.5.1", "torchvision": "0.29.2", "numpy": "2.4.6", "numba": "0.61.dev1"}
    monkeypatch.setattr(module, "_version", versions.get)
    findings = {finding.name: finding for finding in check_packages(Trial(True, BLIND))}
    assert findings["torch"].state == "missing" and findings["torch"].value == "2.5.1, needs 2.11 or newer"
    assert findings["torch"].fix is not None and findings["torch"].fix.endswith(
        "-m pip install 'torch>=2.11'"
    )
    assert findings["accelerate"].state == "missing" and "not installed" in findings["accelerate"].value
    assert findings["numpy"].state == findings["numba"].state == "ok"
    assert findings["triton"].state == "optional"


def test_a_torch_that_does_not_import_is_named():
    findings = {finding.name: finding for finding in check_packages(Trial(False, "ImportError: libfoo.so"))}
    assert findings["import torch, torchvision"].state == "missing"
    assert "libfoo.so" in findings["import torch, torchvision"].value


@pytest.mark.parametrize(
    ("torch", "driver", "state", "value"),
    [
        (Trial(True, H200), "580.1", "ok", "NVIDIA H200, 150 GiB, driver 580.1, CUDA 13.0"),
        (Trial(True, BLIND), None, "optional", "runs on the CPU"),
        (Trial(True, BLIND), "470.1", "missing", "driver 470.1 does not work with CUDA 13.0"),
        (Trial(True, CPU_BUILD), "580.1", "missing", "built without CUDA"),
        (Trial(False, "ImportError"), None, "optional", "runs on the CPU"),
    ],
)
def test_gpus(torch: Trial, driver: str | None, state: str, value: str):
    (finding,) = check_gpus(torch, driver)
    assert finding.state == state and value in finding.value
    assert (finding.fix is not None) == (state == "missing")


def test_extras_name_the_libraries_before_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no pkg-config, no apt-get
    monkeypatch.setattr(module, "_version", lambda _: None)
    findings = list(check_extras(Trial(False, "no"), Trial(False, "no")))
    assert [finding.state for finding in findings] == ["optional"] * 3
    assert findings[0].value == "not found: pkg-config"
    assert findings[0].fix is not None and "libopencv-dev" in findings[0].fix
    assert findings[1].fix is not None and findings[1].fix.endswith(f"pip install {module.FFCV}")
    works = list(check_extras(Trial(True, ""), Trial(True, "")))
    assert [finding.state for finding in works] == ["ok", "ok"]


def test_disk_speed_is_measured_and_nothing_is_left(tmp_path: Path):
    finding = check_disk(tmp_path)
    assert finding.state == "ok" and "MB/s" in finding.value
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_read_only_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "_TEST_BYTES", 2**62)
    assert check_disk(tmp_path).state == "missing"
    monkeypatch.undo()
    finding = check_disk(Path("/proc/self"))  # nobody can make files there
    assert finding.state == "missing" and finding.fix is not None


def test_the_table_ends_with_commands_and_the_code_says_whether_it_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    long = "python -m pip install " + "very-long-name " * 8 + "[brackets]"
    findings = [
        Finding("one", "[red]text[/]"),
        Finding("two", "x", "optional", "get two"),
        Finding("three", "x", "missing", long),
        Finding("four", "x", "ok", "never shown"),
    ]
    code, text = printed(findings, monkeypatch, tmp_path)
    assert code == 1
    assert "[red]text[/]" in text
    assert f"  {long}\n" in text  # in one piece, to be copied
    assert text.index(long) < text.index("get two")
    assert "never shown" not in text
    code, text = printed(findings[:2], monkeypatch, tmp_path)
    assert code == 0 and "To make it work" not in text


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        doctor(tmp_path / "none")
