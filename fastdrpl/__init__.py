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


class _CheckoutFinder:
    """Finds `fastdrpl.kernels` and `fastdrpl.loaders` beside this folder, as a wheel has them inside it.

    Exactly these two: putting the repository root on `__path__` would also make `fastdrpl.tests` importable.
    """

    _root = Path(__file__).resolve().parent.parent
    _folders = {f"{__name__}.{name}": _root / name for name in ("kernels", "loaders")}

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        folder = cls._folders.get(name)
        if folder is None or not (folder / "__init__.py").is_file():
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if (_CheckoutFinder._root / "pyproject.toml").is_file():  # a checkout; never in site-packages
    sys.meta_path.append(_CheckoutFinder)
