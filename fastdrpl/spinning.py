"""How long OpenMP's threads spin while they wait for each other, before they give their core to others."""

import os
import sys
from collections.abc import MutableMapping

SPINS = 10_000
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch's OpenMP reads when it is loaded; nothing where the user set a policy or torch is loaded already.

    By default a thread spins for long: beside other busy processes that takes the core from the very thread that
    it waits for, and two threads are slower than one (docs/speed.md has the figures).
    """
    if "torch" not in sys.modules and not any(name in environment for name in POLICIES):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
