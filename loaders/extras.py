"""The optional back ends: imported where they are used, and an exact install line where they are missing."""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from fastdrpl.loaders.errors import UserError

INSTALL = {  # module -> what brings it
    "ffcv": "apt-get install -y libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv==1.0.2",
    "nvidia.dali": "pip install 'nvidia-dali-cuda130>=2.4'",
    "timm": "pip install 'timm>=1.0'",
    "datasets": "pip install 'datasets>=3'",
    "webdataset": "pip install 'webdataset>=0.2'",
}


def require(module: str) -> ModuleType:
    """Import an optional module. Raises UserError with the line that installs it, or with what its import said.

    The number of threads of torch and numba stays what it was: importing ffcv would set both to one.
    """
    try:
        with keep_thread_counts() if module == "ffcv" else contextlib.nullcontext():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            raise UserError(f"{module} is not installed", fix=INSTALL[module]) from None
        raise UserError(f"{module} does not import: {error}", fix=INSTALL[module]) from error
    except ImportError as error:  # a shared library that is not there
        raise UserError(f"{module} does not import: {error}", fix=INSTALL[module]) from error


@contextlib.contextmanager
def keep_thread_counts() -> Iterator[None]:
    """How many threads torch and numba use in the calling thread is the same after the block as before."""
    # By name, as whoever only prepares a data set must not load either; numba with our choice of its threading layer.
    torch = importlib.import_module("torch")
    numba = importlib.import_module("fastdrpl.kernels.cpu.jit").numba
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
