"""Threads that wait: what a command sets, before torch is loaded, and what it leaves alone."""

import os
import subprocess
import sys

import pytest

from fastdrpl.spinning import POLICIES, SPINS, spin_briefly


@pytest.mark.parametrize("name", POLICIES)
def test_what_the_user_set_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environment = {name: "7"}
    spin_briefly(environment)
    assert environment == {name: "7"}


def test_nothing_is_set_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    environment: dict[str, str] = {}
    spin_briefly(environment)
    assert environment == {}


SHOW = """
import fastdrpl.cli
fastdrpl.cli.main(["--version"])
import torch
torch.ones(10_000_000).sum()
"""


def test_openmp_reads_it_from_every_command() -> None:
    """OpenMP itself says what it took, when it is loaded with torch."""
    clean = {name: value for name, value in os.environ.items() if name not in POLICIES}
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env=clean | {"OMP_DISPLAY_ENV": "VERBOSE", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr, done.stderr
