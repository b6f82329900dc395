"""What several tests share."""

import functools
import gc
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports torch: several test processes share the cores, and threads that spin while they wait for
# each other would make everything ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell has what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

# Kernels for GPUs run in Triton's interpreter where there is none. Before anything imports triton, whose own functions
# are made for one or the other at that moment.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


_find_anew = inspect.findsource


@functools.cache
def _find_source(looked_up: type) -> tuple[Any, OSError | None]:
    try:
        return _find_anew(looked_up), None
    except OSError as error:
        return None, error


def _find_source_once(looked_up: Any) -> Any:
    """tyro looks up the source of every settings class each time it reads flags, which is most of what that takes.

    Only classes are remembered: frames and the like would be kept alive, or cannot be a key.
    """
    if not isinstance(looked_up, type):
        return _find_anew(looked_up)
    found, error = _find_source(looked_up)
    if error is not None:
        raise error
    return found


inspect.findsource = _find_source_once

settings.register_profile("calm", deadline=None)  # a busy machine is no defect; pytest ends what hangs
settings.load_profile("calm")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every new learner collects garbage; what was there before a module is not looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _find_real_data() -> Path | None:
    """The folder with real images: unpacked CIFAR, or the packs and their `unpack.py`."""
    for folder in (os.environ.get("FASTDRPL_REAL_DATA"), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


@pytest.fixture(scope="session")
def real_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cifar-10-batches-py` and `cifar-100-python`, the official python versions."""
    folder = _find_real_data()
    if folder is None:
        pytest.skip(
            "real images: set FASTDRPL_REAL_DATA to a folder with cifar-10-batches-py and cifar-100-python"
        )
    if (folder / "cifar-10-batches-py").is_dir():
        return folder
    out = tmp_path_factory.getbasetemp().parent / "real_cifar"  # one for all xdist workers
    lock, done = out.with_suffix(".lock"), out / "done"
    import filelock

    with filelock.FileLock(str(lock)):
        if not done.exists():
            subprocess.run(
                [sys.executable, str(folder / "unpack.py"), str(out), "cifar10", "cifar100"], check=True
            )
            done.touch()
    return out


@pytest.fixture(scope="session")
def real_meta() -> Path:
    """A folder with `imagenet_val_confusion.npz` (real counts of four networks) and the published class lists."""
    folder = _find_real_data()
    if folder is None or not (folder / "meta").is_dir():
        pytest.skip("real confusion of ImageNet: set FASTDRPL_REAL_DATA to a folder with meta/")
    return folder / "meta"
