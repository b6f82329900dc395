"""fastdrpl: train an image classifier from partly wrong labels, and learn which labels are wrong.

Importing this package is cheap (no torch): the command line must answer `--help` at once.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"


_ROOT = Path(__file__).resolve().parent.parent


class _CheckoutFinder:
    """Finds `fastdrpl.kernels` and `fastdrpl.loaders` beside this folder, as a wheel has them inside it.

    Exactly these two: putting the repository root on `__path__` would also make `fastdrpl.tests` importable.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in (f"{__name__}.kernels", f"{__name__}.loaders"):
            return None
        folder = _ROOT / name.rpartition(".")[2]
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if (_ROOT / "pyproject.toml").is_file():  # a checkout; never in site-packages
    # First: an editable install of another checkout must not lend its kernels to this one.
    sys.meta_path.insert(0, _CheckoutFinder)
