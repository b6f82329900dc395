"""The numba twin of each kernel; the reference stands in the module of the same name one level up."""

import functools
import os
import tempfile
import warnings
from pathlib import Path


@functools.cache
def numba_cache() -> Path | None:
    """The folder for compiled kernels, or None (with one warning) where nothing can be written.

    `NUMBA_CACHE_DIR` where it is set, else `fastdrpl/numba` in the user's cache folder.
    Without one every process compiles its kernels again: seconds lost, the same numbers.
    """
    configured = os.environ.get("NUMBA_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(configured) if configured else Path(base, "fastdrpl", "numba")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        warnings.warn(
            f"compiled kernels are not kept: cannot write to {folder} ({error.strerror}); "
            "set NUMBA_CACHE_DIR to a writable folder to save some seconds at every start",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return folder
