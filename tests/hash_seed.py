"""A hash seed of Python under which sets of names are in another order than in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

ORDERS = "import json, sys; print(json.dumps([[*{*names}] for names in json.loads(sys.argv[1])]))"
# Groups of units, and two models: what followed the order of either would differ in a warm process.
NAMES = (("ffn", "heads", "residual", "pooler"), ("a", "b"))


def orders(sets: Sequence[Sequence[str]] = NAMES) -> list[list[str]]:
    """Return the names of each set in the order that it has in this process."""
    return [[*{*names}] for names in sets]


@cache
def other_seed(sets: Sequence[Sequence[str]] = NAMES) -> str:
    """Return the first PYTHONHASHSEED that gives every one of the sets another order than it has here."""
    here = orders(sets)
    for seed in map(str, range(1, 65)):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-S", "-c", ORDERS, json.dumps(sets)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        if all(there != order for there, order in zip(json.loads(done.stdout), here, strict=True)):
            return seed
    raise AssertionError(f"one of {sets} has the same order under 64 seeds")
