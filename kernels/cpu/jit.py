"""How the kernels of this folder are compiled: numba, the machine code kept on disk where possible."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from fastdrpl.kernels.cpu import numba_cache

Function = TypeVar("Function", bound=Callable[..., Any])

PARALLEL_LOCK = threading.RLock()
"""Hold it around every call from Python into a kernel compiled with `parallel=True`.

One of numba's threading layers (workqueue) ends the process when two threads start parallel work at once.
"""


def jit(**options: Any) -> Callable[[Function], Function]:
    """`numba.njit(**options)`, cached in `numba_cache()` unless that is None or `cache=False` is given.

    numba notices a stale cached function by the content of its own file alone: let it call compiled
    functions of the same file only.
    """

    def compile_lazily(function: Function) -> Function:
        folder = numba_cache() if options.get("cache", True) else None
        if folder is None:
            return cast(Function, numba.njit(**{**options, "cache": False})(function))
        configured = numba.config.CACHE_DIR  # read at decoration, and shared with others
        numba.config.CACHE_DIR = str(folder)
        try:
            return cast(Function, numba.njit(**{**options, "cache": True})(function))
        finally:
            numba.config.CACHE_DIR = configured

    return compile_lazily
