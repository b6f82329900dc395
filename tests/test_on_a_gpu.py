"""What the script for a GPU machine names is there, can be rehearsed, and brings what the machine lacks."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_compare_tables import cells_of, finish, make

from bench.bare_machine import canonical, matches, patterns
from bench.carry_data import Missing, join, split
from bench.kernel_timing import Place
from bench.synthetic import write_dataset
from bench.table4_rows import write_rows
from bench.throughput_kernels import cases
from fastdrpl.compare.folder import check_data
from fastdrpl.errors import UserError
from fastdrpl.loaders.dataset import open_dataset

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = (ROOT / "bench" / "on_a_gpu.sh").read_text()
WHEELS = ROOT / "bench" / "gpu-wheels.txt"
# Import names that are not those of their distribution.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# Extras (pyproject.toml) and what only other benches use: the script runs without them.
EXTRAS = {
    "ffcv",
    "nvidia",
    "datasets",
    "cleanlab",
    "submitit",
    "pillow_heif",
    "tensorboard",
    "fiftyone",
    "webdataset",
}
EXTRAS |= {"onnx", "onnxscript", "onnxruntime", "timm"}


def parts() -> list[str]:
    found = re.search(r"^parts=\((.*?)\)", SCRIPT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_every_part_runs_and_can_be_rehearsed() -> None:
    functions = set(re.findall(r"^(\w+)\(\) \{", SCRIPT, re.MULTILINE))
    assert len(parts()) == len(set(parts())) > 15
    for name in parts():
        assert {name, f"rehearse_{name}"} <= functions, name
    rehearsed = {name.removeprefix("rehearse_") for name in functions if name.startswith("rehearse_")}
    assert rehearsed == set(parts())
    order = [
        "tests_augment",
        "parity",
        "epochs_relabel",
        "kernels_loss",
        "mixture",
        "cifar10",
        "cells",
        "memcheck",
    ]
    assert [name for name in parts() if name in order] == order


def test_every_file_that_it_names_is_there() -> None:
    """But for the one that it says it does without."""
    named = set(re.findall(r"(?:bench|tests|fastdrpl)/[\w./-]+\.(?:py|sh|txt|toml)", SCRIPT))
    optional = set(re.findall(r"=(\S+) # optional", SCRIPT))
    assert len(named) > 15 and optional
    assert [name for name in sorted(named - optional) if not (ROOT / name).is_file()] == []


def test_every_word_that_chooses_tests_chooses_one() -> None:
    """A test that is renamed must not fall out of the script in silence."""
    names = "\n".join(
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    )
    words = set(re.findall(r"\w+", " ".join(re.findall(r'(?:-k|plain=)\s*"([^"]+)"', SCRIPT))))
    words -= {"and", "or", "not", "plain"}
    assert len(words) > 10
    assert [word for word in sorted(words) if word not in names] == []


def test_words_that_are_none_are_refused(tmp_path: Path) -> None:
    """Before anything is made."""
    for words in (["out", "nonsense"], ["--nonsense"], []):
        done = subprocess.run(
            ["bash", str(ROOT / "bench/on_a_gpu.sh"), *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2, done
        assert "memcheck" in done.stdout
    assert (
        "no part nonsense"
        in subprocess.run(
            ["bash", str(ROOT / "bench/on_a_gpu.sh"), str(tmp_path / "out"), "nonsense"],
            capture_output=True,
            text=True,
        ).stderr
    )
    assert not (tmp_path / "out").exists()


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it, but for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    }
    return {name.partition(".")[0] for name in found}


def test_the_wheels_are_what_the_machine_lacks() -> None:
    """What is imported is on the machine or carried, and what the carried ones need too; nothing is carried in vain."""
    machine, wheels = patterns(), patterns(WHEELS)
    there = [*machine, *wheels]
    files = [path for folder in ("fastdrpl", "kernels", "loaders") for path in (ROOT / folder).rglob("*.py")]
    benches = {f"bench/{name}.py" for name in re.findall(r"bench/(\w+)\.py", SCRIPT)}
    files += [path for path in (ROOT / "bench").glob("*.py") if path.name != "throughput_prepare.py"]
    files += [ROOT / name for name in benches]
    files += [ROOT / name for name in set(re.findall(r"tests/\w+\.py", SCRIPT)) if (ROOT / name).is_file()]
    files += [ROOT / "tests" / "conftest.py", ROOT / "tests" / "need.py"]
    own = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"fastdrpl", "bench"}
    names = set().union(*map(imported, files)) - own - EXTRAS - set(sys.stdlib_module_names) - {"__future__"}
    assert {"torch", "tyro", "tomli_w", "pytest"} <= names
    missing = {name for name in names if not matches(DISTRIBUTIONS.get(name, name), there)}
    assert missing == set()
    needed = set()
    for wheel in wheels:
        for need in importlib.metadata.requires(wheel) or ():
            name = canonical(re.split(r"[\s\[<>=!~;(]", need)[0])
            if "extra ==" not in need and "python_version <" not in need:
                needed.add(name)
                assert matches(name, there), f"{wheel} needs {name}"
    used = {canonical(DISTRIBUTIONS.get(name, name)) for name in names} | needed
    assert set(wheels) <= used
    assert not any(matches(wheel, machine) for wheel in wheels)


def test_data_arrive_in_parts(tmp_path: Path) -> None:
    """They are put together when all are there and whole, to the same bytes; what is wrong is named."""
    made = tmp_path / "made" / "cifar10"
    before = write_dataset(made, size=16, train=40, test=20)
    sent, arrived, out = tmp_path / "sent", tmp_path / "arrived", tmp_path / "out"
    found = split(made, sent, largest=1_000_000)
    assert len(found) > 2 and all(part.stat().st_size <= 1_000_000 for part in found)
    arrived.mkdir()
    with pytest.raises(Missing, match="no list of parts"):
        join(arrived, out)
    for file in [sent / "cifar10.json", *found[:-1]]:
        (arrived / file.name).write_bytes(file.read_bytes())
    with pytest.raises(Missing, match=f"{found[-1].name} is missing"):
        join(arrived, out)
    content = bytearray(found[-1].read_bytes())
    content[100] ^= 1
    (arrived / found[-1].name).write_bytes(content)
    with pytest.raises(Missing, match=f"{found[-1].name} differs"):
        join(arrived, out)
    assert not list(out.glob("*"))
    (arrived / found[-1].name).write_bytes(found[-1].read_bytes())
    assert join(arrived, out) == [out / "cifar10"]
    assert open_dataset(out / "cifar10", verify=True).fingerprint == before.fingerprint
    assert sorted(path.name for path in out.rglob("*")) == sorted(
        ["cifar10", *(path.name for path in made.iterdir())]
    )
    (arrived / found[0].name).unlink()
    assert join(arrived, out) == [out / "cifar10"]  # it is there: parts are no longer needed


def test_finished_cells_become_rows_once(tmp_path: Path) -> None:
    grid = make(tmp_path, noises=('kind = "uniform", ratio = 0.8', 'kind = "none"'), seeds=(1,))
    cells = cells_of(grid)
    done = [cell for cell in cells if cell.noise.label == "U-0.8"]
    for cell in done:
        finish(grid, cell, best=0.5)
        folder = cell.folder(grid.out)
        result = json.loads((folder / "result.json").read_text()) | {"identity": {"config": cell.name}}
        (folder / "result.json").write_text(json.dumps(result))
        machine = {"precision": "bf16", "threads": 2, "mode": "eager", "gpu": None}
        (folder / "manifest.json").write_text(json.dumps({"samples": 50_000, "machine": machine}))
    rows, file = tmp_path / "rows.jsonl", str(tmp_path / "g.toml")
    assert write_rows(file, None, rows) == (2, 2)
    assert write_rows(file, None, rows) == (0, 2)
    found = {row["backend"]: row for row in map(json.loads, rows.read_text().splitlines())}
    assert set(found) == {"ce", "drpl"}
    row = found["drpl"]
    assert (row["what"], row["best"], row["last"], row["p50"]) == ("cifar10, U-0.8", 0.5, 0.7, 30.0)
    assert row["paper_best"] == pytest.approx(0.6435)  # Table IV


def test_the_loss_head_is_measured_in_both_precisions_on_a_gpu(tmp_path: Path) -> None:
    place = Place(torch.device("cuda"), 1, 1, True, 1.0, tmp_path / "rows.jsonl")
    halves = [run.args[0].dtype for word, run in cases(place, quick=True) if word == "loss"]
    assert halves.count(torch.float32) == halves.count(torch.bfloat16) > 0


def test_only_the_data_of_cells_that_run_must_be_there(tmp_path: Path) -> None:
    """So that a machine with half of the data can do half of a grid."""
    (tmp_path / "g.toml").write_text(
        '[grid]\nmethods = ["ce"]\nnoises = [{ kind = "none" }]\nseeds = [1]\n'
        '[[data]]\nrecipe = "cifar10"\npath = "here"\n[[data]]\nrecipe = "cifar100"\npath = "nowhere"\n'
    )
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "dataset.json").write_text("{}")
    from fastdrpl.compare.cells import plan_cells
    from fastdrpl.compare.grid import read_grid

    cells = plan_cells(read_grid(tmp_path / "g.toml", known_methods=["ce"])).cells
    check_data([cell for cell in cells if cell.data.label == "cifar10"])
    with pytest.raises(UserError, match="the data of 'cifar100'"):
        check_data(cells)
