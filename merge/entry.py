"""Start of `evaluate-models`: makes sure that the `evals` it imports is ours.

Another distribution on PyPI also installs a package named `evals` and silently takes its place. This module is the one
exception to the rule that merge never imports evals.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def evaluate_models() -> None:
    """Run the evaluate-models command, or stop with one line naming the clash."""
    ours = Path(__file__).resolve().parent.parent / "evals"
    found = importlib.util.find_spec("evals")
    # A folder without __init__.py has no origin, only places; a module evals.py has a file of its own.
    places = [*(found.submodule_search_locations or ()), found.origin] if found else []
    origin = next((Path(place).resolve() for place in places if place), None)
    if origin != ours or importlib.util.find_spec("evals.command") is None:
        sys.stderr.write(
            f"evaluate-models: the package 'evals' found at {origin or 'no place'} is not the one of merge-models "
            f"(expected {ours}). If another distribution of that name is installed: pip uninstall evals, then reinstall "
            "merge-models.\n"
        )
        raise SystemExit(1)
    from evals.command import main

    main()
