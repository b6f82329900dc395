"""The package as users get it: what a wheel holds, what a checkout finds, what importing costs."""

import ast
import importlib.metadata
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest
import toy

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"fastdrpl": "fastdrpl", "loaders": "fastdrpl.loaders", "kernels": "fastdrpl.kernels"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"torch", "torchvision", "ffcv", "nvidia", "triton", "accelerate", "sklearn", "numba", "matplotlib"}


def _python(code: str | list[str], *, folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder` with `path` as the only addition to the environment's packages."""
    words = ["-c", code] if isinstance(code, str) else code
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


def _lines(code: str | list[str], *, folder: Path, path: Path) -> list[str]:
    done = _python(code, folder=folder, path=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The wheel, built from the source distribution, built from a copy of this tree (once for all workers)."""
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "wheel"
    with filelock.FileLock(out.with_suffix(".lock")):
        if not out.exists():
            source = base / "source"
            shutil.copytree(
                ROOT,
                source,
                ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "data"),
            )
            command = [
                sys.executable,
                "-m",
                "build",
                "--no-isolation",
                "--outdir",
                str(out / "new"),
                str(source),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (out / "new").glob("*.whl")
    return found


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, *command], check=True)
    return folder


def _modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def test_the_wheel_holds_every_module_and_nothing_beside_the_package(wheel: Path) -> None:
    """R22."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "fastdrpl",
        f"fastdrpl-{PROJECT['project']['version']}.dist-info",
    }
    wanted = {
        str(Path(package.replace(".", "/")) / path.relative_to(ROOT / folder))
        for folder, package in FOLDERS.items()
        for path in _modules(folder)
    }
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "fastdrpl/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_only_the_package_is_installed_and_it_imports_from_anywhere(site: Path, tmp_path: Path) -> None:
    """R22."""
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} <= {
        "fastdrpl",
        "bin",
    }
    code = (
        "import fastdrpl, fastdrpl.kernels.beta_mixture, fastdrpl.loaders.order, importlib.util\n"
        "for module in (fastdrpl, fastdrpl.kernels.beta_mixture, fastdrpl.loaders.order): print(module.__file__)\n"
        "print([name for name in ('tests', 'bench') if importlib.util.find_spec('fastdrpl.' + name)])"
    )
    *files, strays = _lines(code, folder=tmp_path, path=site)
    assert all(Path(file).is_relative_to(site / "fastdrpl") for file in files) and len(files) == 3
    assert strays == "[]"


def test_the_installed_command_answers(site: Path, tmp_path: Path) -> None:
    assert "fastdrpl train" in "\n".join(_lines(["-m", "fastdrpl", "--help"], folder=tmp_path, path=site))
    assert _lines(["-m", "fastdrpl", "--version"], folder=tmp_path, path=site) == [
        f"fastdrpl {PROJECT['project']['version']}"
    ]
    assert "fastdrpl train" in "\n".join(
        _lines([str(site / "bin" / "fastdrpl"), "--help"], folder=tmp_path, path=site)
    )
    refused = _python(["-m", "fastdrpl", "trian"], folder=tmp_path, path=site)
    assert refused.returncode == 2 and "train" in refused.stderr and "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_whole_run_from_the_wheel_alone(site: Path, tmp_path: Path) -> None:
    """R22: trained, reported, looked at and exported by what is installed; no optional library is imported."""
    run = tmp_path / "run"
    code = (
        "import sys; from fastdrpl.cli import main\n"
        f"assert main({[*toy.WORDS, '--run', str(run)]!r}) == 0\n"
        f"assert main(['report', {str(run)!r}]) == 0 and main(['status', {str(run)!r}]) == 0\n"
        f"assert main(['export', {str(run)!r}, '--to', 'csv', 'card']) == 0\n"
        "import fastdrpl; print(fastdrpl.__file__)\n"
        "print({'ffcv', 'nvidia.dali', 'timm', 'datasets', 'onnx'} & set(sys.modules))"
    )
    *_, file, optional = _lines(code, folder=tmp_path, path=site)
    assert Path(file).is_relative_to(site) and optional == "set()"
    assert {"result.json", "labels.csv", "report.html", "export"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} <= {
        "fastdrpl",
        "bin",
    }


def test_the_version_is_the_same_everywhere() -> None:
    import fastdrpl

    assert fastdrpl.__version__ == PROJECT["project"]["version"]
    assert f"## [{fastdrpl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "code", ["import fastdrpl.cli", "import fastdrpl.cli; fastdrpl.cli.main(['--help'])"]
)
def test_help_imports_nothing_heavy(site: Path, tmp_path: Path, code: str) -> None:
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(_lines(code, folder=tmp_path, path=site)[-1].split())
    assert "fastdrpl" in loaded
    assert loaded & HEAVY == set()


def test_help_is_quick(site: Path, tmp_path: Path) -> None:
    def measure(*words: str) -> float:
        start = time.perf_counter()
        _lines(list(words), folder=tmp_path, path=site)
        return time.perf_counter() - start

    measure("-m", "fastdrpl", "--help")  # writes the byte code
    bare, ours = [], []
    for _ in range(5):
        bare.append(measure("-c", "pass"))
        ours.append(measure("-m", "fastdrpl", "--help"))
    assert statistics.median(ours) < statistics.median(bare) + 0.4


def test_prepare_does_not_import_torch(site: Path, tmp_path: Path) -> None:
    """R22."""
    code = (
        "import sys, fastdrpl.cli\n"
        "assert fastdrpl.cli.main(['prepare', 'digits', '--out', 'digits']) == 0\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = set(_lines(code, folder=tmp_path, path=site)[-1].split())
    assert loaded & {"torch", "torchvision", "ffcv", "nvidia", "triton"} == set()
    assert (tmp_path / "digits" / "dataset.json").is_file()


def test_a_checkout_imports_like_a_wheel(tmp_path: Path) -> None:
    code = (
        "import fastdrpl.kernels.beta_mixture, fastdrpl.loaders.order, importlib.util\n"
        "print(fastdrpl.kernels.__file__)\n"
        "print(fastdrpl.loaders.order.__file__)\n"
        "names = ('tests', 'bench', 'docs', 'pyproject')\n"
        "print([name for name in names if importlib.util.find_spec('fastdrpl.' + name)])"
    )
    lines = _lines(code, folder=tmp_path, path=ROOT)
    assert lines == [str(ROOT / "kernels" / "__init__.py"), str(ROOT / "loaders" / "order.py"), "[]"]


def test_train_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    done = _python([str(ROOT / "fastdrpl" / "train.py"), "no-such-recipe"], folder=tmp_path, path=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "no-such-recipe" in done.stderr and "Traceback" not in done.stderr


def test_every_package_folder_is_packaged() -> None:
    found = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in _modules(folder)
        if path.name == "__init__.py"
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)
    for folder, package in FOLDERS.items():
        assert PROJECT["tool"]["setuptools"]["package-dir"][package] == folder
        bare = {path.parent for path in _modules(folder)} - {
            path.parent for path in _modules(folder) if path.stem == "__init__"
        }
        assert bare == set(), "a folder of modules without __init__.py"


def test_no_module_is_named_like_one_of_somebody_else() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *itertools.chain.from_iterable(extras)]
    distributions = {re.split(r"[<>=;\[ ]", line)[0].lower().replace("_", "-") for line in wanted}
    taken = {
        name
        for name, owners in importlib.metadata.packages_distributions().items()
        if distributions & {owner.lower().replace("_", "-") for owner in owners}
    }
    assert {"torch", "sklearn", "PIL", "rich", "pyarrow"} <= taken
    taken |= {"ffcv", "nvidia", "triton", *sys.stdlib_module_names}
    ours = {
        path.parent.name if path.stem == "__init__" else path.stem
        for path in _modules(*FOLDERS, "bench", "tests")
    }
    assert (ours - {"fastdrpl", "__main__"}) & taken == set()


_UNSAFE = {
    "pickle": {"load", "loads", "Unpickler"},
    "_pickle": {"load", "loads", "Unpickler"},
    "torch": {"load"},
    "joblib": {"load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
}


def _unsafe_uses(source: str) -> list[str]:
    """Every use, in Python source, of a call that can run code from the file it reads."""
    found, tree = [], ast.parse(source)
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names} & _UNSAFE.get(node.module or "", set())
            found += [f"{node.module}.{name}" for name in sorted(names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, node.value.id)
            if node.attr in _UNSAFE.get(module, set()):
                found.append(f"{module}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            safe = node.arg == "weights_only"
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                found.append(f"{node.arg}={ast.unparse(node.value)}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)", "import pickle as p\np.Unpickler(f)", "from pickle import loads",
        "import torch\ntorch.load(f, weights_only=True)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)",
    ],
)  # fmt: skip
def test_the_search_for_unsafe_reading_finds_it(source: str) -> None:
    assert _unsafe_uses(source)
    assert _unsafe_uses("np.load(f, allow_pickle=False)\npickle.dumps(x)\njson.load(f)") == []


def test_nothing_unpickles_outside_the_guarded_module() -> None:
    """R9."""
    guarded = ROOT / "loaders" / "pickles.py"
    found = {
        str(path.relative_to(ROOT)): uses
        for path in _modules(*FOLDERS, "bench")
        if path != guarded and (uses := _unsafe_uses(path.read_text()))
    }
    # Tests may open hostile files that they made themselves, never a file of somebody else's.
    for path in _modules("tests"):
        uses = [use for use in _unsafe_uses(path.read_text()) if not use.endswith(("loads", "Unpickler"))]
        if uses:
            found[str(path.relative_to(ROOT))] = uses
    assert found == {}


def test_the_scripts_are_executable_and_sound() -> None:
    for name in ("quickstart", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK)
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
    assert "./quickstart test" in (ROOT / ".ci" / "run").read_text()
    refused = subprocess.run([str(ROOT / "quickstart"), "dance"], capture_output=True, text=True)
    assert refused.returncode == 1 and "./quickstart demo" in refused.stderr
