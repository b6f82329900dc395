"""What a test needs that not everybody has installed: skipped by name, or, where everything must be there, an error."""

import importlib
import os
from types import ModuleType

import pytest

from fastdrpl.loaders.errors import UserError
from fastdrpl.loaders.extras import INSTALL, require


def need(module: str) -> ModuleType:
    """Import an optional library; skip what needs it, or fail where FASTDRPL_REQUIRE_EXTRAS=1 (as in CI)."""
    try:
        return require(module) if module in INSTALL else importlib.import_module(module)
    except (UserError, ImportError):
        if os.environ.get("FASTDRPL_REQUIRE_EXTRAS") == "1":
            raise
        pytest.skip(f"the library {module} is not installed", allow_module_level=True)
