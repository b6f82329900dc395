"""Whether all that a GPU machine will run can be imported, and what it is: `python bench/gpu_smoke.py`."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

import torch

import fastdrpl
from bench.rows import describe_code, describe_machine

# Extras whose modules are left out where they are not.
OPTIONAL = ("ffcv", "nvidia.dali", "datasets", "webdataset")


def import_everything() -> tuple[int, list[str]]:
    """Import every module of the package and of the benches: -> (how many, what was left out and for want of what)."""
    names = [found.name for found in pkgutil.walk_packages(fastdrpl.__path__, "fastdrpl.")]
    names += [f"bench.{path.stem}" for path in sorted(Path(__file__).parent.glob("*.py"))]
    left_out, done = [], 0
    for name in names:
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
            done += 1
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(OPTIONAL):
                raise
            left_out.append(f"{name} ({error.name})")
    return done, left_out


def main() -> None:
    """Import, then describe."""
    done, left_out = import_everything()
    print(f"{done} modules imported; left out: {', '.join(left_out) or 'none'}")
    print(describe_machine(), describe_code())
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"{torch.cuda.get_device_name()}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, bf16")
        print(f"capability {torch.cuda.get_device_capability()}, bf16 {torch.cuda.is_bf16_supported()}")


if __name__ == "__main__":
    main()
