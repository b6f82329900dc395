"""How the kernels of this folder are compiled: numba, the machine code kept on disk where possible."""

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from fastdrpl.kernels.cpu import numba_cache

Function = TypeVar("Function", bound=Callable[..., Any])

if numba.config.THREADING_LAYER == "default" and not os.environ.get("NUMBA_THREADING_LAYER_PRIORITY"):
    # OpenMP starts its threads in a few microseconds, TBB (numba's first choice) took 50: more than some kernels run
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


class _ParallelLock:
    """One caller at a time, and an error where GNU OpenMP would end the process: in a fork of one that used it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: int | None = None

    def __enter__(self) -> None:
        process = os.getpid()
        if self._process not in (None, process) and numba.threading_layer() == "omp":
            raise RuntimeError(
                "parallel kernels ran before this process was forked, which OpenMP does not survive; "
                "start processes by 'spawn', or set NUMBA_THREADING_LAYER=workqueue"
            )
        self._lock.acquire()
        self._process = process

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


PARALLEL_LOCK = _ParallelLock()
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
