"""A hash seed of Python under which a set of names is in another order than in this process."""

from __future__ import annotations

import os
import subprocess
import sys

ORDER = "import sys; print(*{*sys.argv[1:]}, sep='\\n')"


def other_seed(*names: str) -> str:
    """Return the first PYTHONHASHSEED that gives a set of the names another order than it has here."""
    here = [*{*names}]
    for seed in map(str, range(1, 65)):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-S", "-c", ORDER, *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        if done.stdout.splitlines() != here:
            return seed
    raise AssertionError(f"{names} have one order under 64 seeds")
