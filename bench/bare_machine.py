"""A virtual environment with what a GPU machine has and nothing else: `python bench/bare_machine.py FOLDER`.

The distributions that bench/gpu-machine.txt names are linked from the environment of the Python that runs this. What
is not named there cannot be imported: a rehearsal fails where it would fail on the machine.
"""

import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

MACHINE = Path(__file__).resolve().parent / "gpu-machine.txt"
SHARED = ("nvidia",)  # folders that several distributions put their own into


def patterns(file: Path = MACHINE) -> list[str]:
    """The names in a list, in the spelling of `canonical`."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [canonical(re.split("[=<>~!]", line)[0]) for line in lines if line]


def canonical(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def matches(name: str, wanted: list[str]) -> bool:
    """Whether a list has this distribution."""
    return any(fnmatch.fnmatch(canonical(name), pattern) for pattern in wanted)


def build(folder: Path, wanted: list[str]) -> Path:
    """Make the environment: -> its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    here = Path(sysconfig.get_path("purelib"))
    for found in importlib.metadata.distributions(path=[str(here)]):
        if matches(found.name, wanted):
            _link(found, here, site)
    return python


def _link(found: importlib.metadata.Distribution, here: Path, site: Path) -> None:
    for file in found.files or ():
        parts = Path(file).parts
        if parts[0] in ("..", "__pycache__") or parts[0].endswith(".pth"):
            continue
        depth = 2 if parts[0] in SHARED and len(parts) > 2 else 1
        target = site.joinpath(*parts[:depth])
        if not target.is_symlink():
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(here.joinpath(*parts[:depth]))


def main() -> None:
    """Build it and print its Python."""
    print(build(Path(sys.argv[1]), patterns()))


if __name__ == "__main__":
    main()
