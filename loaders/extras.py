"""The optional back ends: imported where they are used, and an exact install line where they are missing."""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from fastdrpl.loaders.errors import UserError

_ONNX = "pip install 'onnx>=1.17' 'onnxscript>=0.5' 'onnxruntime>=1.20'"
INSTALL = {  # module -> what brings it
    "ffcv": "apt-get install -y libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv==1.0.2",
    "nvidia.dali": "pip install 'nvidia-dali-cuda130>=2.4'",
    "timm": "pip install 'timm>=1.0'",
    "datasets": "pip install 'datasets>=3'",
    "webdataset": "pip install 'webdataset>=0.2'",
    "onnx": _ONNX,
    "onnxscript": _ONNX,
    "onnxruntime": _ONNX,
    "pillow_heif": "pip install 'pillow-heif>=1.0'",
}


def require(module: str) -> ModuleType:
    """Import an optional module. Raises UserError with the line that installs it, or with what its import said.

    The number of threads of torch and numba stays what it was: importing ffcv would set both to one. Nor do ffcv's
    loaders change numba's types, see `_keep_types`.
    """
    try:
        if module != "ffcv":
            return importlib.import_module(module)
        with keep_thread_counts():
            library = importlib.import_module(module)
        _keep_types()
        return library
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


def _keep_types() -> None:
    """Have ffcv compile its reader for the types it is called with, rather than for types it declares.

    To declare them it sets `mutable = False` on numba's type of uint8 arrays, of which a process has but one: from
    the first loader on, no compiled function of anybody that takes such an array finds its own signatures again.
    """
    manager: Any = importlib.import_module("ffcv.memory_managers.os_cache").OSCacheManager
    compiler: Any = importlib.import_module("ffcv.pipeline.compiler").Compiler

    def compile_reader(self: Any) -> Any:
        def read(address: Any, state: Any) -> Any:
            file, starts, sizes = state
            size = sizes[np.searchsorted(starts, address)]
            return file[address : address + size]

        return compiler.compile(read)

    manager.compile_reader = compile_reader
